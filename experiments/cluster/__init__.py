"""Many machines on one study: shares of an array, Slurm's jobs, and how far they all are."""
