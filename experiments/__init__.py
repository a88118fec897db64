"""What is asked of semcal and probes together: one folder per command."""
