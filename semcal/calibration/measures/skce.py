"""Calibration of the full class distribution: the squared kernel calibration error, unbiased at any M.

Knows predictions and gold of shared classes (`closed_set.py`); knows no top class and no text.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from scipy.spatial.distance import cdist, pdist

from semcal.arrays import FloatArray
from semcal.calibration.measures.closed_set import ClosedSet
from semcal.calibration.nulls.null import Null

Kernel = Literal["laplacian", "gaussian"]
MEDIAN_OF = 1000  # questions whose distances the median is taken over


@dataclass(frozen=True)
class KernelCalibration:
    """The squared kernel calibration error of one run.

    Attributes:
        skce: the estimate; 0 on average for a calibrated model at any n, M and K, so it may be negative.
        null_q95: 95 % quantile for a calibrated model at this n and M.
        p_value: one-sided, of skce against that null.
        bandwidth: width of the kernel, a distance of class distributions.
    """

    skce: float
    null_q95: float
    p_value: float
    bandwidth: float


def skce(closed: ClosedSet, *, kernel: Kernel = "laplacian", null_draws: int = 1000, seed: int) -> KernelCalibration:
    """Unbiased estimate of the squared kernel calibration error and its p-value.

    SKCE = 2 / (n (n - 1)) * sum over i < j of k(p_i, p_j) <e(y_i) - p_i, e(y_j) - p_j>, the U-statistic of Widmann,
    Lindsten & Zachariah 2019 (arXiv 1910.11385, SKCE_uq) with the matrix kernel k I; e(y) is the one-hot vector of the
    gold class. It is 0 in the long run iff E[e(y) | p] = p, which is stronger than every class by itself.

    With counts / M for p it would be biased: given the counts, the gold answer is distributed as the counts shrunk
    towards the prior. The kernel therefore compares the pools of M + 1 draws; given these, the residuals
    e(y_i) - counts_i / M have mean exactly 0 and are independent. For M -> infinity, and for exact masses, it is the
    estimator of the paper; for a miscalibrated model the two differ by terms of order 1 / M.

    Args:
        closed: predictions and gold, n >= 2.
        kernel: k(p, q) = exp(-|p - q| / w) or exp(-|p - q|^2 / (2 w^2)), with the Euclidean distance and w the median
            distance of two questions (the mean one where the median is 0, 1 where all are equal).
        null_draws: data sets of the null, whose gold answers `ClosedSet.redrawn` draws.
        seed: of the draws.

    Time is O(n^2 K) for the kernel and O(n^2) per draw; memory is 16 n^2 bytes, 64 MB at n = 2,000.

    Raises:
        ValueError: fewer than two questions or one draw, an unknown kernel.
    """
    n = len(closed.pool)
    if n < 2:
        raise ValueError(f"the kernel calibration error needs at least two questions, got {n}")
    if kernel not in ("laplacian", "gaussian"):
        raise ValueError(f"kernel is {kernel!r}; expected 'laplacian' or 'gaussian'")
    width = _bandwidth(closed.pool)
    distance = cdist(closed.pool, closed.pool) / width
    near = np.exp(-distance if kernel == "laplacian" else -(distance**2) / 2)  # [n, n]
    np.fill_diagonal(near, 0.0)

    # <e(y_i) - p_i, e(y_j) - p_j> = 1[y_i = y_j] - p_i(y_j) - p_j(y_i) + <p_i, p_j>: only the first is of pairs.
    expected = near @ closed.pool  # [n, K + 1], the sum over i of k_ij p_i
    constant = (expected * closed.pool).sum()
    drawn = np.vstack([closed.gold, closed.redrawn(null_draws, seed=seed)])  # [1 + null_draws, n], the observed first
    linear = expected[np.arange(n), drawn].sum(axis=1)
    same = np.array([_within(near, gold) for gold in drawn])
    values = closed.scale**2 * (same - 2 * linear + constant) / (n * (n - 1))

    null = Null.of(values[1:])
    return KernelCalibration(float(values[0]), null.quantile95, null.p_value(float(values[0])), width)


def _within(near: FloatArray, gold: np.ndarray) -> float:
    """Sum of `near [n, n]` over pairs of questions with the same gold column."""
    order = np.argsort(gold, kind="stable")
    alike = np.split(order, np.flatnonzero(np.diff(gold[order])) + 1)
    return float(sum(near[np.ix_(its, its)].sum() for its in alike))


def _bandwidth(pool: FloatArray) -> float:
    """The median heuristic, over at most MEDIAN_OF questions evenly spaced in their order."""
    some = np.linspace(0, len(pool) - 1, min(len(pool), MEDIAN_OF)).astype(np.int64)
    distances = pdist(pool[some])
    return float(np.median(distances)) or float(distances.mean()) or 1.0
