"""The study: its schema, how a file is parsed, and the grid of cells it describes."""
