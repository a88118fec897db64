"""Collapsing functions of an answer's form, not its meaning: its k-th word, how it begins, how long it is.

A base model should be calibrated about these too (arXiv 2511.04869: any B that it can predict before it answers). They
read the token ids or the text of one answer; gold answers, written out in full, go through the same functions.
"""

import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from semcal.questions.question import BlindQuestion
from semcal.semantics.class_table import UNPARSED
from semcal.semantics.collapsing.collapse import Pointwise

CUT_OFF = "(cut off)"
_WORD = re.compile(r"\w+(?:['’-]\w+)*")
_LAST_WORD = re.compile(r"\S+$")


def kth_word(text: str, k: int) -> str:
    """The k-th word of a text in lower case, counting from 1; UNPARSED if the text has fewer words."""
    words = _WORD.findall(unicodedata.normalize("NFC", text))
    return words[k - 1].lower() if len(words) >= k else UNPARSED


@dataclass(frozen=True)
class KthWord(Pointwise):
    """The k-th word of a continuation in lower case, counting from 1; UNPARSED if it has fewer words."""

    k: int

    @property
    def name(self) -> str:
        return f"kth-word({self.k})/2"

    def of_text(self, question: BlindQuestion, text: str, style: str) -> str:  # noqa: ARG002 - the contract of Collapse
        return kth_word(text, self.k)

    def of_reference(self, question: BlindQuestion, answer: str) -> str:
        return self.of_text(question, answer, "")


def first_token(ids: Sequence[int] | np.ndarray) -> str:
    """The first token id; UNPARSED if the answer has no token."""
    return str(int(ids[0])) if len(ids) else UNPARSED


def first_word(text: str, *, cut: bool = False) -> str:
    """The first word, as `KthWord(1)` reads it; if the length limit `cut` the text, its last word may be incomplete."""
    return kth_word(_LAST_WORD.sub("", text) if cut else text, 1)


def length(text: str, *, cut: bool = False) -> str:
    """The number of words; texts that the length limit `cut` form one class, since their full length is unknown."""
    return CUT_OFF if cut else str(len(text.split()))
