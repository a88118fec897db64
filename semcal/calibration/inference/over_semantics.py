"""Does calibration error grow with the KL gap over many Bs on the same samples?

Knows errors and gaps with replicates that one bootstrap of questions gives all Bs; nothing of runs, probes or Bs.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, rankdata

from semcal.arrays import FloatArray
from semcal.calibration.inference.errors_in_variables import line
from semcal.calibration.inference.paired import holm

LINES = 100  # replicates behind the interval of the slope, each a search
# Of intervals of rank correlations: where all that tells Bs apart is noise, a resample is ranked by that noise and by
# as much again, so that half of the variance is missing. Where Bs differ, it errs on the safe side.
WIDER = 2**0.5


@dataclass(frozen=True)
class Relation:
    """Excess calibration error and KL gap of some Bs. Intervals are of the questions asked, not of the choice of Bs.

    Attributes:
        bs: their number.
        rho, rho_low, rho_high: Spearman's rank correlation. Noise of either draws it towards 0.
        rho_given, rho_given_low, rho_given_high: the partial rank correlation given how finely each B divides: joining
            classes shrinks errors and gaps alike, whatever the mechanism.
        slope, slope_low, slope_high: excess per nat, errors in both (`errors_in_variables.line`).
        small: Bs whose gap is certainly small: its one-sided upper bound is below the limit.
        violations: those of them whose excess is certainly above delta, after Holm over them.
        worst: index of the one with the least p-value; −1 where none is small.
    """

    bs: int
    rho: float
    rho_low: float
    rho_high: float
    rho_given: float
    rho_given_low: float
    rho_given_high: float
    slope: float
    slope_low: float
    slope_high: float
    small: int
    violations: int
    worst: int


def relation(
    excess: FloatArray,
    gap: FloatArray,
    excess_replicates: FloatArray,
    gap_replicates: FloatArray,
    *,
    granularity: FloatArray,
    delta: float,
    small_gap: float,
    level: float,
) -> Relation:
    """How excess goes with gap over Bs, and whether a small gap implies a small excess.

    Args:
        excess, gap: [B], at least 3 of them.
        excess_replicates, gap_replicates: [B, resample]; column r of both is of the same resample of questions.
        granularity: [B] how finely each divides, in whatever unit; only its order counts.
        delta: the smallest calibration error that counts.
        small_gap: nats.
        level: of the intervals; 1 − level is that of the tests.

    Raises:
        ValueError: fewer than three Bs, or shapes that disagree.
    """
    if len(excess) < 3 or not excess_replicates.shape == gap_replicates.shape == (
        len(granularity),
        excess_replicates.shape[-1],
    ):
        raise ValueError(
            f"{len(excess)} Bs with replicates {excess_replicates.shape} and {gap_replicates.shape}; expected at least "
            "3, and [B, resample] of both"
        )
    ends = [(1 - level) / 2, (1 + level) / 2]
    errors = gap_replicates.std(1), excess_replicates.std(1)
    replicates = list(zip(gap_replicates.T, excess_replicates.T, strict=True))

    def interval(
        statistic: Callable[[FloatArray, FloatArray], float], draws: int, wider: float = 1.0
    ) -> tuple[float, float, float]:
        """Resampling adds noise to the noise that is there; centring drops the shift which that brings."""
        own, drawn = statistic(gap, excess), [statistic(x, y) for x, y in replicates[:draws]]
        low, high = own + wider * (np.quantile(drawn, ends) - np.mean(drawn))
        return own, float(low), float(high)

    def rank_interval(statistic: Callable[[FloatArray, FloatArray], float]) -> tuple[float, float, float]:
        own, low, high = interval(statistic, len(replicates), WIDER)
        return own, max(low, -1.0), min(high, 1.0)

    small = np.flatnonzero(gap + float(norm.ppf(level)) * errors[0] < small_gap)
    with np.errstate(divide="ignore"):
        p = holm(norm.sf((excess[small] - delta) / errors[1][small]))
    return Relation(
        len(excess),
        *rank_interval(_spearman),
        *rank_interval(lambda x, y: _partial(x, y, granularity)),
        *interval(lambda x, y: line(x, y, *errors), LINES),
        *(len(small), int((p <= 1 - level).sum()), int(small[p.argmin()]) if len(small) else -1),
    )


def _spearman(x: FloatArray, y: FloatArray) -> float:
    """NaN where one of them is constant."""
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return float("nan")
    return float(np.corrcoef(rankdata(x), rankdata(y))[0, 1])


def _partial(x: FloatArray, y: FloatArray, given: FloatArray) -> float:
    """Spearman's partial correlation of x and y; NaN where one is a function of `given`."""
    xy, xg, yg = _spearman(x, y), _spearman(x, given), _spearman(y, given)
    rest = (1 - xg**2) * (1 - yg**2)
    return (xy - xg * yg) / float(np.sqrt(rest)) if rest > 0 else float("nan")
