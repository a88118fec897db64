"""The generative rung: adapters on a model that emit the class of its answer as text."""
