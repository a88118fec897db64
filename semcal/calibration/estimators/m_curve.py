"""How confidence, accuracy and smECE change with the number of samples M, and their limits at M -> infinity.

The curve comes from random parts of the samples that were drawn; nothing is sampled again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from semcal.arrays import FloatArray, IntArray
from semcal.calibration.estimators.thinning import thin
from semcal.calibration.inference.bootstrap import Interval, groups, multiplicities
from semcal.calibration.measures.kernel import Convention
from semcal.calibration.measures.smece import smece_batch
from semcal.calibration.nulls.null import exact_null, null_of
from semcal.calibration.resampling import Resampling
from semcal.seeds import keyed_generator
from semcal.semantics.class_table import ClassTable
from semcal.semantics.confidence import share_within

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
    the null's mean square is extrapolated, and the mean square at exact confidences (`exact_null` of the plug-in ones)
    is added again. Intervals are cluster bootstraps over questions of whole curves, centred for smECE (see
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
        base = (exact_null(table.by_count.plug_in, **common).values ** 2).mean()
        square = base + to_limit @ square_excess
        replicates = to_limit @ means[2] ** 2  # of the square, but for a shift
        limits["smece"] = _root(_interval(square + replicates - replicates[1:].mean(), square, resampling))
    return MCurve(sizes, confidence, accuracy, confidence - accuracy, curve_smece, floor, limits)


def _interval(values: FloatArray, estimate: float, resampling: Resampling) -> Interval:
    """The bootstrap interval of an extrapolated figure; `values` holds the figure of the data, then the replicates."""
    low, high = np.quantile(values[1:], resampling.ends)
    return Interval(float(estimate), float(low), float(high), values[1:])


def _root(square: Interval) -> Interval:
    """The interval of a non-negative figure from that of its square."""
    low, estimate, high = np.sqrt(np.maximum(0.0, [square.low, square.estimate, square.high]))
    return Interval(float(estimate), float(low), float(high), np.sqrt(np.maximum(0.0, square.replicates)))
