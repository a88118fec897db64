"""The bundled organism: a generated world, and language models trained on nothing else."""
