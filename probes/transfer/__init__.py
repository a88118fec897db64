"""What probes of one run read in another: read-outs, and maps between the activations of different models."""
