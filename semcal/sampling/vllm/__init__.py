"""Sampling in vLLM, which runs in a process and an environment of its own; this side imports nothing of it."""
