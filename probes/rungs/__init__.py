"""The ladder of probes, and the registry that lists its rungs."""
