"""Calibration of every class of a closed set, not of the top one alone.

Knows predictions and gold of shared classes (`closed_set.py`); knows no top class and no text.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semcal.arrays import FloatArray
from semcal.calibration.inference.holm import holm
from semcal.calibration.measures.closed_set import ClosedSet
from semcal.calibration.measures.smece import smece_batch
from semcal.calibration.nulls.null import Null

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
