"""semcal: is a language model's confidence in what it means earned, and does it know it before it speaks?

From a question to "calibrated or not". The public names here are what a notebook needs; the rooms beside this file
hold the rest.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from semcal.answers import Answer, sample
    from semcal.errors import NonFiniteError, UserError
    from semcal.models.checkpoint import LanguageModel
    from semcal.questions.question import Question
    from semcal.runs.run import Run
    from semcal.semantics.collapsing.exact_match import ExactMatch
    from semcal.semantics.collapsing.surface import KthWord

__all__ = [
    "Answer",
    "ExactMatch",
    "KthWord",
    "LanguageModel",
    "NonFiniteError",
    "Question",
    "Run",
    "UserError",
    "sample",
]
# Imported when first used: torch takes seconds, and a typing mistake in a study should be answered at once.
_HOMES = {
    "Answer": "semcal.answers",
    "ExactMatch": "semcal.semantics.collapsing.exact_match",
    "KthWord": "semcal.semantics.collapsing.surface",
    "LanguageModel": "semcal.models.checkpoint",
    "NonFiniteError": "semcal.errors",
    "Question": "semcal.questions.question",
    "Run": "semcal.runs.run",
    "UserError": "semcal.errors",
    "sample": "semcal.answers",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'semcal' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
