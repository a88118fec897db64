"""Collapsing functions coarser than a run's own: many Bs of graded learnability on the same samples.

Each maps the class of an answer, a text, to a coarser class, and knows nothing of the question: what was one class
stays one, so the gold class is known, and no B is chosen by how the model does. Some are easy to tell before the model
answers (how an answer begins), some as hard as chance can make them (hashes). A base model should be calibrated about
those whose distribution it can easily predict (arXiv 2511.04869).
"""

import hashlib
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from semcal.semantics.class_table import UNEXPLORED, UNPARSED

MEANING, CLUSTERS, SPELLING = "meaning", "clusters of meanings", "spelling"
LETTERS, WORDS, LENGTH, DIGITS, HASH = "letters", "words", "length", "digits", "hash"
HASH_SIZES = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_VOWELS = frozenset("aeiou")
_COMMON = "eaotinsrlhdc"  # the commonest letters of English
_PLACES = ("first", "second", "third", "fourth")


@dataclass(frozen=True)
class Coarsening:
    """A map of classes to coarser ones.

    Attributes:
        name: unique among those of a sweep.
        kind: what it reads of a class, one of the constants of this module.
        of: class -> coarser class; called by `apply`, which leaves classes that are no answers alone.
    """

    name: str
    kind: str
    of: Callable[[str], str]

    def apply(self, label: str) -> str:
        """The coarser class; UNPARSED and UNEXPLORED stay what they are."""
        return label if label in (UNPARSED, UNEXPLORED) else self.of(label)


def coarsenings() -> tuple[Coarsening, ...]:
    """Every B that needs the class alone, from the finest, the class itself; in the order of tables."""
    return (
        Coarsening("class", MEANING, str),
        *(Coarsening(f"first letters, {k}", SPELLING, partial(_first, k)) for k in (1, 2, 3)),
        *(Coarsening(f"last letters, {k}", SPELLING, partial(_last, k)) for k in (1, 2)),
        *(Coarsening(f"alphabet in {k}", SPELLING, partial(_alphabet, k)) for k in (2, 4, 8)),
        Coarsening("begins with a vowel", SPELLING, lambda label: str(_letters(label)[:1] in _VOWELS)),
        Coarsening("ends with a vowel", SPELLING, lambda label: str(_letters(label)[-1:] in _VOWELS)),
        *(Coarsening(f"contains {one}", LETTERS, partial(_contains, one)) for one in _COMMON),
        Coarsening("vowels", LETTERS, lambda label: str(_vowels(label))),
        Coarsening("vowels, odd or even", LETTERS, lambda label: str(_vowels(label) % 2)),
        Coarsening("distinct letters", LETTERS, lambda label: str(len(set(_letters(label))))),
        Coarsening("a letter doubled", LETTERS, lambda label: str(re.search(r"(.)\1", _letters(label)) is not None)),
        *(Coarsening(f"{nth} word", WORDS, partial(_word, k)) for k, nth in enumerate(_PLACES)),
        Coarsening("last word", WORDS, lambda label: (label.split() or [""])[-1]),
        Coarsening("number of words", LENGTH, lambda label: str(len(label.split()))),
        *(Coarsening(f"characters in {k}s", LENGTH, partial(_length, k)) for k in (1, 2, 3, 5, 8)),
        *(Coarsening(f"characters mod {k}", LENGTH, partial(_length_mod, k)) for k in (2, 3, 5)),
        Coarsening("has a digit", DIGITS, lambda label: str(any(map(str.isdigit, label)))),
        Coarsening("digit sum", DIGITS, lambda label: str(_digit_sum(label))),
        *(Coarsening(f"digit sum mod {k}", DIGITS, partial(_digit_sum_mod, k)) for k in (2, 3, 9)),
        *(
            Coarsening(f"hash in {size} ({salt})", HASH, partial(_hash, size, salt))
            for size in HASH_SIZES
            for salt in "ab"
        ),
    )


def as_clusters(name: str, labels: Sequence[str], cluster: Sequence[int]) -> Coarsening:
    """A B that joins classes by a clustering of all classes of a run, gold ones unmarked among them.

    Args:
        labels: [class].
        cluster: [class] the number of its cluster.
    """
    found = dict(zip(labels, map(str, cluster), strict=True))
    return Coarsening(name, CLUSTERS, found.__getitem__)


def _letters(label: str) -> str:
    return "".join(filter(str.isalnum, label.casefold()))


def _first(k: int, label: str) -> str:
    return _letters(label)[:k]


def _last(k: int, label: str) -> str:
    return _letters(label)[-k:]


def _alphabet(parts: int, label: str) -> str:
    """Which part of the alphabet the first letter is in; all that is no letter of English is one class."""
    place = ord(_letters(label)[:1] or " ") - ord("a")
    return str(place * parts // 26) if 0 <= place < 26 else "other"


def _contains(letter: str, label: str) -> str:
    return str(letter in _letters(label))


def _word(k: int, label: str) -> str:
    """The word in place k, from 0; of a class with fewer words, nothing."""
    return (label.split()[k:] or [""])[0]


def _vowels(label: str) -> int:
    return sum(letter in _VOWELS for letter in _letters(label))


def _length(unit: int, label: str) -> str:
    """Characters of the class, not tokens of an answer: answers of one class may differ in tokens."""
    return str(len(label) // unit)


def _length_mod(k: int, label: str) -> str:
    return str(len(label) % k)


def _digit_sum(label: str) -> int:
    return sum(int(one) for one in re.findall(r"[0-9]", label))


def _digit_sum_mod(k: int, label: str) -> str:
    return str(_digit_sum(label) % k)


def _hash(size: int, salt: str, label: str) -> str:
    """One of `size` classes that say nothing of what the answer means or how it is written."""
    digest = hashlib.blake2b(f"{salt}\0{label}".encode(), digest_size=8).digest()
    return str(int.from_bytes(digest, "big") % size)
