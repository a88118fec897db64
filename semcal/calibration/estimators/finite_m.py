"""What finite M does to confidence: thinned samples, split halves, the curve over M with its limits, all side by side.

Everything comes from random parts of the samples that were drawn; nothing is sampled again.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from semcal.arrays import FloatArray, IntArray
from semcal.calibration.inference.bootstrap import Interval, bootstrap_interval, groups, multiplicities
from semcal.calibration.measures.kernel import Convention
from semcal.calibration.measures.scores import signed_gap
from semcal.calibration.measures.smece import smece_batch
from semcal.calibration.nulls.null import Null, null_of, null_of_twins
from semcal.calibration.nulls.twins import exact_chances
from semcal.calibration.resampling import Resampling
from semcal.seeds import keyed_generator
from semcal.semantics.class_table import ClassTable
from semcal.semantics.confidence import Confidences, share_within


def thin(counts: IntArray, m: int, *, rng: np.random.Generator, repeats: int) -> IntArray:
    """Counts of m samples chosen from each question's without replacement: multivariate hypergeometric.

    Samples are exchangeable, so m of them chosen at random are distributed like m fresh draws from the model; repeats
    choose from the same samples, so their mean keeps the noise of these.

    Args:
        counts: `[n, K]` samples per class, whole and not negative; rows may have different totals.
        m: samples to keep, at least 1 and at most the smallest total.
        rng: source of the choice.
        repeats: independent choices.

    Returns:
        `[repeats, n, K]`, each row summing to m, no entry above `counts`.

    Raises:
        ValueError: m is below 1 or a question has fewer samples; no repeats.
    """
    later = counts.sum(axis=1)  # [n] samples of the classes still to come
    if repeats < 1 or not 1 <= m <= later.min():
        raise ValueError(f"cannot choose {m} of {later.min()} samples {repeats} times")
    chosen = np.zeros((repeats, *counts.shape), dtype=np.int64)
    # One class after another: how many of the samples still to choose fall in this class rather than in a later one.
    left = np.full((repeats, len(counts)), m)
    for k, here in enumerate(counts.T):
        later = later - here
        chosen[..., k] = rng.hypergeometric(here, later, left)
        left = left - chosen[..., k]
    return chosen


@dataclass(frozen=True)
class SplitHalf:
    """Mode and confidence taken on disjoint halves of the samples, averaged over random splits.

    Attributes:
        confidence: `[n]` share, in one half, of the class that is the mode of the other half.
        correct: `[n]` share of splits in which the half's mode is the gold class (ties as in `Confidences`).
    """

    confidence: FloatArray
    correct: FloatArray

    @property
    def gap(self) -> float:
        """Mean confidence minus mean accuracy over questions."""
        return float(self.confidence.mean() - self.correct.mean())


def split_half(table: ClassTable, *, rng: np.random.Generator, repeats: int = 20) -> SplitHalf:
    """Confidence without the bias of choosing the mode and measuring it on the same draws.

    The samples are split at random; the mode of one half (M // 2 samples) is the answer and its share in the other
    half the confidence, whose expectation given the first half is exactly pi(mode). Gap = confidence - correct is
    therefore 0 in expectation for a calibrated model at any M, where the plug-in gap is positive. It is about the
    answer chosen by M // 2 samples, which is right slightly less often than the answer chosen by M. Tied modes share
    equally in both numbers.

    Args:
        table: sampled answers, at least 2 per question.
        rng: source of the splits (multivariate hypergeometric).
        repeats: random splits per question; more lower the noise of the split, not that of the M samples.
    """
    counts, m = table.sampled_counts, table.m or 0
    if m < 2 or repeats < 1:
        raise ValueError(f"split_half needs at least 2 samples and 1 repeat, got m={m}, repeats={repeats}")
    half = thin(counts, m // 2, rng=rng, repeats=repeats)  # [repeats, n, K]
    first = half == half.max(axis=-1, keepdims=True)
    held_out = (counts - half) / (m - m // 2)
    confidence = (held_out * first).sum(axis=-1) / first.sum(axis=-1)
    correct = share_within(first, table.gold)
    return SplitHalf(confidence.mean(axis=0), correct.mean(axis=0))


SHARES = (0.2, 0.3, 0.45, 0.67, 1.0)  # of M, evenly spaced on a log scale
POWERS = (0, 1, 2)  # of 1/m, the fitted terms
STATISTICS = ("confidence", "accuracy", "signed_gap", "smece")


@dataclass(frozen=True)
class MCurve:
    """Figures of one run at smaller M, each `[S]` and a mean over random parts of the samples, and their limits.

    Attributes:
        m: `[S]` sample sizes; the last is M.
        confidence: mean plug-in B-confidence.
        accuracy: of the mode of m samples.
        signed_gap: confidence - accuracy.
        smece: SmoothECE.
        null_mean: of the null at this m.
        limits: extrapolations to M -> infinity with intervals, by name: confidence, accuracy, signed_gap, smece; empty
            where M is too small for them (below 5).
    """

    m: IntArray
    confidence: FloatArray
    accuracy: FloatArray
    signed_gap: FloatArray
    smece: FloatArray
    null_mean: FloatArray
    limits: dict[str, Interval]

    def rows(self) -> list[dict[str, Any]]:
        """One row per size as plain numbers, the limit last with m None."""
        names = (*STATISTICS, "null_mean")
        table: list[dict[str, Any]] = [
            {"m": int(m)} | {name: float(getattr(self, name)[i]) for name in names} for i, m in enumerate(self.m)
        ]
        if self.limits:
            last: dict[str, Any] = {"m": None}
            for name, limit in self.limits.items():
                last |= {name: limit.estimate, f"{name}_low": limit.low, f"{name}_high": limit.high}
            table.append(last)
        return table


def curve_of_rows(rows: Sequence[Mapping[str, Any]]) -> MCurve:
    """The curve that `MCurve.rows` gave; the intervals come without replicates."""
    sizes = [row for row in rows if row["m"] is not None]
    columns = {name: np.array([row[name] for row in sizes], dtype=np.float64) for name in (*STATISTICS, "null_mean")}
    limits = {
        name: Interval(row[name], row[f"{name}_low"], row[f"{name}_high"], np.empty(0))
        for row in rows
        if row["m"] is None
        for name in STATISTICS
    }
    return MCurve(np.array([row["m"] for row in sizes]), **columns, limits=limits)


def sizes_for(m: int) -> IntArray:
    """The sample sizes of the curve, at least 2 each."""
    return np.unique(np.maximum(2, np.round(np.array(SHARES) * m))).astype(np.int64)


def extrapolation_weights(m: Sequence[int] | IntArray) -> FloatArray:
    """`[S]` weights that take values at sizes `m` to the constant of their least-squares fit a + b/m + c/m^2."""
    design = np.asarray(m, dtype=np.float64)[:, None] ** -np.array(POWERS)
    return np.linalg.pinv(design)[0]


def m_curve(
    table: ClassTable,
    *,
    resampling: Resampling = Resampling(bootstrap=200, null_draws=100),
    repeats: int = 10,
    convention: Convention = "relplot",
) -> MCurve:
    """The M-curve by subsampling, extrapolated by Richardson's method.

    The mean overstatement of max pi by the largest of m shares is b/m + c/m^2 + ... wherever the gap between the two
    likeliest classes varies smoothly over questions (near-ties, where it is of order 1/sqrt(m), are then themselves of
    order 1/sqrt(m)); so a + b/m + c/m^2 is fitted to the curve and a reported. Classes that are tied exactly for many
    questions break the expansion, and the limit of the confidence is then too high.

    smECE has a floor of its own at every m. Noise and error add nearly in quadrature, so the excess of its square over
    the null's mean square is extrapolated, and the mean square at exact confidences (of calibrated twins of the plug-in
    ones) is added again. Intervals are cluster bootstraps over questions of whole curves, centred for smECE (see
    `bootstrap_interval`), so they include the noise of the questions and of their M samples.

    Args:
        table: sampled answers, at least 2 per question.
        resampling: of the intervals and of the null at each size; its seed also chooses the parts.
        repeats: random parts per size.
        convention: of smECE.

    Raises:
        ValueError: M below 2, or enumerated answers.
    """
    if (total := table.m) is None or total < 2:
        raise ValueError(f"an M-curve needs at least 2 samples per question, got {total}")
    counts, gold, seed = table.sampled_counts, table.gold, resampling.seed
    common: dict[str, Any] = {"null_draws": resampling.null_draws, "seed": seed, "convention": convention}
    sizes = sizes_for(total)
    rng = keyed_generator(seed, "m_curve")
    weight = multiplicities(
        groups(table.groups, len(table)), resampling.bootstrap, keyed_generator(seed, "m_curve", "bootstrap")
    )
    weight = np.concatenate([np.ones((1, len(table))), weight])  # the data themselves first

    means = np.empty((3, len(sizes), len(weight)))  # confidence, accuracy, smECE under each row of weights
    curve_smece, floor, square_excess = (np.empty(len(sizes)) for _ in range(3))
    for s, size in enumerate(sizes):
        parts = thin(counts, int(size), rng=rng, repeats=1 if size == total else repeats)  # [repeats, n, K]
        top = parts.max(axis=-1, keepdims=True)
        confidence, correct = top[..., 0] / size, share_within(parts == top, gold)  # [repeats, n]
        values = smece_batch(confidence, correct, convention=convention).values
        means[:2, s] = np.stack([confidence.mean(axis=0), correct.mean(axis=0)]) @ weight.T / weight.sum(axis=1)
        means[2, s] = smece_batch(confidence[0], correct[0], weight=weight, convention=convention).values
        null = null_of(replace(table, counts=parts[0], masses=None), **common)
        curve_smece[s], floor[s] = values.mean(), null.mean
        square_excess[s] = (values**2).mean() - (null.values**2).mean()
    confidence, accuracy = means[0, :, 0], means[1, :, 0]
    limits: dict[str, Interval] = {}
    if len(sizes) > len(POWERS):
        to_limit = extrapolation_weights(sizes)
        pairs = {"confidence": means[0], "accuracy": means[1], "signed_gap": means[0] - means[1]}
        for name, values in pairs.items():
            limits[name] = _interval(to_limit @ values, float(to_limit @ values[:, 0]), resampling)
        limit = exact_chances(table.by_count.plug_in).grouped(table.by_count.correct, table.groups)
        base = (null_of_twins(limit, **common).values ** 2).mean()
        square = base + to_limit @ square_excess
        replicates = to_limit @ means[2] ** 2  # of the square, but for a shift
        found = _interval(square + replicates - replicates[1:].mean(), square, resampling)
        low, estimate, high = np.sqrt(np.maximum(0.0, [found.low, found.estimate, found.high])).tolist()
        limits["smece"] = Interval(estimate, low, high, np.sqrt(np.maximum(0.0, found.replicates)))
    return MCurve(sizes, confidence, accuracy, confidence - accuracy, curve_smece, floor, limits)


def _interval(values: FloatArray, estimate: float, resampling: Resampling) -> Interval:
    """The bootstrap interval of an extrapolated figure; `values` holds the figure of the data, then the replicates."""
    low, high = np.quantile(values[1:], resampling.ends)
    return Interval(float(estimate), float(low), float(high), values[1:])


@dataclass(frozen=True)
class Estimate:
    """Headline figures under one estimator of B-confidence.

    Attributes:
        estimator: "plug-in", "split-half", "by mass" or "M to infinity".
        confidence, accuracy: means; accuracy is that of the class that the estimator takes for the mode.
        signed_gap, signed_gap_low, signed_gap_high: confidence - accuracy with its bootstrap interval.
        smece: SmoothECE of the estimator's pairs; for split-half it includes the noise of a half.
        null_mean, excess, p_value: against calibrated models at the same n and M; NaN where there is no null.
    """

    estimator: str
    confidence: float
    accuracy: float
    signed_gap: float
    signed_gap_low: float
    signed_gap_high: float
    smece: float
    null_mean: float
    excess: float
    p_value: float


def estimates(
    table: ClassTable,
    *,
    curve: MCurve,
    resampling: Resampling = Resampling(),
    convention: Convention = "relplot",
) -> tuple[Estimate, ...]:
    """One row per estimator; "by mass" only where the table has masses.

    Args:
        table: sampled answers.
        curve: the run's M-curve, whose limits are the last row.
        resampling, convention: as in `calibrate`.
    """

    def row(name: str, found: Confidences | SplitHalf, confidence: FloatArray, null: Null | None) -> Estimate:
        gap = bootstrap_interval(signed_gap, [confidence, found.correct], group=table.groups, resampling=resampling)
        error = float(smece_batch(confidence, found.correct, convention=convention).values[0])
        against = (null.mean, null.excess(error), null.p_value(error)) if null else (np.nan,) * 3
        means = float(confidence.mean()), float(found.correct.mean())
        return Estimate(name, *means, gap.estimate, gap.low, gap.high, error, *against)

    common: dict[str, Any] = {"null_draws": resampling.null_draws, "seed": resampling.seed}
    found, masses = table.by_count, table.by_mass_left_out
    rows = [row("plug-in", found, found.plug_in, null_of(table, convention=convention, **common))]
    if table.m and table.m > 1:
        halves = split_half(table, rng=keyed_generator(resampling.seed, "split_half"))
        rows.append(row("split-half", halves, halves.confidence, None))
    if masses is not None:
        null = null_of(table, by_mass=True, convention=convention, **common)
        rows.append(row("by mass", masses, masses.plug_in, null))
    if curve.limits:
        sure, right, gap, error = (curve.limits[k] for k in STATISTICS)
        figures = sure.estimate, right.estimate, gap.estimate, gap.low, gap.high, error.estimate
        rows.append(Estimate("M to infinity", *figures, *(np.nan,) * 3))
    return tuple(rows)
