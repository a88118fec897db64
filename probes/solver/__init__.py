"""How probes are fitted: batched L-BFGS on rotated activations, and training loops."""
