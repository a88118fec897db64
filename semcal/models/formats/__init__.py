"""Checkpoints that are more or other than a folder of plain weights: GGUF files, adapters, quantised models."""
