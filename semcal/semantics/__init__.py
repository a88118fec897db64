"""What answers mean: extraction, the collapsing functions B, class distributions. Imports no torch."""

from semcal.semantics.collapse import UNPARSED, Collapse, ExactMatch, KthWord
from semcal.semantics.distribution import UNEXPLORED, ClassDistribution, CountMatrix, count_matrix
from semcal.semantics.extract import extract
from semcal.semantics.intermediate import expected_confidence
from semcal.semantics.normalise import normalise

__all__ = [
    "UNEXPLORED",
    "UNPARSED",
    "ClassDistribution",
    "Collapse",
    "CountMatrix",
    "ExactMatch",
    "KthWord",
    "count_matrix",
    "expected_confidence",
    "extract",
    "normalise",
]
