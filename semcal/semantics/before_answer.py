"""What a model wrote before the answering phrase: how many different chains there are, and how long they are.

A style is measured by what was sampled. A run whose chains of thought are all alike ("Let us think step by step. The
answer is ...") is concise with a preamble, whatever its style is called.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from semcal.semantics.extract import locate

# A cot run is flagged if its questions have fewer distinct chains than this on average, so that most have a single one,
MIN_DISTINCT = 1.5
# or if at least half of its samples have fewer words than this before the answering phrase: "The answer is" has three.
MIN_WORDS = 5


@dataclass(frozen=True)
class Chains:
    """The texts before the answering phrase, of all samples that have such a phrase.

    Attributes:
        distinct: Distinct texts before the phrase, mean over questions; a question without any phrase is left out.
        share: `distinct` as a share of the M samples of a question; NaN if M is unknown (enumerated answers).
        words_mean, words_median: Words before the phrase, over samples. Words, since a run stores no character offsets
            of its tokens.
        read: Share of the samples that have an answering phrase.
    """

    distinct: float
    share: float
    words_mean: float
    words_median: float
    read: float

    @property
    def alike(self) -> bool:
        """Whether these cannot be called chains of thought; see `MIN_DISTINCT` and `MIN_WORDS`."""
        return bool(self.distinct < MIN_DISTINCT or self.words_median < MIN_WORDS)

    def warning(self, style: str) -> str | None:
        """What a reader must know of a cot run whose chains are all alike; None otherwise, and in other styles."""
        if style != "cot" or not self.alike:
            return None
        return (
            f"The chains of thought are all alike: {self.distinct:.1f} distinct chains per question (expected at least "
            f"{MIN_DISTINCT:g}) and a median of {self.words_median:g} words before the answering phrase (expected at "
            f"least {MIN_WORDS}). Do not interpret this run as chain of thought."
        )


def chains(
    texts: Sequence[Sequence[str]], weights: Sequence[Sequence[float]], style: str, *, m: int | None
) -> Chains | None:
    """Measure the chains of a run; None if no sample has an answering phrase.

    Args:
        texts: [question][answer] the distinct answers; an answer that was cut off has no phrase if its text has none.
        weights: [question][answer] counts of samples, or masses.
        m: Samples per question; None for enumerated answers.
    """
    distinct, words, known = [], [], []
    for own_texts, own_weights in zip(texts, weights, strict=True):
        before = [_before(text, style) for text in own_texts]
        found = [(b, float(w)) for b, w in zip(before, own_weights, strict=True) if b is not None]
        if found:
            distinct.append(len({" ".join(b.split()) for b, _ in found}))
        words += [len(b.split()) for b, _ in found]
        known += [w for _, w in found]
    if not known:
        return None
    length, weight = np.array(words), np.array(known)
    mean = float(np.mean(distinct))
    return Chains(
        distinct=mean,
        share=mean / m if m else float("nan"),
        words_mean=float(np.average(length, weights=weight)),
        words_median=_median(length, weight),
        read=float(weight.sum() / sum(map(sum, weights))),
    )


def _before(text: str, style: str) -> str | None:
    found = locate(text, style)
    return None if found is None else text[: found[0]]


def _median(values: np.ndarray, weight: np.ndarray) -> float:
    """The weighted median: the mean of the two middle values if half of the weight lies below exactly."""
    order = np.argsort(values, kind="stable")
    values, below = values[order], np.cumsum(weight[order]) / weight.sum()
    low, high = (values[min(np.searchsorted(below, 0.5, side), len(values) - 1)] for side in ("left", "right"))
    return float(low + high) / 2
