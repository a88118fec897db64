"""The study: its schema, how its file is read, the questions of its datasets, and the run folder of each cell."""
