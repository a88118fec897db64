"""What smECE a calibrated model would show at this M, this n and these class distributions, by simulation.

`exchange_null` is exact at any M and what the records report; `simulated_null` draws from the estimated class
distributions instead, and serves where several classes may be correct.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from semcal.arrays import FloatArray, IntArray, in_unit_interval
from semcal.calibration.inference.bootstrap import groups
from semcal.calibration.measures.kernel import Convention
from semcal.calibration.measures.smece import smece_batch, smooth_curve
from semcal.calibration.nulls.exchange import pooled
from semcal.seeds import keyed_generator
from semcal.semantics.confidence import checked_counts, share_of

CHUNK_ELEMENTS = 2**22  # simulated counts held at once, 32 MB


@dataclass(frozen=True)
class Null:
    """smECE of simulated calibrated models.

    Attributes:
        mean: the floor to subtract from an observed smECE.
        quantile95: an observed smECE above it is miscalibrated at the 5 % level.
        values: `[draws]` the simulated values.
    """

    mean: float
    quantile95: float
    values: FloatArray

    def p_value(self, observed: float) -> float:
        """One-sided Monte Carlo p-value, (1 + #{null >= observed}) / (1 + draws); never 0, as it should not be."""
        at_least = int((self.values >= observed - 1e-12).sum())  # equal but for rounding is equal
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


def null_of(values: FloatArray) -> Null:
    """The summary of simulated values `[draws]`."""
    return Null(float(values.mean()), float(np.quantile(values, 0.95)), values)


@dataclass(frozen=True)
class Chances:
    """The two pairs of confidence and correctness that a question can show in a simulated data set.

    Attributes:
        chance: `[n]` that its mode is right.
        right: `[2, n]` confidence and correctness then.
        wrong: `[n]` confidence otherwise, when correctness is 0.
    """

    chance: FloatArray
    right: FloatArray
    wrong: FloatArray

    def simulate(self, uniform: FloatArray, chance: FloatArray | None = None) -> tuple[FloatArray, FloatArray]:
        """Confidence `[draws, n]`, or `[n]` where it is the same in all draws, and correctness `[draws, n]`.

        Args:
            uniform: `[draws, n]` variates.
            chance: `[n]`, where it is to be another than that of the null.
        """
        is_right = uniform < (self.chance if chance is None else chance)
        same = np.array_equal(self.right[0], self.wrong)
        confidence = self.wrong if same else np.where(is_right, self.right[0], self.wrong)
        return confidence, np.where(is_right, self.right[1], 0.0)


def exact_chances(confidence: ArrayLike) -> Chances:
    """Of questions whose B-confidence `[n]` is known exactly; ValueError where it is not one row of shares."""
    exact = in_unit_interval("confidence", confidence)
    if exact.ndim != 1:
        raise ValueError(f"confidence must be one row [n], got shape {exact.shape}")
    return Chances(exact, np.stack([exact, np.ones_like(exact)]), exact)


def exchange_chances(counts: ArrayLike, gold: ArrayLike) -> Chances:
    """Of questions whose gold answer changes places with one of the samples; arguments as in `exchange_null`.

    If the pool of M + 1 draws has a single most frequent class and the new gold answer is one of it, the mode of the
    other M is right, or, where losing one makes it a tie, right with the chance of a fair draw. In all other cases the
    new gold answer is of a class that is no mode.
    """
    pool, _ = pooled(counts, gold)
    m = int(pool[0].sum()) - 1
    first, second = -np.partition(-pool, 1, axis=1)[:, :2].T
    beside = (pool == second[:, None]).sum(axis=1)  # classes that the mode is level with if they differ by one
    correct = np.where(first - 1 > second, 1.0, 1.0 / (1 + beside))
    return Chances(
        np.where(first > second, first / (m + 1), 0.0),
        np.stack([(first - 1) / m, correct]),
        np.minimum(first, m) / m,
    )


def exchange_null(
    counts: ArrayLike, gold: ArrayLike, *, draws: int = 1000, seed: int, convention: Convention = "relplot"
) -> Null:
    """Distribution of smECE under "the gold answer is one more draw from the model's own class distribution", exact.

    Under that hypothesis the M samples of a question and its gold answer are M + 1 exchangeable draws. A simulated data
    set takes one of them at random as gold and the other M as samples (see `exchanged`). Nothing is estimated, so the
    p-value is uniform under the hypothesis at any n, M and K, and the mean is the floor that finite M and n put
    under smECE; `simulated_null`, which takes the frequencies for the truth, is too narrow at small M or flat classes.

    Args:
        counts: `[n, K]` samples per class, every row summing to M.
        gold: `[n]` index of the one gold class in its row, -1 where it was never sampled.
        draws: simulated data sets.
        seed: of the draws.
        convention: as in `smece`; use the same for the observed value.

    Raises:
        ValueError: counts are not counts of one M; a gold index outside its row; fewer than one draw.
    """
    if draws < 1:
        raise ValueError(f"draws must be positive, got draws={draws}")
    chances = exchange_chances(counts, gold)
    uniform = keyed_generator(seed, "null", "exchange").random((draws, len(chances.chance)))
    return null_of(smece_batch(*chances.simulate(uniform), convention=convention).values)


def null_of_counts(
    counts: ArrayLike, gold: NDArray[np.bool_], *, draws: int = 1000, seed: int, convention: Convention = "relplot"
) -> Null:
    """`exchange_null`; or `simulated_null` where a question has several correct classes, so that its gold answer is
    not one draw.

    Args:
        counts: `[n, K]` samples per class.
        gold: `[n, K]` bool, which classes are correct, those that were never sampled included.
        draws, seed, convention: as in `exchange_null`.
    """
    if (gold.sum(axis=1) > 1).any():
        return simulated_null(counts, draws=draws, seed=seed, convention=convention)
    column = np.where(gold.any(axis=1), gold.argmax(axis=1), -1)
    return exchange_null(counts, column, draws=draws, seed=seed, convention=convention)


def simulated_null(
    counts: ArrayLike,
    *,
    draws: int = 1000,
    seed: int,
    group: ArrayLike | None = None,
    chunk: int = CHUNK_ELEMENTS,
    convention: Convention = "relplot",
) -> Null:
    """Distribution of smECE under "the gold answer is one more draw from the model's own class distribution".

    For each question pi_hat = counts / M stands for the true class distribution. A draw takes M fresh samples and a
    gold class from pi_hat, scores them as `confidences` does, and measures smECE over the n questions. So the values
    are the floor that finite M and finite n put under a model that is calibrated by construction. Since pi_hat is
    itself a sample it is sharper than the true distribution, and where classes are flat the floor is slightly
    understated.

    The class of unparsed answers takes part as any other class, gold included: the hypothesis is that class
    probabilities are earned, and mass on an answer that can never be right is not. An observed model with many unparsed
    answers therefore stands out against this null.

    Args:
        counts: `[n, K]` samples per class, every row summing to M.
        draws: simulated data sets.
        seed: seeds the samples and the gold classes, each its own stream; the result does not depend on `chunk`.
        group: `[n]` labels of questions whose correctness may hang together, or None for independent questions. The
            questions of a group then share one uniform variate for their gold class (ranked by probability), the
            strongest dependence there can be, so that p-values stay valid but lose power. Do not give groups that only
            say "of the same kind".
        chunk: simulated counts held in memory at once.
        convention: as in `smece`; use the same for the observed value.

    Raises:
        ValueError: counts are not counts of one M; fewer than one draw; labels that do not match.
    """
    confidence, correct = _simulate(counts, draws, seed, group, chunk)
    return null_of(smece_batch(confidence, correct, convention=convention).values)


def exact_null(confidence: ArrayLike, *, draws: int = 1000, seed: int, convention: Convention = "relplot") -> Null:
    """The null where confidence is known exactly: only whether the top class is gold is left to chance.

    A draw makes each question correct with probability `confidence`, independently, and measures smECE.

    Args:
        confidence: `[n]` B-confidence in [0, 1].
        draws, seed, convention: as in `simulated_null`.

    Raises:
        ValueError: confidences are empty, NaN, outside [0, 1] or not one row; fewer than one draw.
    """
    chances = exact_chances(confidence)
    if draws < 1:
        raise ValueError(f"draws must be positive, got draws={draws}")
    uniform = keyed_generator(seed, "null", "gold").random((draws, len(chances.chance)))
    return null_of(smece_batch(*chances.simulate(uniform), convention=convention).values)


def null_band(
    counts: ArrayLike,
    *,
    bandwidth: float,
    draws: int = 200,
    level: float = 0.95,
    seed: int,
    grid: ArrayLike | None = None,
) -> Band:
    """Where the reliability curve of a calibrated model with these counts would lie: the null as a band for diagrams.

    It leans below the diagonal at small M, for the largest of M shares overstates the largest probability.

    Args:
        counts: `[n, K]` samples per class.
        bandwidth: that of the curve it is drawn behind.
        draws: simulated data sets.
        level: share of the simulated curves inside the band at each point.
        seed: as in `simulated_null`.
        grid: `[G]` as in `smooth_curve`.
    """
    confidence, correct = _simulate(counts, draws, seed, None, CHUNK_ELEMENTS)
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
    counts: ArrayLike, draws: int, seed: int, group: ArrayLike | None, chunk: int
) -> tuple[FloatArray, FloatArray]:
    """Plug-in confidence and correctness of calibrated models, each `[draws, n]`."""
    counts, m = checked_counts(counts)
    if draws < 1 or chunk < 1:
        raise ValueError(f"draws and chunk must be positive, got draws={draws}, chunk={chunk}")
    n = len(counts)
    clusters = groups(group, n)
    uniform = keyed_generator(seed, "null", "gold").random((draws, clusters.count))
    sampler = keyed_generator(seed, "null", "samples")
    confidence, correct = np.empty((draws, n)), np.empty((draws, n))
    # Padding is dropped, and questions are taken together by their number of classes (1, 2, 3-4, 5-8, ...): most have
    # few. Largest first lets numpy's multinomial, a chain of binomials, stop as soon as all M samples are placed.
    ranked = -np.sort(-counts, axis=1)
    width = 2 ** np.ceil(np.log2((ranked > 0).sum(axis=1))).astype(np.int64)
    for classes in np.unique(width):
        rows = np.flatnonzero(width == classes)
        pi_hat = ranked[rows, :classes] / m
        step = max(1, chunk // pi_hat.size)
        for start in range(0, draws, step):
            block = np.ix_(np.arange(start, min(start + step, draws)), rows)
            fresh = sampler.multinomial(m, pi_hat, size=(len(block[0]), len(rows)))  # [step, rows, classes]
            top = fresh.max(axis=-1, keepdims=True)
            gold = _inverse_cdf(pi_hat, uniform[np.ix_(block[0][:, 0], clusters.index[rows])])
            confidence[block] = top[..., 0] / m
            correct[block] = share_of(fresh == top, gold)
    return confidence, correct


def _inverse_cdf(probability: FloatArray, uniform: FloatArray) -> IntArray:
    """Classes `[draws, n]` with the given probabilities `[n, K]` at uniform variates `[draws, n]`."""
    gold = np.zeros(uniform.shape, dtype=np.int64)
    for edge in np.cumsum(probability, axis=1).T[:-1]:
        gold += uniform >= edge
    return gold
