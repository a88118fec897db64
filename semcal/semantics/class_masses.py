"""Class masses from sampled answers and their log-probabilities: what counting at finite M cannot tell.

Knows flat arrays of answers: question, class, count, log-probability; knows neither tokens nor texts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from semcal.arrays import FloatArray

EXCESS_MASS = 1.01  # log-probabilities in bf16 may sum to a little above 1, not by more


def class_masses(
    question: ArrayLike, label: ArrayLike, count: ArrayLike, logprob: ArrayLike, *, shape: tuple[int, int]
) -> FloatArray:
    """Estimated class distributions from the distinct answers that were sampled and their exact probabilities.

    The mass of the answers that were seen is known exactly, and so is what is left, U = 1 - sum of exp(logprob).
    Classes share U in proportion to the answers that were seen once: those represent what was not seen, as in the
    estimator of Good (1953) and Turing,

        pi(k) = sum over seen answers a of k of exp(logprob_a) + U N1(k) / N1,

    with N1(k) the number of answers of k that were drawn once. Where none was drawn once, U is shared in proportion to
    the seen mass. For answers of few wordings that is nearly exact; where no two samples agree it reduces to
    counting.

    Args:
        question: `[answer]` row of each distinct answer.
        label: `[answer]` column of its class.
        count: `[answer]` how often it was drawn.
        logprob: `[answer]` of the whole answer under the distribution sampled from, in nats.
        shape: (questions, classes).

    Returns:
        `[n, K]`; rows sum to 1.

    Raises:
        ValueError: arrays of different lengths; a log-probability that is NaN; a question without answers or whose
            answers have a total mass above 1 (then these are not log-probabilities of distinct answers).
    """
    question, label, count = (np.asarray(a, dtype=np.int64) for a in (question, label, count))
    logprob = np.asarray(logprob, dtype=np.float64)
    if not question.shape == label.shape == count.shape == logprob.shape or question.ndim != 1:
        shapes = ", ".join(str(a.shape) for a in (question, label, count, logprob))
        raise ValueError(f"question, label, count and logprob must have one length, got shapes {shapes}")
    if np.isnan(logprob).any():
        raise ValueError(f"logprob[{int(np.argmax(np.isnan(logprob)))}] is NaN; without log-probabilities, use counts")
    slot = question * shape[1] + label

    def by_class(values: FloatArray) -> FloatArray:
        return np.asarray(np.bincount(slot, values, shape[0] * shape[1]), dtype=np.float64).reshape(shape)

    seen, once = by_class(np.exp(logprob)), by_class((count == 1).astype(np.float64))
    total = seen.sum(axis=1, keepdims=True)  # [n, 1]
    if not ((total > 0) & (total <= EXCESS_MASS)).all():
        row = int(np.argmin(((total > 0) & (total <= EXCESS_MASS))[:, 0]))
        raise ValueError(
            f"the answers of question {row} have a total mass of {total[row, 0]:.4g}; expected a value in (0, 1]"
        )
    left, singles = np.maximum(1 - total, 0), once.sum(axis=1, keepdims=True)
    share = np.where(singles > 0, once / np.maximum(singles, 1), seen / total)
    masses = seen + left * share
    return masses / masses.sum(axis=1, keepdims=True)
