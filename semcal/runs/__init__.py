"""The run folder: atomic files, shards, tables and stored activations."""
