"""The mean calibration error over the cells of a grid: is it smaller than delta, is it larger?

Knows correctness and calibrated twins of cells; does not know what cells are.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import t

from semcal.arrays import FloatArray
from semcal.calibration.inference.equivalence import error_from_expected, off_by
from semcal.calibration.inference.paired import Contrast, Leaves, contrast
from semcal.calibration.measures.smece import smece_batch
from semcal.calibration.nulls.twins import Chances
from semcal.seeds import keyed_generator


@dataclass(frozen=True)
class ErrorCell:
    """One cell.

    Attributes:
        stratum: name of the questions; cells of one stratum answered the same ones.
        correct: `[n]`.
        chances: of its calibrated twins.
    """

    stratum: str
    correct: FloatArray
    chances: Chances


def mean_equivalence(cells: Sequence[ErrorCell], *, delta: float, null_draws: int = 200, seed: int) -> float:
    """The p-value of "the mean calibration error over cells is delta or more"; small means it is smaller.

    Twins that are all overconfident by delta, or all underconfident, are simulated as in `equivalence`; the p-value is
    the larger of the two shares of mean errors that do not exceed the observed mean. Cells of a stratum share their
    uniform variates: they go right and wrong together as far as possible, so the mean varies most. A cell without room
    for an error of delta is as far off as it can be, which errs on the cautious side.

    Args:
        cells: at least one.
        delta: in (0, 1), chosen before looking.
        null_draws: simulated grids in either direction; the smallest p-value is 1 / (1 + null_draws).
        seed: of the draws.

    Raises:
        ValueError: no cells; delta outside (0, 1).
    """
    if not cells or not 0 < delta < 1:
        raise ValueError(f"expected cells and delta in (0, 1), got {len(cells)} cells and delta {delta}")
    observed = np.mean([error_from_expected(cell.chances, cell.correct) for cell in cells])
    p = []
    for shift in (-delta, delta):
        values = np.mean([_off_by(cell, shift, null_draws, seed) for cell in cells], axis=0)
        p.append((1 + int((values <= observed + 1e-12).sum())) / (1 + null_draws))
    return max(p)


def _off_by(cell: ErrorCell, shift: float, draws: int, seed: int) -> FloatArray:
    uniform = cell.chances.uniforms(draws, keyed_generator(seed, "mean error", cell.stratum))
    values = off_by(cell.chances, shift, uniform)
    if values is None:
        farthest = np.where(cell.chances.chance > 0, float(shift > 0), 0.0)
        _, correct = cell.chances.simulate(uniform, farthest)
        values = smece_batch(cell.chances.expected, correct).values
    return values


def by_questions_and_models(terms: Sequence[tuple[float, Leaves]], model_means: Sequence[float]) -> Contrast:
    """A mean over cells whose error covers other questions and other models.

    The variance of model means, divided by their number, is added to the variance by questions of `contrast`. What
    questions contribute to the spread of model means is counted twice, so the error is too large rather than too small.
    With one model there is nothing to add.

    Args:
        terms: as in `contrast`.
        model_means: [model] mean of the same figure over the cells of each model.
    """
    found, k = contrast(terms), len(model_means)
    if k < 2:
        return found
    between, within = float(np.var(model_means, ddof=1)) / k, found.standard_error**2
    total = between + within
    parts = within**2 / found.freedom + between**2 / (k - 1)
    return Contrast(found.estimate, float(np.sqrt(total)), total**2 / parts if parts > 0 else found.freedom)


def p_of_models(model_means: Sequence[float], bound: float) -> float:
    """One-sided t test over models, of "their mean is at least `bound`"; NaN with fewer than two models."""
    means = np.asarray(model_means, dtype=float)
    if len(means) < 2:
        return float("nan")
    error = float(means.std(ddof=1) / np.sqrt(len(means)))
    distance = bound - float(means.mean())
    return float(t.sf(distance / error, len(means) - 1)) if error > 0 else float(distance <= 0)
