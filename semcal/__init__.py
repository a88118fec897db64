"""semcal: is a language model's confidence in what it means earned, and does it know it before it speaks?

From a question to "calibrated or not". The public names here are what a notebook needs; the rooms beside this file
hold the rest.
"""

from semcal.answers import Answer, sample
from semcal.errors import NonFiniteError, UserError
from semcal.models import LanguageModel
from semcal.questions import Question
from semcal.semantics import ClassDistribution, ExactMatch, KthWord
from semcal.store import Run

__all__ = [
    "Answer",
    "ClassDistribution",
    "ExactMatch",
    "KthWord",
    "LanguageModel",
    "NonFiniteError",
    "Question",
    "Run",
    "UserError",
    "sample",
]
