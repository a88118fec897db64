"""Sums and differences of a statistic over many runs, with errors that account for their common questions.

Knows a statistic of each run with and without each block of its questions; knows no counts and no models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import t

from semcal.arrays import FloatArray
from semcal.calibration.inference.bootstrap import groups
from semcal.calibration.inference.paired import Statistic, leave_out, smallest_difference


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


def plain_mean(values: FloatArray, _: FloatArray, *, weight: FloatArray) -> FloatArray:
    """The statistic for figures that are means over questions, such as losses; the second number is ignored."""
    return (values * weight).sum(axis=-1) / weight.sum(axis=-1)


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
