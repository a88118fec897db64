"""Changing what a model knows before it answers, and what that does to its answers."""
