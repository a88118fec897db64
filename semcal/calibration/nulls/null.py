"""What smECE a calibrated model would show at this M, this n and these class distributions, by simulation.

`null_of` picks the null of a class table: that of its calibrated twins (`twins.py`) wherever they are known, else
`simulated_null`, which draws from the estimated class distributions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from semcal.arrays import FloatArray, IntArray
from semcal.calibration.inference.bootstrap import groups
from semcal.calibration.measures.kernel import Convention
from semcal.calibration.measures.smece import smece_batch, smooth_curve
from semcal.calibration.nulls.twins import Chances, chances_of
from semcal.seeds import keyed_generator
from semcal.semantics.class_table import ClassTable
from semcal.semantics.confidence import checked_counts, share_of

CHUNK_ELEMENTS = 2**22  # simulated counts held at once, 32 MB


@dataclass(frozen=True)
class Null:
    """smECE of simulated calibrated models.

    Attributes:
        mean: the floor to subtract from an observed smECE.
        quantile95: an observed smECE above it is miscalibrated at the 5 % level.
        values: `[null_draws]` the simulated values.
    """

    mean: float
    quantile95: float
    values: FloatArray

    @classmethod
    def of(cls, values: FloatArray) -> Null:
        """The summary of simulated values `[null_draws]`."""
        return cls(float(values.mean()), float(np.quantile(values, 0.95)), values)

    def p_value(self, observed: float) -> float:
        """One-sided Monte Carlo p-value, (1 + #{null >= observed}) / (1 + draws); never 0."""
        at_least = int((self.values >= observed - 1e-12).sum())  # equal up to rounding is equal
        return (1 + at_least) / (1 + len(self.values))

    def excess(self, observed: float) -> float:
        """`observed` minus the mean of the null: what finite M and n do not explain."""
        return observed - self.mean


@dataclass(frozen=True)
class Band:
    """Pointwise range of a curve over confidence.

    Attributes:
        grid: `[G]` confidences.
        low: `[G]` lower end of the accuracy; NaN where no curve reaches.
        high: `[G]` upper end.
    """

    grid: FloatArray
    low: FloatArray
    high: FloatArray


def null_of_twins(chances: Chances, *, null_draws: int = 1000, seed: int, convention: Convention = "relplot") -> Null:
    """Distribution of smECE over the calibrated twins of some questions; arguments as in `null_of`."""
    uniform = chances.uniforms(null_draws, keyed_generator(seed, "null", "twins"))
    return Null.of(smece_batch(*chances.simulate(uniform), convention=convention).values)


def null_of(
    table: ClassTable,
    *,
    by_mass: bool = False,
    null_draws: int = 1000,
    seed: int,
    convention: Convention = "relplot",
) -> Null:
    """The null of `table.by_count`, or of `table.by_mass_left_out`: of its calibrated twins (`chances_of`), or
    `simulated_null` where a question has several correct classes.

    Questions of one group go right and wrong together as far as they are observed to (`Chances.grouped`); where they
    are simulated, as far as possible.

    Args:
        table: the questions.
        by_mass: which confidence.
        null_draws: simulated data sets.
        seed: of the draws.
        convention: as in `smece`; use the same for the observed value.
    """
    common = {"null_draws": null_draws, "seed": seed, "convention": convention}
    if (chances := chances_of(table, by_mass=by_mass)) is None:
        return simulated_null(table.sampled_counts, group=table.groups, **common)
    return null_of_twins(chances, **common)


def simulated_null(
    counts: ArrayLike,
    *,
    null_draws: int = 1000,
    seed: int,
    group: ArrayLike | None = None,
    chunk: int = CHUNK_ELEMENTS,
    convention: Convention = "relplot",
) -> Null:
    """Distribution of smECE under "the gold answer is one more draw from the model's own class distribution".

    For each question pi_hat = counts / M takes the place of the true class distribution. A draw takes M fresh samples
    and a gold class from pi_hat, scores them as `confidences` does, and measures smECE over the n questions. So the
    values are the floor that finite M and finite n put under a model that is calibrated by construction. Since pi_hat
    is itself a sample, it is sharper than the true distribution, and where classes are flat the floor is slightly
    understated.

    The class of unparsed answers takes part like any other class, gold included: the hypothesis is that class
    probabilities are earned, and mass on an answer that can never be right is not. An observed model with many unparsed
    answers therefore departs from this null.

    Args:
        counts: `[n, K]` samples per class, every row summing to M.
        null_draws: simulated data sets.
        seed: of the samples and the gold classes, one stream each; the result does not depend on `chunk`.
        group: `[n]` labels of questions whose correctness may be related, or None for independent questions. The
            questions of a group then share one uniform variate for their gold class (ranked by probability), the
            strongest dependence possible, so that p-values stay valid but lose power. Do not pass groups that only
            mean "of the same kind".
        chunk: simulated counts held in memory at once.
        convention: as in `smece`; use the same for the observed value.

    Raises:
        ValueError: counts are not counts of one M; fewer than one draw; labels that do not match.
    """
    confidence, correct = _simulate(counts, null_draws, seed, group, chunk)
    return Null.of(smece_batch(confidence, correct, convention=convention).values)


def null_band(
    counts: ArrayLike,
    *,
    bandwidth: float,
    null_draws: int = 200,
    level: float = 0.95,
    seed: int,
    grid: ArrayLike | None = None,
) -> Band:
    """Where the reliability curve of a calibrated model with these counts would lie: the null as a band for diagrams.

    It leans below the diagonal at small M, because the largest of M shares overstates the largest probability.

    Args:
        counts: `[n, K]` samples per class.
        bandwidth: of the curve that the band is drawn behind.
        null_draws: simulated data sets.
        level: share of the simulated curves inside the band at each point.
        seed: as in `simulated_null`.
        grid: `[G]` as in `smooth_curve`.
    """
    confidence, correct = _simulate(counts, null_draws, seed, None, CHUNK_ELEMENTS)
    curves = smooth_curve(confidence, correct, bandwidth, grid)
    return Band(curves.grid, *pointwise_range(curves.accuracy, level))


def pointwise_range(curves: FloatArray, level: float) -> FloatArray:
    """Quantiles `[2, G]` of curves `[R, G]` at each point; NaN where more than half of the curves are."""
    known = np.isfinite(curves).mean(axis=0) > 0.5
    ends = np.full((2, curves.shape[1]), np.nan)
    if known.any():
        ends[:, known] = np.nanquantile(curves[:, known], [(1 - level) / 2, (1 + level) / 2], axis=0)
    return ends


def _simulate(
    counts: ArrayLike, null_draws: int, seed: int, group: ArrayLike | None, chunk: int
) -> tuple[FloatArray, FloatArray]:
    """Plug-in confidence and correctness of calibrated models, each `[null_draws, n]`."""
    counts, m = checked_counts(counts)
    if null_draws < 1 or chunk < 1:
        raise ValueError(f"null_draws and chunk must be positive, got {null_draws} and {chunk}")
    n = len(counts)
    clusters = groups(group, n)
    uniform = keyed_generator(seed, "null", "gold").random((null_draws, clusters.count))
    sampler = keyed_generator(seed, "null", "samples")
    confidence, correct = np.empty((null_draws, n)), np.empty((null_draws, n))
    # Padding is dropped, and questions are taken together by their number of classes (1, 2, 3-4, 5-8, ...): most have
    # few. Largest first lets numpy's multinomial, a chain of binomials, stop as soon as all M samples are placed.
    ranked = -np.sort(-counts, axis=1)
    width = 2 ** np.ceil(np.log2((ranked > 0).sum(axis=1))).astype(np.int64)
    for classes in np.unique(width):
        rows = np.flatnonzero(width == classes)
        pi_hat = ranked[rows, :classes] / m
        step = max(1, chunk // pi_hat.size)
        for start in range(0, null_draws, step):
            block = np.ix_(np.arange(start, min(start + step, null_draws)), rows)
            fresh = sampler.multinomial(m, pi_hat, size=(len(block[0]), len(rows)))  # [step, rows, classes]
            top = fresh.max(axis=-1, keepdims=True)
            gold = _inverse_cdf(pi_hat, uniform[np.ix_(block[0][:, 0], clusters.index[rows])])
            confidence[block] = top[..., 0] / m
            correct[block] = share_of(fresh == top, gold)
    return confidence, correct


def _inverse_cdf(probability: FloatArray, uniform: FloatArray) -> IntArray:
    """Classes `[null_draws, n]` with the given probabilities `[n, K]` at uniform variates `[null_draws, n]`."""
    gold = np.zeros(uniform.shape, dtype=np.int64)
    for edge in np.cumsum(probability, axis=1).T[:-1]:
        gold += uniform >= edge
    return gold
