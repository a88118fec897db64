"""What draws the figures of runs and of verdicts, and what writes figures to disk."""
