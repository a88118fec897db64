"""Runs on the same questions: is their difference in a measure more than chance, and what could have been found?

Knows a confidence and a correctness per question and run; knows no counts, so the caller ensures equal n and M.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm, t

from semcal.arrays import FloatArray, checked_pairs
from semcal.calibration.inference.bootstrap import BATCH_ELEMENTS, Groups, bootstrap_interval, groups
from semcal.calibration.measures.scores import auroc, brier, signed_gap, weighted_mean
from semcal.calibration.measures.smece import smece_batch
from semcal.calibration.resampling import Resampling
from semcal.seeds import keyed_generator

ROUNDING = 1e-12  # swapped data give sums in another order; a tie with the observed difference is still a tie
BLOCKS = 200  # the standard error of the standard error is 5 % by then

FourArrays = tuple[FloatArray, FloatArray, FloatArray, FloatArray]
"""Confidence and correctness of the first run, then of the second; each `[n]`."""

Statistic = Callable[..., FloatArray]
"""`statistic(confidence [..., n], correct [..., n], weight=[..., n] or None)` returns `[...]`."""


def _smece(confidence: FloatArray, correct: FloatArray, *, weight: FloatArray | None = None) -> FloatArray:
    return smece_batch(confidence, correct, weight=weight).values


def _confidence(confidence: FloatArray, _: FloatArray, *, weight: FloatArray | None = None) -> FloatArray:
    return weighted_mean(confidence, weight=weight)


def _accuracy(_: FloatArray, correct: FloatArray, *, weight: FloatArray | None = None) -> FloatArray:
    return weighted_mean(correct, weight=weight)


STATISTICS: dict[str, Statistic] = {
    "smece": _smece,
    "signed_gap": signed_gap,
    "confidence": _confidence,
    "accuracy": _accuracy,
    "brier": brier,
    "auroc": auroc,
}


@dataclass(frozen=True)
class Difference:
    """A statistic of two runs on the same questions, and its difference b - a.

    Attributes:
        a: the statistic of the first run.
        b: of the second.
        low, high: interval of the difference. It covers the difference that the runs would show on all
            questions (groups of them) of the kind of these, at this n and M, the floors of both smECE included; it
            does not cover other exemplars or training seeds. NaN where a single group leaves nothing to resample.
        standard_error: of the difference, by jackknife; NaN likewise.
        blocks: number of parts of the questions that the jackknife left out, one at a time.
        p_exchange: two-sided, of "the two runs are exchangeable", by swapping; NaN where not tested.
    """

    a: float
    b: float
    low: float
    high: float
    standard_error: float
    blocks: int
    p_exchange: float

    @property
    def estimate(self) -> float:
        """b - a."""
        return self.b - self.a

    @property
    def p_value(self) -> float:
        """Two-sided, of "the statistic is the same in both runs, whatever else differs"; see `paired_difference`."""
        in_errors = abs(self.estimate) / max(self.standard_error, ROUNDING)
        return float(2 * t.sf(in_errors, self.blocks - 1))

    def minus(self, floor_a: float, floor_b: float) -> Difference:
        """The same comparison after subtracting each run's floor, e.g. the mean of its null.

        Two calibrated runs whose class distributions differ in flatness differ in smECE, but not in their excesses.
        Floors are taken as known. Swapping would move them too, so `p_exchange` becomes NaN.
        """
        shift = floor_b - floor_a
        return replace(
            self,
            a=self.a - floor_a,
            b=self.b - floor_b,
            low=self.low - shift,
            high=self.high - shift,
            p_exchange=float("nan"),
        )


def paired_difference(
    statistic: Statistic,
    a: tuple[ArrayLike, ArrayLike],
    b: tuple[ArrayLike, ArrayLike],
    *,
    group: ArrayLike | None = None,
    resampling: Resampling = Resampling(),
) -> Difference:
    """The difference b - a of a statistic of two runs that answered the same questions.

    Interval: the same resampled groups for both runs, so that what is hard for both cancels; centred (see
    `bootstrap_interval`), which changes nothing for means and removes the second helping of noise for smECE.

    Two p-values, because "no difference" can mean two hypotheses:

    `p_exchange` swaps the (confidence, correct) of whole groups between the runs at random; it is exact for "the runs
    are exchangeable", that is, alike in every respect. For means over questions (gap, confidence, accuracy, Brier) this
    is a sign-flip test, which with many groups also holds for equal means in runs that differ otherwise. Not so for
    smECE: a swapped run is a mixture of both, and where one run is as overconfident as the other is underconfident, the
    mixture is calibrated and equal smECE is called different half the time (simulated). A small `p_exchange` for smECE
    or AUROC says that the runs differ, not that they differ in this statistic.

    `p_value` is about the statistic: the difference in units of its standard error, read off the t distribution with
    (blocks - 1) degrees of freedom. Unlike a share of resamples it can be small enough to survive `holm`. The standard
    error is that of the grouped jackknife: each group, or each of 200 random blocks of groups, is left out in turn. It
    is too large rather than too small for any statistic (Efron & Stein 1981), while resamples of smECE, which have the
    noise of the data twice, cancel more over- against underconfidence than data do and were seen to vary up to a tenth
    too little. Where both runs are calibrated smECE has a kink, and the test finds too little (about 1 % at the 5 %
    level, simulated).

    Args:
        statistic: see `Statistic`; `STATISTICS` has those of this package by name.
        a: (confidence `[n]`, correct `[n]`) of the first run; see `Confidences`.
        b: of the second run, the same questions in the same order.
        group: `[n]` labels of dependent questions; None for independent ones.
        resampling: `bootstrap` is the number of resamples and of swaps; resamples are the same for every statistic.

    Raises:
        ValueError: arrays of different lengths or not `[n]`, values outside [0, 1]; see `bootstrap_interval`.
    """
    first, second = checked_pairs(*a), checked_pairs(*b)
    shapes = [first.confidence.shape, second.confidence.shape]
    if first.confidence.ndim != 1 or len(set(shapes)) != 1:
        raise ValueError(f"a pair needs the same questions [n] in both runs, got shapes {shapes}")
    arrays = (first.confidence, first.correct, second.confidence, second.correct)
    return difference_of(statistic, arrays, group=group, resampling=resampling)


def difference_of(
    statistic: Statistic,
    arrays: FourArrays,
    *,
    group: ArrayLike | None = None,
    resampling: Resampling = Resampling(),
) -> Difference:
    """`paired_difference` for any two numbers per question, such as losses, in place of confidence and correctness.

    Args:
        statistic: see `Statistic`.
        arrays: two `[n]` of the first run, then two of the second.

    Raises:
        ValueError: see `bootstrap_interval`.
    """

    def difference(
        first_a: FloatArray, second_a: FloatArray, first_b: FloatArray, second_b: FloatArray, *, weight: FloatArray
    ) -> FloatArray:
        return statistic(first_b, second_b, weight=weight) - statistic(first_a, second_a, weight=weight)

    interval = bootstrap_interval(difference, arrays, resampling=resampling, group=group, centred=True)
    n = len(arrays[0])
    clusters = groups(group, n)
    kept = leave_out(clusters, resampling.seed)
    blocks = len(kept)
    spread = float(np.var(difference(*arrays, weight=kept))) if blocks > 1 else np.nan
    one = np.ones((1, n))
    return Difference(
        a=float(statistic(*arrays[:2], weight=one)[0]),
        b=float(statistic(*arrays[2:], weight=one)[0]),
        low=interval.low,
        high=interval.high,
        standard_error=float(np.sqrt((blocks - 1) * spread)),
        blocks=blocks,
        p_exchange=_swap_p(statistic, arrays, interval.estimate, clusters, resampling),
    )


def leave_out(clusters: Groups, seed: int) -> FloatArray:
    """Weights `[blocks, n]` of a grouped jackknife: each row leaves out one block of whole groups."""
    blocks = min(clusters.count, BLOCKS)
    block = keyed_generator(seed, "jackknife").permutation(clusters.count) % blocks  # [group]
    return (np.arange(blocks)[:, None] != block[clusters.index]).astype(np.float64)


def _swap_p(
    statistic: Statistic, arrays: FourArrays, estimate: float, clusters: Groups, resampling: Resampling
) -> float:
    if not np.isfinite(estimate):
        return float("nan")
    sure_a, right_a, sure_b, right_b = arrays
    rng = keyed_generator(resampling.seed, "swap")
    step = max(1, BATCH_ELEMENTS // len(sure_a))
    farther = 0
    for start in range(0, resampling.bootstrap, step):
        coins = rng.random((min(step, resampling.bootstrap - start), clusters.count)) < 0.5
        swapped = coins[:, clusters.index]  # [step, n]
        after = statistic(np.where(swapped, sure_a, sure_b), np.where(swapped, right_a, right_b))
        before = statistic(np.where(swapped, sure_b, sure_a), np.where(swapped, right_b, right_a))
        nearer = np.abs(after - before) < abs(estimate) - ROUNDING  # an undefined difference is not nearer
        farther += int((~nearer).sum())
    return (1 + farther) / (1 + resampling.bootstrap)


def smallest_difference(standard_error: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """The true difference that a two-sided test at level alpha finds with the given power.

    (z_{1 - alpha/2} + z_{power}) * standard error of the paired difference, the usual normal approximation. The
    standard error is that of this n and M (finite M spreads what is observed), and so is the answer: a smaller
    difference may well exist undetected. The error is taken to be the same at that difference; for smECE near its floor
    it is larger away from the floor, and the power lower.

    Raises:
        ValueError: alpha or power outside (0, 1).
    """
    if not (0 < alpha < 1 and 0 < power < 1):
        raise ValueError(f"alpha and power must lie in (0, 1), got {alpha} and {power}")
    return float((norm.ppf(1 - alpha / 2) + norm.ppf(power)) * standard_error)


@dataclass(frozen=True)
class Leaves:
    """A statistic of one run: on all questions, and without each block of them.

    Attributes:
        stratum: name of the questions; runs of one stratum answered the same ones, different strata share none.
        estimate: on all questions.
        without: `[blocks]`, one block of groups left out at a time, the same blocks for all runs of a stratum.
    """

    stratum: str
    estimate: float
    without: FloatArray

    def minus(self, floor: float) -> Leaves:
        """The same after subtracting a floor that is taken as known, e.g. the mean of a null."""
        return Leaves(self.stratum, self.estimate - floor, self.without - floor)


@dataclass(frozen=True)
class Contrast:
    """A weighted sum of a statistic over runs.

    Attributes:
        estimate: the sum.
        standard_error: by grouped jackknife in each stratum; squares add up over strata. NaN where a stratum is a
            single group.
        freedom: degrees of freedom (Welch 1947, Satterthwaite 1946).
    """

    estimate: float
    standard_error: float
    freedom: float

    def p_above(self, bound: float) -> float:
        """One-sided, of "the true sum is at most `bound`"; small means it is above. 1 where nothing varies."""
        return self._tail(self.estimate - bound)

    def p_below(self, bound: float) -> float:
        """One-sided, of "the true sum is at least `bound`"; small means it is below."""
        return self._tail(bound - self.estimate)

    def interval(self, level: float) -> tuple[float, float]:
        """The sum ± the quantile of t times the standard error."""
        reach = float(t.ppf((1 + level) / 2, self.freedom)) * self.standard_error if self.standard_error > 0 else np.nan
        return self.estimate - reach, self.estimate + reach

    def detectable(self, alpha: float) -> float:
        """The smallest true sum that a one-sided test at level alpha finds with power 0.8."""
        return smallest_difference(self.standard_error, alpha=2 * alpha)

    def _tail(self, distance: float) -> float:
        if self.standard_error == 0:  # no block of questions changes anything, which is not evidence of precision
            return 1.0
        return float(t.sf(distance / self.standard_error, self.freedom))


def leaves(
    statistic: Statistic,
    first: ArrayLike,
    second: ArrayLike,
    *,
    stratum: str,
    group: ArrayLike | None,
    seed: int,
) -> Leaves:
    """A statistic of one run on all questions and without each block.

    Args:
        statistic: as in `paired_difference`.
        first, second: `[n]` two numbers per question, confidence and correctness for most statistics.
        stratum: name of the questions.
        group: `[n]` labels of dependent questions.
        seed: of the blocks; runs of a stratum need the same seed, questions and labels, in one order.
    """
    a, b = np.asarray(first, dtype=np.float64), np.asarray(second, dtype=np.float64)
    kept = leave_out(groups(group, len(a)), seed)
    whole = statistic(a, b, weight=np.ones((1, len(a))))
    return Leaves(stratum, float(whole[0]), statistic(a, b, weight=kept) if len(kept) > 1 else np.full(1, np.nan))


def plain_mean(values: FloatArray, _: FloatArray, *, weight: FloatArray | None = None) -> FloatArray:
    """The statistic for figures that are means over questions, such as losses; the second number is ignored."""
    return values.mean(axis=-1) if weight is None else (values * weight).sum(axis=-1) / weight.sum(axis=-1)


def contrast(terms: Sequence[tuple[float, Leaves]]) -> Contrast:
    """The weighted sum of the statistics of runs; its error comes from leaving out the same questions of all runs at
    once.

    As in `paired_difference`, what is hard for all runs cancels, and the jackknife errs on the large side (Efron &
    Stein 1981).

    Args:
        terms: (weight, run).

    Raises:
        ValueError: no terms; runs of one stratum with different numbers of blocks.
    """
    if not terms:
        raise ValueError("a contrast needs at least one run")
    sums: dict[str, FloatArray] = {}
    for weight, run in terms:
        known = sums.setdefault(run.stratum, np.zeros(len(run.without)))
        if len(known) != len(run.without):
            raise ValueError(
                f"runs of {run.stratum!r} were cut into {len(known)} and {len(run.without)} blocks; give them the same "
                "questions and groups"
            )
        sums[run.stratum] = known + weight * run.without
    variances = np.array([(len(without) - 1) * np.var(without) for without in sums.values()])
    squares = np.array([v**2 / max(len(without) - 1, 1) for v, without in zip(variances, sums.values(), strict=True)])
    total = float(variances.sum())
    freedom = total**2 / float(squares.sum()) if total > 0 else 1.0
    estimate = float(sum(weight * run.estimate for weight, run in terms))
    return Contrast(estimate, float(np.sqrt(total)), freedom)


def holm(p_values: ArrayLike) -> FloatArray:
    """Holm's adjusted p-values (Holm 1979): reject those at most alpha, and the chance of any false rejection is alpha.

    Sorted upwards, the i-th of k is multiplied by k - i + 1, made at least as large as those before it and at most 1.

    Args:
        p_values: `[k]`; NaN marks a test that was not made: it is not counted and stays NaN.

    Raises:
        ValueError: a p-value outside [0, 1].
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or (p < 0).any() or (p > 1).any():
        raise ValueError(f"holm expects one row of p-values in [0, 1], got {p}")
    order = np.argsort(p)[: int(np.isfinite(p).sum())]  # NaN are sorted to the end
    adjusted = np.full(len(p), np.nan)
    steps = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * steps), 1.0)
    return adjusted
