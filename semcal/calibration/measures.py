"""Plain measures of (confidence, correctness) pairs: gap, binned ECE, Brier score, AUROC.

Every measure maps `[..., n]` to `[...]`, takes `weight` (multiplicities, for the bootstrap) and raises ValueError for
unequal lengths, n = 0, NaN and values outside [0, 1]. `correct` may be a fraction, which is then the probability that a
random tie-break is correct, and the measure is the expectation over it.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from semcal.calibration.checks import FloatArray, checked_pairs, checked_weight, in_unit_interval


def weighted_mean(values: ArrayLike, *, weight: ArrayLike | None = None) -> FloatArray:
    """Mean over questions of values in [0, 1], such as accuracy or mean confidence: `[..., n]` to `[...]`."""
    array = in_unit_interval("values", values)
    weights = checked_weight(weight, array.shape[-1])
    return (array * weights).sum(axis=-1) / weights.sum(axis=-1)


def signed_gap(confidence: ArrayLike, correct: ArrayLike, *, weight: ArrayLike | None = None) -> FloatArray:
    """Mean confidence minus mean accuracy, `[...]` in [-1, 1]: above 0 overconfident, below 0 underconfident."""
    pairs = checked_pairs(confidence, correct, weight)
    return ((pairs.confidence - pairs.correct) * pairs.weight).sum(axis=-1) / pairs.weight.sum(axis=-1)


def ece_edges(bins: int = 15, m: int | None = None) -> FloatArray:
    """Inner edges of `bins` equal-width bins on [0, 1], `[bins - 1]` or fewer, kept off the grid of shares k/m.

    A confidence that is a share of m samples is a multiple of 1/m, and an edge that is one as well (or is one up to
    rounding) sends a whole atom of questions to one side by a convention on open and closed ends. Given m, each edge
    moves, by at most 1/(2m), to the nearest midpoint (i + 1/2)/m between two shares. (Shifting all edges by the same
    1/(2m) would not do: 4 bins at m = 50 would then have an edge at 13/50.) With more bins than shares, edges
    coincide and are merged.
    """
    if bins < 1 or (m is not None and m < 1):
        raise ValueError(f"bins and m must be positive, got bins={bins}, m={m}")
    edge = np.arange(1, bins)
    return edge / bins if m is None else np.unique((edge * m // bins + 0.5) / m)


def ece(
    confidence: ArrayLike,
    correct: ArrayLike,
    bins: int = 15,
    *,
    m: int | None = None,
    weight: ArrayLike | None = None,
) -> FloatArray:
    """Expected calibration error over equal-width bins, `[...]` in [0, 1].

    ECE = sum over bins b of (n_b / n) |mean confidence in b - mean accuracy in b| (Naeini et al. 2015; Guo et al. 2017,
    arXiv 1706.04599). It jumps as confidences cross edges; kept for comparison with older work, after `smece`.

    Args:
        confidence: `[..., n]` in [0, 1].
        correct: `[..., n]` in [0, 1].
        bins: number of bins.
        m: samples per question when confidences are shares of m samples; puts the edges off their grid (`ece_edges`).
        weight: `[..., n]` multiplicities of the questions.
    """
    pairs = checked_pairs(confidence, correct, weight)
    edges = ece_edges(bins, m)
    leading, n = pairs.confidence.shape[:-1], pairs.confidence.shape[-1]
    confidence, correct, weights = (array.reshape(-1, n) for array in pairs)
    width = len(edges) + 1
    # side="left" closes bins on the right, as Guo et al. do; it matters only without m.
    slot = np.searchsorted(edges, confidence, side="left") + np.arange(len(confidence))[:, None] * width
    residual = (weights * (confidence - correct)).ravel()
    per_bin = np.bincount(slot.ravel(), residual, minlength=len(confidence) * width).reshape(*leading, width)
    return np.abs(per_bin).sum(axis=-1) / pairs.weight.sum(axis=-1)


def brier(confidence: ArrayLike, correct: ArrayLike, *, weight: ArrayLike | None = None) -> FloatArray:
    """Brier score, `[...]` in [0, 1]: mean of (confidence - outcome)^2, the outcome being 1 with chance `correct`."""
    pairs = checked_pairs(confidence, correct, weight)
    expected = pairs.correct * (pairs.confidence - 1) ** 2 + (1 - pairs.correct) * pairs.confidence**2
    return (expected * pairs.weight).sum(axis=-1) / pairs.weight.sum(axis=-1)


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
