"""B-confidence at finite M, estimated in every way there is, side by side: plug-in, split-half, by mass, extrapolated.

Knows counts, gold columns and, where there are any, class masses; the estimators stand in files of their own.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from semcal.arrays import FloatArray
from semcal.calibration.estimators.m_curve import MCurve
from semcal.calibration.estimators.split_half import split_half
from semcal.calibration.inference.bootstrap import bootstrap as bootstrap_interval
from semcal.calibration.measures.kernel import Convention
from semcal.calibration.measures.scores import signed_gap
from semcal.calibration.measures.smece import smece_batch
from semcal.calibration.nulls.null import Null, exact_null, null_of_counts
from semcal.seeds import keyed_generator
from semcal.semantics.confidence import Confidences, checked_counts, checked_gold, confidences


@dataclass(frozen=True)
class Estimate:
    """Headline figures under one estimator of B-confidence.

    Attributes:
        estimator: "plug-in", "split-half", "by mass" or "M to infinity".
        confidence, accuracy: means; accuracy is that of the answer that the estimator takes for the mode.
        signed_gap, signed_gap_low, signed_gap_high: confidence - accuracy with its bootstrap interval.
        smece: SmoothECE of the estimator's pairs; of halves it holds the noise of a half.
        null_mean, excess, p_value: against calibrated models at the same n and M; NaN where no null belongs to it.
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
    counts: ArrayLike,
    gold: ArrayLike,
    unparsed: ArrayLike | None = None,
    *,
    curve: MCurve,
    masses: Confidences | None = None,
    group: ArrayLike | None = None,
    bootstrap: int = 1000,
    null_draws: int = 1000,
    level: float = 0.95,
    seed: int,
    convention: Convention = "relplot",
) -> tuple[Estimate, ...]:
    """A row an estimator.

    Args:
        counts, gold, unparsed: as in `confidences`.
        curve: the run's M-curve, whose limits are the last row.
        masses: `confidences_of_masses` of the run's `class_masses`; None where log-probabilities are not known.
        group: `[n]` labels of dependent questions.
        bootstrap, null_draws, level, seed, convention: as in `calibrate`.

    Raises:
        ValueError: as `confidences`.
    """
    counts, total = checked_counts(counts)

    def row(name: str, confidence: FloatArray, correct: FloatArray, null: Null | None) -> Estimate:
        gap = bootstrap_interval(
            signed_gap, [confidence, correct], group=group, num_samples=bootstrap, level=level, seed=seed
        )
        error = float(smece_batch(confidence, correct, convention=convention).values[0])
        against = (null.mean, null.excess(error), null.p_value(error)) if null else (np.nan,) * 3
        means = float(confidence.mean()), float(correct.mean())
        return Estimate(name, *means, gap.estimate, gap.low, gap.high, error, *against)

    found = confidences(counts, gold, unparsed)
    null = null_of_counts(
        counts, checked_gold(counts, gold, unparsed), draws=null_draws, seed=seed, convention=convention
    )
    rows = [row("plug-in", found.plug_in, found.correct, null)]
    if total > 1:
        halves = split_half(counts, gold, unparsed, rng=keyed_generator(seed, "split_half"))
        rows.append(row("split-half", halves.confidence, halves.correct, None))
    if masses is not None:
        null = exact_null(masses.plug_in, draws=null_draws, seed=seed, convention=convention)
        rows.append(row("by mass", masses.plug_in, masses.correct, null))
    if curve.limits:
        sure, right, gap, error = (curve.limits[k] for k in ("confidence", "accuracy", "signed_gap", "smece"))
        rows.append(
            Estimate(
                "M to infinity",
                sure.estimate,
                right.estimate,
                gap.estimate,
                gap.low,
                gap.high,
                error.estimate,
                *(np.nan,) * 3,
            )
        )
    return tuple(rows)
