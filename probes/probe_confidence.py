"""A probe's confidence as a product: is it earned, does it tell right from wrong, and what does it cost?

Knows confidences, correctness and counts of tokens; nothing of activations or of how a probe was fitted.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from probes.targets.closed import OTHER
from semcal.calibration.inference.bootstrap import bootstrap
from semcal.calibration.inference.paired import paired_difference
from semcal.calibration.measures.scores import auroc, brier, log_loss, signed_gap
from semcal.calibration.measures.smece import smece_batch
from semcal.calibration.nulls.null import exact_null
from semcal.semantics.confidence import Confidences


@dataclass(frozen=True)
class Cost:
    """What one question costs, on average.

    Attributes:
        prompt_tokens: read before anything is generated.
        generated_tokens: of all sampled answers together, as one that draws each by itself generates them; 0 for a
            probe, NaN where token ids are not known.
        rows_decoded: the same as this run decoded them, equal beginnings once; NaN where not recorded.
        seconds: wall clock on the machine of the run, loading apart; NaN where not recorded.
    """

    prompt_tokens: float
    generated_tokens: float
    rows_decoded: float
    seconds: float


@dataclass(frozen=True)
class ConfidenceRow:
    """One source of confidence on one run. `_low` and `_high` are bootstrap intervals over groups of questions.

    Attributes:
        source: "samples": B-confidence of the samples. "class probe": the largest probability that a probe of the class
            distribution gives to a class with a name. "confidence probe": a probe of B-confidence itself.
        answer: whose answer the confidence is in: "mode", the most frequent class of the samples, or "probe", the class
            the probe holds most likely, which needs no sample at all.
        n: questions.
        accuracy, confidence: means; accuracy is of that answer.
        smece, null_mean, null_q95, excess, p_value: as in `Calibration`. A probe's confidence is no frequency of
            draws, so its null has only the chance of being right (`exact_null`).
        signed_gap: confidence − accuracy; above 0 overconfident.
        brier, log_loss: of confidence in that answer; log loss in nats.
        auroc: how well the confidence tells, of the model's answer (the mode), right from wrong; the same question for
            every source.
        auroc_less_sampled: auroc less that of the samples' confidence, on the same resamples.
        spearman: rank correlation with the samples' confidence; NaN where either is constant.
        agreement: share of questions where that answer is the mode, tied modes sharing.
        pooled: mean mass in classes that have no column of their own in the class probe.
        prompt_tokens, generated_tokens, rows_decoded, seconds: see `Cost`.
    """

    source: str
    answer: str
    n: int
    accuracy: float
    confidence: float
    smece: float
    smece_low: float
    smece_high: float
    null_mean: float
    null_q95: float
    excess: float
    p_value: float
    signed_gap: float
    signed_gap_low: float
    signed_gap_high: float
    brier: float
    log_loss: float
    auroc: float
    auroc_low: float
    auroc_high: float
    auroc_less_sampled: float
    auroc_less_sampled_low: float
    auroc_less_sampled_high: float
    spearman: float
    agreement: float
    pooled: float
    prompt_tokens: float
    generated_tokens: float
    rows_decoded: float
    seconds: float


@dataclass(frozen=True)
class ProbeAnswer:
    """The class that a probe holds most likely.

    Attributes:
        confidence: [question] its predicted probability.
        labels: [question] its label.
        correct: [question] 1 if it is a gold class.
    """

    confidence: np.ndarray
    labels: tuple[str, ...]
    correct: np.ndarray


def probe_answer(predicted: np.ndarray, classes: Sequence[str], gold: Sequence[Collection[str]]) -> ProbeAnswer:
    """Answer with the most likely class that has a name: the pool of light classes is none.

    Args:
        predicted: [question, class] probabilities, of questions that the probe was not trained on.
        classes: labels of the columns.
        gold: [question] the correct classes.

    Raises:
        ValueError: shapes disagree, or no class has a name.
    """
    named = [index for index, label in enumerate(classes) if label != OTHER]
    if predicted.shape != (len(gold), len(classes)) or not named:
        raise ValueError(f"predicted has shape {predicted.shape} for {len(gold)} questions and {len(classes)} classes")
    best = predicted[:, named].argmax(1)
    labels = tuple(str(classes[named[index]]) for index in best)
    correct = np.array([float(label in its) for label, its in zip(labels, gold, strict=True)])
    return ProbeAnswer(predicted[:, named].max(1), labels, correct)


def confidence_row(
    source: str,
    confidence: np.ndarray,
    correct: np.ndarray,
    *,
    sampled: Confidences,
    agreement: np.ndarray | None,
    pooled: float,
    cost: Cost,
    group: Sequence[str],
    resamples: int = 1000,
    null_draws: int = 1000,
    level: float = 0.95,
    seed: int,
) -> ConfidenceRow:
    """Measure a probe's confidence beside that of the samples.

    Args:
        source: its name.
        confidence: [question] in [0, 1].
        correct: [question] of the answer it is in.
        sampled: the samples' confidence, and whether their mode is right.
        agreement: [question] whether the probe's own answer is the mode; None where the confidence is in the mode.
        pooled: a share, see `ConfidenceRow`.
        cost: of a question.
        group: [question] for the intervals.
        resamples, null_draws, level, seed: as in `calibrate`.

    Raises:
        ValueError: values outside [0, 1], or lengths that disagree.
    """
    settings: dict[str, Any] = {"group": np.asarray(group), "level": level, "seed": seed}

    def smooth(sure: np.ndarray, right: np.ndarray, *, weight: np.ndarray) -> np.ndarray:
        return smece_batch(sure, right, weight=weight).values

    pair = (confidence, correct)
    error = bootstrap(smooth, pair, num_samples=resamples, centred=True, bounds=(0.0, 1.0), **settings)
    gap = bootstrap(signed_gap, pair, num_samples=resamples, bounds=(-1.0, 1.0), **settings)
    on_mode = (confidence, sampled.correct)
    ranking = bootstrap(auroc, on_mode, num_samples=resamples, bounds=(0.0, 1.0), **settings)
    beside = paired_difference(auroc, (sampled.plug_in, sampled.correct), on_mode, draws=resamples, **settings)
    null = exact_null(confidence, draws=null_draws, seed=seed)
    return ConfidenceRow(
        source=source,
        answer="mode" if agreement is None else "probe",
        n=len(confidence),
        accuracy=float(np.mean(correct)),
        confidence=float(np.mean(confidence)),
        smece=error.estimate,
        smece_low=error.low,
        smece_high=error.high,
        null_mean=null.mean,
        null_q95=null.quantile95,
        excess=null.excess(error.estimate),
        p_value=null.p_value(error.estimate),
        signed_gap=gap.estimate,
        signed_gap_low=gap.low,
        signed_gap_high=gap.high,
        brier=float(brier(confidence, correct)),
        log_loss=float(log_loss(confidence, correct)),
        auroc=ranking.estimate,
        auroc_low=ranking.low,
        auroc_high=ranking.high,
        auroc_less_sampled=beside.estimate,
        auroc_less_sampled_low=beside.low,
        auroc_less_sampled_high=beside.high,
        spearman=_rank_correlation(confidence, sampled.plug_in),
        agreement=1.0 if agreement is None else float(np.mean(agreement)),
        pooled=pooled,
        **vars(cost),
    )


def sampled_row(calibration: Mapping[str, Any], cost: Cost) -> ConfidenceRow:
    """The samples' own row, from the record of a run's calibration, so that no two tables disagree."""
    taken = (
        *("n", "accuracy", "confidence", "smece", "smece_low", "smece_high", "null_mean", "null_q95", "excess"),
        *("p_value", "signed_gap", "signed_gap_low", "signed_gap_high", "brier", "log_loss"),
        *("auroc", "auroc_low", "auroc_high"),
    )
    figures = {name: float("nan") if calibration[name] is None else calibration[name] for name in taken}
    nothing = {f"auroc_less_sampled{end}": 0.0 for end in ("", "_low", "_high")}
    perfect = {"spearman": 1.0, "agreement": 1.0, "pooled": 0.0}
    return ConfidenceRow(source="samples", answer="mode", **figures, **nothing, **perfect, **vars(cost))


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(spearmanr(a, b).statistic)  # pyright: ignore[reportAttributeAccessIssue]
