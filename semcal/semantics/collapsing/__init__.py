"""The collapsing functions B, one file each, and the contract that all of them keep."""
