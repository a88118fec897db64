"""Calibration of every class of a closed set, not of the top one alone.

Knows predictions and gold of shared classes (`closed.py`); knows no top class and no text.
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
        columns: the classes in it; of the rare ones all, K being the gold answers outside the K classes.
        probability: mean over questions of the probability given to it.
        frequency: share of questions whose gold answer it is.
        gap: probability - frequency, 0 in the mean for a calibrated model at any M.
        smece: SmoothECE ("exact") of the pairs (probability, whether it is gold).
        null_mean: mean of it for a calibrated model at this n and M.
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
        classes: those with enough mass, in their order, and the rest as one.
        smece: mean of smece over `classes`, each counting once (the class-wise ECE of Kull et al. 2019,
            arXiv 1910.12656, with smECE for ECE).
        null_mean, excess, p_value: of that mean, as in `ClassCalibration`.
    """

    classes: tuple[ClassCalibration, ...]
    smece: float
    null_mean: float
    excess: float
    p_value: float


def classwise(closed: ClosedSet, *, draws: int = 1000, seed: int) -> Classwise:
    """Whether pi_x(k) = c says that k is gold with chance c, for each class k.

    Classes that would be gold fewer than LEAST_EXPECTED times among the questions if the model were calibrated are
    pooled with one another and with gold answers outside the K classes: alone they have a value that is nearly all
    floor, and the average would be theirs. Which they are depends on the pools alone, and p-values stay exact. smECE
    follows its definition and not relplot's convention, under which a probability of exactly 0, the usual one of a
    class, has half weight.

    Args:
        closed: predictions and gold.
        draws: data sets of the null: gold answers drawn again as `ClosedSet.redrawn` does. No class can reach a
            p_holm of 0.05 with fewer than 20 a class, and time goes with draws times classes.
        seed: of the draws.

    Raises:
        ValueError: fewer than one draw.
    """
    drawn = np.vstack([closed.gold, closed.redrawn(draws, seed=seed)])  # [1 + draws, n], the observed first
    found, values = [], []
    for columns in _members(closed.pool):
        hit = np.isin(drawn, columns).astype(np.float64)
        probability = sum(closed.probability(k, (drawn == k).astype(np.float64)) for k in columns)
        probability = np.minimum(probability, 1.0)
        error = smece_batch(probability, hit, convention="exact").values  # [1 + draws]
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
    """Each class with enough mass alone, and the rest together where it has any."""
    expected = pool.sum(axis=0)
    often = [k for k in range(pool.shape[1] - 1) if expected[k] >= LEAST_EXPECTED]
    rest = tuple(k for k in range(pool.shape[1]) if k not in often)
    return [*((k,) for k in often), *([rest] if expected[list(rest)].sum() > 1e-9 else [])]


def _against(values: FloatArray) -> tuple[float, float, float, float]:
    """(observed, mean of the null, excess, p-value) of values `[1 + draws]`, the observed one first."""
    observed, drawn = float(values[0]), values[1:]
    null = Null(float(drawn.mean()), float(np.quantile(drawn, 0.95)), drawn)
    return observed, null.mean, null.excess(observed), null.p_value(observed)
