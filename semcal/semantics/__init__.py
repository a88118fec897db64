"""What answers mean: extraction, the collapsing functions B, class distributions. Imports no torch."""

from semcal.semantics.collapse import UNPARSED, Collapse, ExactMatch, KthWord
from semcal.semantics.distribution import ClassDistribution, CountMatrix, count_matrix
from semcal.semantics.extract import extract
from semcal.semantics.normalise import normalise

__all__ = [
    "UNPARSED",
    "ClassDistribution",
    "Collapse",
    "CountMatrix",
    "ExactMatch",
    "KthWord",
    "count_matrix",
    "extract",
    "normalise",
]
