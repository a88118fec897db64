"""B-confidence at finite M by every estimator, side by side: plug-in, split-half, by mass, extrapolated."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from semcal.arrays import FloatArray
from semcal.calibration.estimators.m_curve import STATISTICS, MCurve
from semcal.calibration.estimators.split_half import SplitHalf, split_half
from semcal.calibration.inference.bootstrap import bootstrap_interval
from semcal.calibration.measures.kernel import Convention
from semcal.calibration.measures.scores import signed_gap
from semcal.calibration.measures.smece import smece_batch
from semcal.calibration.nulls.null import Null, exact_null, null_of
from semcal.calibration.resampling import Resampling
from semcal.seeds import keyed_generator
from semcal.semantics.class_table import ClassTable
from semcal.semantics.confidence import Confidences


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

    common = {"null_draws": resampling.null_draws, "seed": resampling.seed}
    found, masses = table.by_count, table.by_mass
    rows = [row("plug-in", found, found.plug_in, null_of(table, convention=convention, **common))]
    if table.m and table.m > 1:
        halves = split_half(table, rng=keyed_generator(resampling.seed, "split_half"))
        rows.append(row("split-half", halves, halves.confidence, None))
    if masses is not None:
        null = exact_null(masses.plug_in, convention=convention, **common)
        rows.append(row("by mass", masses, masses.plug_in, null))
    if curve.limits:
        sure, right, gap, error = (curve.limits[k] for k in STATISTICS)
        figures = sure.estimate, right.estimate, gap.estimate, gap.low, gap.high, error.estimate
        rows.append(Estimate("M to infinity", *figures, *(np.nan,) * 3))
    return tuple(rows)
