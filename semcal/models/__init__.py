"""The models that answer: a checkpoint, a model in memory, a served endpoint. Knows no dataset."""
