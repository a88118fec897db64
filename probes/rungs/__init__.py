"""The ladder of probes, one file per rung, and the registry that lists them."""
