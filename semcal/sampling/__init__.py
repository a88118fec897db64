"""How a model answers: token ids in, distinct token sequences with counts, log-probabilities and finish out.

Knows neither text nor datasets.
"""
