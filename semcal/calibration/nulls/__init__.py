"""What a calibrated model would show at the same n and M."""
