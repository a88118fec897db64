"""What is read in a model before it generates, and along an answer."""
