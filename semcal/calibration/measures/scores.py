"""Plain measures of (confidence, correctness) pairs: gap, Brier score, log loss, AUROC. Binned ones are in `binned.py`.

Every measure maps `[..., n]` to `[...]`, takes `weight` (multiplicities, for the bootstrap) and raises ValueError for
unequal lengths, n = 0, NaN and values outside [0, 1]. `correct` may be a fraction, which is then the probability that a
random tie-break is correct, and the measure is the expectation over it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import xlog1py, xlogy

from semcal.arrays import FloatArray, checked_pairs, checked_weight, in_unit_interval


def weighted_mean(values: ArrayLike, *, weight: ArrayLike | None = None) -> FloatArray:
    """Mean over questions of values in [0, 1], such as accuracy or mean confidence: `[..., n]` to `[...]`."""
    array = in_unit_interval("values", values)
    weights = checked_weight(weight, array.shape[-1])
    return (array * weights).sum(axis=-1) / weights.sum(axis=-1)


def signed_gap(confidence: ArrayLike, correct: ArrayLike, *, weight: ArrayLike | None = None) -> FloatArray:
    """Mean confidence minus mean accuracy, `[...]` in [-1, 1]: above 0 overconfident, below 0 underconfident."""
    pairs = checked_pairs(confidence, correct, weight)
    return ((pairs.confidence - pairs.correct) * pairs.weight).sum(axis=-1) / pairs.weight.sum(axis=-1)


def brier(confidence: ArrayLike, correct: ArrayLike, *, weight: ArrayLike | None = None) -> FloatArray:
    """Brier score, `[...]` in [0, 1]: mean of (confidence - outcome)^2, the outcome being 1 with chance `correct`."""
    pairs = checked_pairs(confidence, correct, weight)
    expected = pairs.correct * (pairs.confidence - 1) ** 2 + (1 - pairs.correct) * pairs.confidence**2
    return (expected * pairs.weight).sum(axis=-1) / pairs.weight.sum(axis=-1)


def log_loss(
    confidence: ArrayLike, correct: ArrayLike, *, m: int | None = None, weight: ArrayLike | None = None
) -> FloatArray:
    """Mean of -log of the probability given to what happened, in nats, `[...]`; chance gives log 2 = 0.693.

    Args:
        confidence: `[..., n]` in [0, 1].
        correct: `[..., n]` in [0, 1].
        m: where confidences are shares k/m of samples, they are taken as (k + 1/2)/(m + 1) (Krichevsky & Trofimov
            1981): what no sample said is not impossible. Without m a certain but wrong answer has an infinite loss.
        weight: `[..., n]` multiplicities of the questions.
    """
    pairs = checked_pairs(confidence, correct, weight)
    if m is not None and m < 1:
        raise ValueError(f"m must be positive, got {m}")
    p = pairs.confidence if m is None else (pairs.confidence * m + 0.5) / (m + 1)
    loss = -(xlogy(pairs.correct, p) + xlog1py(1 - pairs.correct, -p))
    drawn = np.where(pairs.weight > 0, loss, 0.0)  # a question that is not drawn adds no infinite loss
    return (drawn * pairs.weight).sum(axis=-1) / pairs.weight.sum(axis=-1)


def auroc(confidence: ArrayLike, correct: ArrayLike, *, weight: ArrayLike | None = None) -> FloatArray:
    """Chance that a correct question has a higher confidence than a wrong one, equal ones counting half: `[...]`.

    A fractional `correct` counts as that much of a positive and the rest of a negative. NaN where all are correct or
    all are wrong.
    """
    pairs = checked_pairs(confidence, correct, weight)
    leading, n = pairs.confidence.shape[:-1], pairs.confidence.shape[-1]
    confidence, correct, weights = (array.reshape(-1, n) for array in pairs)
    rows = len(confidence)
    order = np.argsort(confidence, axis=-1)
    ascending = np.take_along_axis(confidence, order, axis=-1)
    positive = np.take_along_axis(weights * correct, order, axis=-1)
    negative = np.take_along_axis(weights * (1 - correct), order, axis=-1)

    # Questions of equal confidence form one level; levels are numbered within each row.
    level = np.zeros((rows, n), dtype=np.int64)
    level[:, 1:] = np.cumsum(np.diff(ascending, axis=-1) > 0, axis=-1)
    slot = (level + np.arange(rows)[:, None] * n).ravel()
    positive = np.bincount(slot, positive.ravel(), minlength=rows * n).reshape(rows, n)
    negative = np.bincount(slot, negative.ravel(), minlength=rows * n).reshape(rows, n)
    below = np.cumsum(negative, axis=-1) - negative
    won = (positive * (below + negative / 2)).sum(axis=-1)
    possible = positive.sum(axis=-1) * negative.sum(axis=-1)
    return np.divide(won, possible, out=np.full(rows, np.nan), where=possible > 0).reshape(leading)


@dataclass(frozen=True)
class RiskCoverage:
    """Risk among the answered questions, the most confident first.

    Attributes:
        coverage: `[n]` share of questions answered, 1/n, 2/n, ..., 1.
        risk: `[..., n]` expected share of wrong answers among them; equal confidences are answered in random order.
    """

    coverage: FloatArray
    risk: FloatArray


def risk_coverage(confidence: ArrayLike, correct: ArrayLike) -> RiskCoverage:
    """The risk-coverage curve (El-Yaniv & Wiener 2010).

    Args:
        confidence: `[..., n]` in [0, 1].
        correct: `[..., n]` in [0, 1].

    Raises:
        ValueError: as `signed_gap`.
    """
    pairs = checked_pairs(confidence, correct)
    leading, n = pairs.confidence.shape[:-1], pairs.confidence.shape[-1]
    confidence, correct = pairs.confidence.reshape(-1, n), pairs.correct.reshape(-1, n)
    rows = [_expected_errors(c, r) for c, r in zip(confidence, correct, strict=True)]
    answered = np.arange(1, n + 1)
    return RiskCoverage(answered / n, np.cumsum(rows, axis=-1).reshape(*leading, n) / answered)


def _expected_errors(confidence: FloatArray, correct: FloatArray) -> FloatArray:
    """[n] expected error at each place of the ranking: the mean error of the level at that place."""
    levels, level, count = np.unique(-confidence, return_inverse=True, return_counts=True)
    errors = np.bincount(level, 1 - correct, minlength=len(levels)) / count
    return np.repeat(errors, count)


def aurc(confidence: ArrayLike, correct: ArrayLike) -> FloatArray:
    """Area under the risk-coverage curve, `[...]` in [0, 1]: its mean over coverages (Geifman & El-Yaniv 2017).

    Lower is better; an uninformative confidence has the error rate.
    """
    return risk_coverage(confidence, correct).risk.mean(axis=-1)
