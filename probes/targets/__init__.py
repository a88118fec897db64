"""What a probe is asked to predict: class distributions and scalars made from them."""
