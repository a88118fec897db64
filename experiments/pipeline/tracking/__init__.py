"""What Weights & Biases receives while a study runs; see docs/tracking.md."""
