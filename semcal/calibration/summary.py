"""The calibration of a run in one record: every headline figure with its interval, its null and its finite-M checks."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from semcal.arrays import FloatArray
from semcal.calibration.estimators.finite_m import split_half
from semcal.calibration.inference.bootstrap import Interval, bootstrap_interval
from semcal.calibration.measures.binned import brier_parts, debiased_ece, ece, mce
from semcal.calibration.measures.kernel import Convention
from semcal.calibration.measures.scores import aurc, auroc, brier, log_loss, signed_gap, weighted_mean
from semcal.calibration.measures.smece import smece_batch
from semcal.calibration.nulls.null import null_of
from semcal.calibration.resampling import Resampling
from semcal.seeds import keyed_generator
from semcal.semantics.class_table import ClassTable


@dataclass(frozen=True)
class Calibration:
    """Calibration of one run over n questions with M samples each. `_low` and `_high` are bootstrap intervals.

    Attributes:
        n: questions.
        m: samples per question; None where class masses are exact.
        unexplored: mean mass that enumeration did not reach; 0 for samples.
        accuracy: share of questions whose most frequent class is gold, ties scored fractionally.
        confidence: mean share of the most frequent class (plug-in B-confidence).
        smece: SmoothECE; its interval is centred (see `bootstrap_interval`), the others are percentile intervals.
        bandwidth: kernel width at which smece was read off, in units of confidence.
        null_mean: mean smECE of calibrated models at this n, M and these class distributions (`null_of`).
        null_q95: its 95 % quantile.
        excess: smece - null_mean.
        p_value: one-sided, of smece against that null.
        signed_gap: mean confidence - accuracy; above 0 is overconfident. Biased upwards at finite M.
        split_half_confidence: mean confidence with mode and share taken on different halves of the samples.
        split_half_gap: split_half_confidence - accuracy of the half's mode; free of that bias.
        ece: 15 equal-width bins with edges off the grid of shares k/M.
        ece_mass: 15 bins of equal numbers of questions.
        debiased_ece: root mean square gap over those, minus what chance explains.
        mce: the largest gap of the equal-width bins.
        log_loss: in nats, shares k/M taken as (k + 1/2)/(M + 1), exact masses as they are.
        brier_reliability, brier_resolution: two of the parts of the Brier score; the third is accuracy (1 - accuracy).
        aurc: area under the risk-coverage curve; lower is better.
        brier: expected Brier score.
        auroc: how well confidence tells right from wrong; NaN where all are right or all wrong.
        seen_mass: mean probability of the distinct answers that were seen; NaN without log-probabilities. Confidence by
            mass says more than counts the nearer it is to 1.
        tie_rate: share of questions whose first place is shared.
        unparsed_share: share of all samples that could not be parsed.
        truncated_share: share of all samples cut off by the length limit; NaN if unknown.
    """

    n: int
    m: int | None
    unexplored: float
    accuracy: float
    accuracy_low: float
    accuracy_high: float
    confidence: float
    confidence_low: float
    confidence_high: float
    smece: float
    smece_low: float
    smece_high: float
    bandwidth: float
    null_mean: float
    null_q95: float
    excess: float
    p_value: float
    signed_gap: float
    signed_gap_low: float
    signed_gap_high: float
    split_half_confidence: float
    split_half_gap: float
    ece: float
    ece_mass: float
    debiased_ece: float
    mce: float
    log_loss: float
    brier_reliability: float
    brier_resolution: float
    aurc: float
    brier: float
    brier_low: float
    brier_high: float
    auroc: float
    auroc_low: float
    auroc_high: float
    seen_mass: float
    tie_rate: float
    unparsed_share: float
    truncated_share: float

    def to_dict(self) -> dict[str, int | float | None]:
        """The fields as plain numbers, in order; NaN stays NaN."""
        return asdict(self)


def calibrate(
    table: ClassTable,
    *,
    resampling: Resampling = Resampling(),
    truncated_share: float = float("nan"),
    convention: Convention = "relplot",
) -> Calibration:
    """Measure everything that `Calibration` holds.

    >>> questions = [semcal.Question(id="a", text="2 + 2?", answers=("4",)), semcal.Question("b", "3 * 3?", ("9",))]
    >>> table = semcal.collapse(questions, [["4", "4", "4"], ["6", "6", "9"]])
    >>> found = semcal.calibrate(table)
    >>> found.accuracy, round(found.confidence, 3)
    (0.5, 0.833)

    Of enumerated answers confidence is the mass found for the top class, a lower bound; `unexplored` is its slack.
    There is no sampling noise, so the null leaves only whether the top class is correct to chance.

    Args:
        table: classes, counts or masses, gold and groups. Intervals resample whole groups; twins of a group are as
            dependent as its questions are observed to be.
        resampling: resamples, simulated data sets, level and seed.
        truncated_share: share of all samples cut off by the length limit, in [0, 1], passed through.
        convention: of smECE, for the value and the null alike; see `smece`.

    Raises:
        ValueError: a truncated_share outside [0, 1].
    """
    if not (np.isnan(truncated_share) or 0 <= truncated_share <= 1):
        raise ValueError(f"truncated_share is {truncated_share}, which is not in [0, 1]")
    found, m = table.by_count, table.m
    null = null_of(table, null_draws=resampling.null_draws, seed=resampling.seed, convention=convention)
    halves = None
    if m is not None and m > 1:
        halves = split_half(table, rng=keyed_generator(resampling.seed, "split_half"))

    def smooth_error(confidence: FloatArray, correct: FloatArray, *, weight: FloatArray) -> FloatArray:
        return smece_batch(confidence, correct, weight=weight, convention=convention).values

    def interval(
        statistic: Callable[..., FloatArray], *arrays: FloatArray, centred: bool = False, lowest: float = 0.0
    ) -> Interval:
        return bootstrap_interval(
            statistic, arrays, resampling=resampling, group=table.groups, centred=centred, bounds=(lowest, 1.0)
        )

    smooth = interval(smooth_error, found.plug_in, found.correct, centred=True)
    intervals = {
        "accuracy": interval(weighted_mean, found.correct),
        "confidence": interval(weighted_mean, found.plug_in),
        "smece": smooth,
        "signed_gap": interval(signed_gap, found.plug_in, found.correct, lowest=-1.0),
        "brier": interval(brier, found.plug_in, found.correct),
        "auroc": interval(auroc, found.plug_in, found.correct),
    }
    ends: dict[str, Any] = {f"{name}_low": found.low for name, found in intervals.items()}
    ends |= {f"{name}_high": found.high for name, found in intervals.items()}
    parts = brier_parts(found.plug_in, found.correct)

    return Calibration(
        **{name: found.estimate for name, found in intervals.items()},
        **ends,
        n=len(table),
        m=m,
        unexplored=float(np.maximum(0.0, 1 - table.shares.sum(axis=1)).mean()) if table.enumerated else 0.0,
        bandwidth=float(smece_batch(found.plug_in, found.correct, convention=convention).bandwidths[0]),
        null_mean=null.mean,
        null_q95=null.quantile95,
        excess=null.excess(smooth.estimate),
        p_value=null.p_value(smooth.estimate),
        split_half_confidence=float(halves.confidence.mean()) if halves else float("nan"),
        split_half_gap=halves.gap if halves else float("nan"),
        ece=float(ece(found.plug_in, found.correct, m=m)),
        ece_mass=float(ece(found.plug_in, found.correct, scheme="mass")),
        debiased_ece=float(debiased_ece(found.plug_in, found.correct)),
        mce=float(mce(found.plug_in, found.correct, m=m)),
        log_loss=float(log_loss(found.plug_in, found.correct, m=m)),
        brier_reliability=float(parts.reliability),
        brier_resolution=float(parts.resolution),
        aurc=float(aurc(found.plug_in, found.correct)),
        seen_mass=float(table.seen_mass.mean()),
        tie_rate=float(found.tied.mean()),
        unparsed_share=table.unparsed_share,
        truncated_share=float(truncated_share),
    )
