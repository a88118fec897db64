"""A study run from beginning to end: sample, score, probe, report, track."""
