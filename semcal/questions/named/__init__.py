"""The named datasets, one file each, and the registry that lists them."""
