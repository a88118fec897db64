"""What is measured on pairs of (confidence, correctness): smECE, binned errors, scores, loss gap."""
