"""Calibration over a closed set of classes that all questions share: class by class, and of the whole distribution.

Knows predictions, gold classes, and where gold classes fall under the null, sampled or exact; knows no top class.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.spatial.distance import cdist, pdist

from semcal.arrays import FloatArray, IntArray
from semcal.calibration.inference.bootstrap import Groups
from semcal.calibration.inference.paired import holm
from semcal.calibration.measures.smece import smece_batch
from semcal.calibration.nulls.exchange import pooled, redrawn_gold, shared_uniforms
from semcal.calibration.nulls.null import Null
from semcal.calibration.nulls.twins import Chances
from semcal.seeds import keyed_generator
from semcal.semantics.confidence import checked_index, checked_masses


@dataclass(frozen=True)
class ClosedSet:
    """Predictions and gold of n questions over K shared classes; column K is for a gold class outside them.

    Attributes:
        pool: `[n, K + 1]` the chance of each class of being the gold one, if the model is calibrated: exact masses,
            or, given M samples, their pool with the gold answer over M + 1 (see `nulls/exchange.py`).
        gold: `[n]` column of the gold class.
        m: samples per question; None where masses are exact.
        groups: which questions depend on one another; None: none do.
        shared: in [0, 1], how much: the chance that the questions of a group draw their gold answers as one.
    """

    pool: FloatArray
    gold: IntArray
    m: int | None
    groups: Groups | None = None
    shared: float = 0.0

    @classmethod
    def of_counts(cls, counts: ArrayLike, gold: ArrayLike) -> ClosedSet:
        """From samples: counts `[n, K]`, every row summing to M, and gold `[n]`, a column or -1 for a class outside the
        K.

        Raises:
            ValueError: counts are not counts of one M; a gold index outside its row.
        """
        pool, column = pooled(counts, gold)
        draws = int(pool[0].sum())
        return cls(pool / draws, column, draws - 1)

    @classmethod
    def of_masses(cls, masses: ArrayLike, gold: ArrayLike) -> ClosedSet:
        """From exact masses `[n, K]`, rows summing to at most 1 (what is missing lies outside), and gold as in
        `of_counts`.

        Raises:
            ValueError: a mass below 0, a row above 1, a gold index outside its row.
        """
        array = checked_masses(masses)
        column = checked_index("gold", gold, array)
        outside = np.maximum(0.0, 1 - array.sum(axis=1, keepdims=True))
        return cls(np.hstack([array, outside]), np.where(column < 0, array.shape[1], column), None)

    @property
    def scale(self) -> float:
        """(M + 1) / M, or 1 of exact masses: onehot(gold) - probability = scale * (onehot(gold) - pool).

        So the residual of a question has mean 0 given its pool, at any M: only the choice of the gold answer from the
        pool is random.
        """
        return 1.0 if self.m is None else (self.m + 1) / self.m

    def probability(self, column: int, hit: FloatArray) -> FloatArray:
        """Predicted probability of a class `[..., n]`, given whether it is gold `[..., n]` (1 or 0) in each data set.

        Under the exchange, a class that takes the gold answer has one sample fewer.
        """
        return np.clip(self.scale * self.pool[:, column] - (self.scale - 1) * hit, 0.0, 1.0)  # up to rounding

    def as_dependent_as(self, chances: Chances) -> ClosedSet:
        """The same, with gold answers as dependent within groups as the tops of the questions are (`Chances.grouped`).

        Groups whose questions share their gold answer draw it from the pools in one order of classes, so that equal
        pools give equal gold answers.
        """
        return replace(self, groups=chances.groups, shared=chances.shared)

    def redrawn(self, null_draws: int, *, seed: int) -> IntArray:
        """Gold columns `[null_draws, n]` of data sets in which the model is calibrated, given the pools.

        Raises:
            ValueError: fewer than one draw.
        """
        rng = keyed_generator(seed, "closed set", "gold")
        uniform = shared_uniforms((null_draws, len(self.pool)), self.groups, self.shared, rng)
        if self.m is not None:
            return redrawn_gold(np.rint(self.pool * (self.m + 1)).astype(np.int64), uniform)
        edges = np.cumsum(self.pool[:, :-1], axis=1)
        return np.stack([np.searchsorted(e, u, side="right") for e, u in zip(edges, uniform.T, strict=True)], axis=1)


LEAST_EXPECTED = 5.0  # gold answers that a class is expected to have; Cochran's rule for cells of a table


@dataclass(frozen=True)
class ClassCalibration:
    """How one class, or the rare ones together, is predicted.

    Attributes:
        columns: the classes in it: one, or all rare ones; K means gold answers outside the K classes.
        probability: mean over questions of the probability given to it.
        frequency: share of questions whose gold answer it is.
        gap: probability - frequency, 0 on average for a calibrated model at any M.
        smece: SmoothECE ("exact") of the pairs (probability, whether it is gold).
        null_mean: its mean for a calibrated model at this n and M.
        excess: smece - null_mean.
        p_value: one-sided, of smece against that null.
        p_holm: adjusted over all classes shown (Holm 1979).
    """

    columns: tuple[int, ...]
    probability: float
    frequency: float
    gap: float
    smece: float
    null_mean: float
    excess: float
    p_value: float
    p_holm: float


@dataclass(frozen=True)
class Classwise:
    """Class-wise calibration and its average over classes.

    Attributes:
        classes: those with enough mass, in order, and the rest as one.
        smece: mean of smece over `classes`, each counting once (the class-wise ECE of Kull et al. 2019,
            arXiv 1910.12656, with smECE for ECE).
        null_mean, excess, p_value: of that mean, as in `ClassCalibration`.
    """

    classes: tuple[ClassCalibration, ...]
    smece: float
    null_mean: float
    excess: float
    p_value: float


def classwise(closed: ClosedSet, *, null_draws: int = 1000, seed: int) -> Classwise:
    """Whether pi_x(k) = c says that k is gold with chance c, for each class k.

    Classes that a calibrated model would have as gold fewer than LEAST_EXPECTED times are pooled with one another and
    with gold answers outside the K classes: alone, their value is nearly all floor, and they would dominate the
    average. Which classes these are depends on the pools alone, so p-values stay exact. smECE follows its definition
    rather than relplot's convention, which gives a probability of exactly 0, the usual one of a class, half weight.

    Args:
        closed: predictions and gold.
        null_draws: data sets of the null, whose gold answers `ClosedSet.redrawn` draws. No class can reach a p_holm of
            0.05 with fewer than 20 draws per class, and time grows with draws times classes.
        seed: of the draws.

    Raises:
        ValueError: fewer than one draw.
    """
    drawn = np.vstack([closed.gold, closed.redrawn(null_draws, seed=seed)])  # [1 + null_draws, n], the observed first
    found, values = [], []
    for columns in _members(closed.pool):
        hit = np.isin(drawn, columns).astype(np.float64)
        probability = sum(closed.probability(k, (drawn == k).astype(np.float64)) for k in columns)
        probability = np.minimum(probability, 1.0)
        error = smece_batch(probability, hit, convention="exact").values  # [1 + null_draws]
        values.append(error)
        found.append((columns, float(np.mean(probability[0])), float(hit[0].mean())))
    alone = [_against(error) for error in values]
    adjusted = holm(np.array([p for *_, p in alone]))
    classes = tuple(
        ClassCalibration(columns, sure, right, sure - right, *figures, float(p))
        for (columns, sure, right), figures, p in zip(found, alone, adjusted, strict=True)
    )
    return Classwise(classes, *_against(np.mean(values, axis=0)))


def _members(pool: FloatArray) -> list[tuple[int, ...]]:
    """Each class with enough mass alone, and the rest together if they have any mass."""
    expected = pool.sum(axis=0)
    often = [k for k in range(pool.shape[1] - 1) if expected[k] >= LEAST_EXPECTED]
    rest = tuple(k for k in range(pool.shape[1]) if k not in often)
    return [*((k,) for k in often), *([rest] if expected[list(rest)].sum() > 1e-9 else [])]


def _against(values: FloatArray) -> tuple[float, float, float, float]:
    """(observed, mean of the null, excess, p-value) of values `[1 + null_draws]`, the observed one first."""
    observed, drawn = float(values[0]), values[1:]
    null = Null.of(drawn)
    return observed, null.mean, null.excess(observed), null.p_value(observed)


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
    e(y_i) - counts_i / M have mean exactly 0. For M -> infinity, and for exact masses, it is the estimator of the
    paper; for a miscalibrated model the two differ by terms of order 1 / M. Pairs within a group enter the sum as any
    other; the p-value allows for them (`ClosedSet.as_dependent_as`).

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
    return float(sum(near[np.ix_(rows, rows)].sum() for rows in alike))


def _bandwidth(pool: FloatArray) -> float:
    """The median heuristic, over at most MEDIAN_OF questions evenly spaced in their order."""
    some = np.linspace(0, len(pool) - 1, min(len(pool), MEDIAN_OF)).astype(np.int64)
    distances = pdist(pool[some])
    return float(np.median(distances)) or float(distances.mean()) or 1.0
