"""The confidence of a probe as a product: is it earned, does it tell right from wrong, and what does it cost?

Knows confidences, correctness and counts of tokens; nothing of activations or of how a probe was fitted.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import xlogy
from scipy.stats import spearmanr

from probes.targets.closed import OTHER
from semcal.calibration.inference.bootstrap import Interval, bootstrap_interval
from semcal.calibration.inference.paired import Difference, paired_difference
from semcal.calibration.measures.scores import auroc, brier, log_loss, signed_gap
from semcal.calibration.measures.smece import smece_batch
from semcal.calibration.nulls.null import null_of_twins
from semcal.calibration.nulls.twins import exact_chances
from semcal.calibration.resampling import Resampling
from semcal.semantics.class_table import ClassTable


@dataclass(frozen=True)
class Cost:
    """What one question costs, on average.

    Attributes:
        prompt_tokens: read before anything is generated.
        generated_tokens: of all sampled answers together, if each were drawn separately; 0 for a probe, NaN where token
            ids are unknown.
        rows_decoded: the same as this run decoded them, shared beginnings once; NaN where not recorded.
        seconds: wall clock on the machine of the run, without loading the model; NaN where not recorded.
    """

    prompt_tokens: float
    generated_tokens: float
    rows_decoded: float
    seconds: float


@dataclass(frozen=True)
class ProbeAnswer:
    """The class that a probe considers most likely.

    Attributes:
        confidence: [question] its predicted probability.
        labels: [question] its label.
        correct: [question] 1 if it is a gold class.
        entropy: [question] of all that the probe predicts, nats; pooled classes count as one.
    """

    confidence: np.ndarray
    labels: tuple[str, ...]
    correct: np.ndarray
    entropy: np.ndarray


def probe_answer(predicted: np.ndarray, classes: Sequence[str], gold: Sequence[Collection[str]]) -> ProbeAnswer:
    """Answer with the most likely named class; the pool of light classes is not one.

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
    correct = np.array([float(label in own) for label, own in zip(labels, gold, strict=True)])
    return ProbeAnswer(predicted[:, named].max(1), labels, correct, entropy=-xlogy(predicted, predicted).sum(1))


def confidence_row(
    source: str,
    confidence: np.ndarray,
    correct: np.ndarray,
    *,
    table: ClassTable,
    cost: Cost,
    resampling: Resampling,
    agreement: np.ndarray | None = None,
    pooled: float = 0.0,
) -> dict[str, Any]:
    """Measure the confidence of a probe next to that of the samples.

    Args:
        source: its name.
        confidence: [question] in [0, 1].
        correct: [question] whether the answer that the confidence is about is correct.
        table: the run's answers: the samples' confidence, whether their mode is right, and groups.
        cost: per question.
        resampling: as in `calibrate`.
        agreement: [question] whether the probe's own answer is the mode; None where the confidence is about the mode.
        pooled: mean mass in classes that have no column of their own in the class probe.

    Returns:
        One row; `_low` and `_high` are bootstrap intervals over groups of questions.

        - `source`; `answer` that the confidence is about: "mode", the most frequent class of the samples, or "probe",
          the class that the probe considers most likely, which needs no sample at all; `n` questions.
        - `accuracy` of that answer and `confidence`: means. `signed_gap`: confidence − accuracy.
        - `smece`, `null_mean`, `null_q95`, `excess`, `p_value`: as in `Calibration`. A probe's confidence is not a
          frequency of draws, so its null leaves only whether it is right to chance (`exact_chances`).
        - `brier`, `log_loss` (nats): of confidence in that answer.
        - `auroc`: how well the confidence tells, of the mode, right from wrong: the same question for every source.
          `auroc_less_sampled`: minus that of the samples' confidence, on the same resamples.
        - `spearman`: rank correlation with the samples' confidence; NaN where either is constant.
        - `agreement`: share of questions where that answer is the mode; tied modes share.
        - `pooled`, and the fields of `Cost`.

    Raises:
        ValueError: values outside [0, 1], or lengths that disagree.
    """
    sampled = table.by_count
    settings: dict[str, Any] = {"resampling": resampling, "group": table.groups}

    def smooth(sure: np.ndarray, right: np.ndarray, *, weight: np.ndarray) -> np.ndarray:
        return smece_batch(sure, right, weight=weight).values

    pair = (confidence, correct)
    error = bootstrap_interval(smooth, pair, centred=True, bounds=(0.0, 1.0), **settings)
    gap = bootstrap_interval(signed_gap, pair, bounds=(-1.0, 1.0), **settings)
    on_mode = (confidence, sampled.correct)
    ranking = bootstrap_interval(auroc, on_mode, bounds=(0.0, 1.0), **settings)
    beyond = paired_difference(auroc, (sampled.plug_in, sampled.correct), on_mode, **settings)
    chances = exact_chances(confidence).grouped(correct, table.groups)
    null = null_of_twins(chances, null_draws=resampling.null_draws, seed=resampling.seed)
    row = {"source": source, "answer": "mode" if agreement is None else "probe", "n": len(confidence)}
    row |= {"accuracy": float(np.mean(correct)), "confidence": float(np.mean(confidence))}
    row |= _columns("smece", error) | {"null_mean": null.mean, "null_q95": null.quantile95}
    row |= {"excess": null.excess(error.estimate), "p_value": null.p_value(error.estimate)}
    row |= _columns("signed_gap", gap)
    row |= {"brier": float(brier(confidence, correct)), "log_loss": float(log_loss(confidence, correct))}
    row |= _columns("auroc", ranking) | _columns("auroc_less_sampled", beyond)
    row |= {"spearman": _rank_correlation(confidence, sampled.plug_in)}
    row |= {"agreement": 1.0 if agreement is None else float(np.mean(agreement)), "pooled": pooled}
    return row | vars(cost)


def _columns(name: str, found: Interval | Difference) -> dict[str, float]:
    return {name: found.estimate, f"{name}_low": found.low, f"{name}_high": found.high}


def sampled_row(calibration: Mapping[str, Any], cost: Cost) -> dict[str, Any]:
    """The row of the samples themselves, from the record of a run's calibration, so that no two tables disagree."""
    taken = (
        *("n", "accuracy", "confidence", "smece", "smece_low", "smece_high", "null_mean", "null_q95", "excess"),
        *("p_value", "signed_gap", "signed_gap_low", "signed_gap_high", "brier", "log_loss"),
        *("auroc", "auroc_low", "auroc_high"),
    )
    figures = {name: float("nan") if calibration[name] is None else calibration[name] for name in taken}
    nothing = {f"auroc_less_sampled{end}": 0.0 for end in ("", "_low", "_high")}
    perfect = {"spearman": 1.0, "agreement": 1.0, "pooled": 0.0}
    return {"source": "samples", "answer": "mode"} | figures | nothing | perfect | vars(cost)


def _rank_correlation(a: np.ndarray, b: np.ndarray) -> float:
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        return float("nan")
    return float(spearmanr(a, b).statistic)  # pyright: ignore[reportAttributeAccessIssue]
