"""Two styles on the same questions, in quarters of the questions by KL gap: is the style that is harder to predict off
where its gap is large, and the other not?

The mechanism says so of single questions as well as of runs, and here neither model nor questions differ.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd

from experiments.compare.pairs import Scored
from experiments.report.summary_table import interval, number, p_text
from semcal.arrays import FloatArray
from semcal.calibration.inference.bootstrap import groups
from semcal.calibration.inference.paired import STATISTICS, Contrast, Difference, holm, paired_difference
from semcal.calibration.nulls.null import null_of

PARTS = 4
FEWEST = 20  # groups of questions in each


@dataclass(frozen=True)
class Quarter:
    """Some of the questions.

    Attributes:
        n: how many.
        gaps: mean KL gap of the first and of the second run, nats.
        excess: smECE minus the mean of its null, in both runs and their difference b - a.
        holm: p-value of that difference, adjusted over the quarters.
    """

    n: int
    gaps: tuple[float, float]
    excess: Difference
    holm: float


@dataclass(frozen=True)
class ByGap:
    """
    Attributes:
        rung: whose KL gap it is.
        sorted_by: "first" or "second", the run whose mean gap is larger.
        quarters: from the smallest gaps to the largest.
    """

    rung: str
    sorted_by: str
    quarters: tuple[Quarter, ...]

    @property
    def trend(self) -> Contrast:
        """The slope of the difference in excess, harder run minus the other, on the mean KL gap of the harder one, in
        smECE per nat: least squares over the quarters. Its error is that of their differences, by jackknife over
        groups, of which none is in two quarters."""
        gaps = np.array([q.gaps[self._harder] for q in self.quarters])
        away = gaps - gaps.mean()
        weights = away / (away @ away)
        variances = (weights * [q.excess.standard_error for q in self.quarters]) ** 2
        freedom = variances.sum() ** 2 / sum(variances**2 / [q.excess.blocks - 1 for q in self.quarters])
        return Contrast(float(weights @ self._raised), float(np.sqrt(variances.sum())), float(freedom))

    def told(self, names: tuple[str, str], level: float) -> str:
        """In a sentence, what came out of the prediction that the harder run is off where its gap is large.

        Args:
            names: of the first and of the second run.
            level: of the interval of the slope, and 1 - level of its test.
        """
        harder, other = names[self._harder], names[1 - self._harder]
        found, raised = self.trend, self._raised
        p = min(1.0, 2 * min(found.p_above(0.0), found.p_below(0.0)))
        if p > 1 - level:
            sign = "is as the theory expects" if found.estimate > 0 else "is against the theory"
            said = f"no trend is shown, and its sign {sign}"
        elif found.estimate > 0:
            said = "it rises with the gap, as the theory expects"
        else:
            said = "it falls as the gap rises, against the theory"
        slope = interval(found.estimate, *found.interval(level), "+")
        ends = f"{number(raised[0], '+')} in the first quarter to {number(raised[-1], '+')} in the last"
        return (
            f"the excess of {harder} minus that of {other} goes from {ends}, by {slope} per nat of the KL gap of "
            f"{harder} (p {p_text(p)}): {said}"
        )

    @property
    def _harder(self) -> int:
        return int(self.sorted_by == "second")

    @property
    def _raised(self) -> FloatArray:
        """[quarter] excess of the harder run minus that of the other."""
        return np.array([q.excess.estimate for q in self.quarters]) * (1 if self._harder else -1)


def by_gap(a: Scored, b: Scored, rung: str, nats: tuple[pd.Series, pd.Series]) -> ByGap | None:
    """Whole groups of questions are sorted by the mean KL gap of the run whose gap is larger. That gap and the
    confidence come from the same samples, but the null gives the gold answers anew, so that sorting calibrated models
    makes no error.

    Args:
        a, b: with the same M.
        rung: whose gaps.
        nats: KL gap of each run by question id.

    Returns:
        None where there are fewer than FEWEST groups for each part.
    """
    common = a.questions.index[a.questions.index.isin(b.questions.index.intersection(nats[0].index))]
    first, second = (gaps.loc[common].to_numpy(float) for gaps in nats)
    group = a.questions.loc[common, "group"].tolist()
    if groups(group, len(common)).count < FEWEST * PARTS:
        return None
    harder = int(second.mean() > first.mean())
    found = []
    for own in parts((first, second)[harder], group):
        ids = common[own]
        runs = [run.table.select(run.questions.index.get_indexer(ids)) for run in (a, b)]
        nulls = [
            null_of(table, null_draws=run.cell.calibration.null_draws, seed=run.cell.seed).mean
            for table, run in zip(runs, (a, b), strict=True)
        ]
        difference = paired_difference(
            STATISTICS["smece"],
            *((table.by_count.plug_in, table.by_count.correct) for table in runs),
            group=np.asarray(group)[own],
            resampling=a.cell.calibration.resampling(a.cell.seed),
        )
        found.append((len(ids), (float(first[own].mean()), float(second[own].mean())), difference.minus(*nulls)))
    adjusted = holm([difference.p_value for *_, difference in found])
    quarters = tuple(Quarter(n, gaps, d, float(p)) for (n, gaps, d), p in zip(found, adjusted, strict=True))
    return ByGap(rung, ("first", "second")[harder], quarters)


def parts(gaps: FloatArray, group: list[str]) -> list[np.ndarray]:
    """Places of the questions in each of PARTS parts of about as many groups, by the mean of `gaps` `[n]` over a group,
    the smallest first."""
    clusters = groups(group, len(gaps))
    means = np.bincount(clusters.index, gaps) / np.bincount(clusters.index)
    rank = np.empty(clusters.count, int)
    rank[np.argsort(means, kind="stable")] = np.arange(clusters.count)
    part = rank[clusters.index] * PARTS // clusters.count
    return [np.flatnonzero(part == number) for number in range(PARTS)]
