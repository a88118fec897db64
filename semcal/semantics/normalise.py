"""Answer normalisation of the SQuAD evaluation (Rajpurkar et al. 2016)."""

from __future__ import annotations

import re
import string
from functools import lru_cache

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation + "‘’“”´")


@lru_cache(maxsize=2**16)  # the same few answers recur
def normalise(text: str) -> str:
    """Lower case, no punctuation, no articles, single spaces.

    An answer of which nothing would be left ("The The", "A", "?") keeps its lower-case form.
    """
    lowered = " ".join(text.lower().split())
    bare = " ".join(_ARTICLES.sub(" ", lowered.translate(_PUNCTUATION)).split())
    return bare or lowered
