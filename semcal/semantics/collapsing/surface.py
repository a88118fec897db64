"""Collapsing functions of an answer's form and not of its meaning: how it begins, how long it is.

A base model should be calibrated about these too (arXiv 2511.04869: any B that it can predict before it answers). Pure:
token ids or texts of one answer in, a class out; gold answers go through the same functions, written out in full.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from semcal.semantics.collapsing.collapse import UNPARSED, kth_word

CUT_OFF = "(cut off)"
_LAST_WORD = re.compile(r"\S+$")


def first_token(ids: Sequence[int] | np.ndarray) -> str:
    """The first token id; UNPARSED where the answer has none."""
    return str(int(ids[0])) if len(ids) else UNPARSED


def first_word(text: str, *, cut: bool = False) -> str:
    """The first word as `KthWord(1)` has it; of a text that the length limit `cut` the last may be half a word."""
    return kth_word(_LAST_WORD.sub("", text) if cut else text, 1)


def length(text: str, *, cut: bool = False) -> str:
    """The number of words; those that the length limit `cut` are one class, for how long they would be is not known."""
    return CUT_OFF if cut else str(len(text.split()))
