"""The generative rung on planted distributions."""
