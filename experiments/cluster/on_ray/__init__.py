"""A study on a cluster of Ray."""
