"""What answers mean: extraction, the collapsing functions B, class distributions. Imports no torch."""

from semcal.semantics.agreement import adjusted_rand
from semcal.semantics.choice import Choice
from semcal.semantics.clustered import Clustered
from semcal.semantics.collapse import UNPARSED, Cluster, Collapse, Collapsed, ExactMatch, KthWord, Pointwise
from semcal.semantics.custom import check_contract, load_custom, unreadable_gold
from semcal.semantics.decisions import Decisions
from semcal.semantics.distribution import UNEXPLORED, ClassDistribution, CountMatrix, count_matrix
from semcal.semantics.extract import extract
from semcal.semantics.intermediate import expected_confidence
from semcal.semantics.judge import Judge
from semcal.semantics.normalise import normalise
from semcal.semantics.numeric import Numeric
from semcal.semantics.similarity import Embedding, Entailment
from semcal.semantics.surface import first_token, first_word, length
from semcal.semantics.tilting import Branch, TokenTilt, answer_tree, tilt_along, tilted_logprobs, token_tilt

__all__ = [
    "UNEXPLORED",
    "UNPARSED",
    "Branch",
    "Choice",
    "ClassDistribution",
    "Cluster",
    "Clustered",
    "Collapse",
    "Collapsed",
    "CountMatrix",
    "Decisions",
    "Embedding",
    "Entailment",
    "ExactMatch",
    "Judge",
    "KthWord",
    "Numeric",
    "Pointwise",
    "TokenTilt",
    "adjusted_rand",
    "answer_tree",
    "check_contract",
    "count_matrix",
    "expected_confidence",
    "extract",
    "first_token",
    "first_word",
    "length",
    "load_custom",
    "normalise",
    "tilt_along",
    "tilted_logprobs",
    "token_tilt",
    "unreadable_gold",
]
