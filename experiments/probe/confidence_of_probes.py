"""The confidence of a run's probes as a product: what they answer, and what a question costs to sample and to probe."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd

from experiments.probe.probed import Probed
from probes.evaluation.rungwise import out_of_fold
from probes.probe_confidence import Cost, ProbeAnswer, confidence_row, probe_answer, sampled_row
from probes.targets.closed import class_target, share_target
from probes.targets.scalars import b_confidence, mode_share
from semcal.runs.run import Run


def probe_confidence(at: Probed, run: Run) -> None:
    """Confidence from samples, from a probe of the classes and from a probe of B-confidence; writes
    probe_confidence.parquet and, per question, what the class probe answers: probe_predictions.parquet.

    Both read the last layer at the last prompt token, fixed before looking, whatever rungs the study names; every
    question is predicted by probes that saw none of its group. The class probe is linear, or bilinear where classes are
    open; linear, it can answer only with classes that are not pooled, and the entropy of what it predicts counts these
    as one.

    Args:
        at: the last prompt token.
    """
    cell, table, group = at.cell, at.table, at.group
    X = at.activations.layer(at.activations.layers[-1])
    settings: dict[str, Any] = {"folds": cell.probes.folds, "seed": cell.seed}
    if at.opened:
        found = at.by_text
        labels = [at.classes.target.classes[column] for column in found.answer[-1]]
        right = np.array([float(label in own) for label, own in zip(labels, table.gold_classes, strict=True)])
        answer, pooled = ProbeAnswer(found.confidence[-1], tuple(labels), right, found.entropy[-1]), 0.0
    else:
        target = class_target(table, max_classes=cell.probes.max_classes)
        predicted = out_of_fold(X, target.distribution, group, **settings)
        answer, pooled = probe_answer(predicted, target.classes, table.gold_classes), target.pooled
    scalar = share_target(b_confidence(table), name="b_confidence", m=table.m)
    sure = out_of_fold(X, scalar.distribution, group, **settings)[:, 0]
    sampling, probing = costs(run)
    measured: dict[str, Any] = {"table": table, "cost": probing, "resampling": cell.calibration.detail(cell.seed)}
    named = np.zeros(table.gold.shape, dtype=bool)
    for row, (labels, own) in enumerate(zip(table.classes, answer.labels, strict=True)):
        named[row, : len(labels)] = np.array(labels) == own
    of_classes: dict[str, Any] = {"agreement": mode_share(table, named), "pooled": pooled} | measured
    rows = [
        sampled_row(run.calibration(), sampling),
        confidence_row("class probe", answer.confidence, answer.correct, **of_classes),
        confidence_row("confidence probe", sure, table.by_count.correct, **measured),
    ]
    predicted = {"question_id": table.questions, "class": answer.labels}
    predicted |= {"confidence": answer.confidence, "entropy": answer.entropy, "correct": answer.correct}
    predicted |= {"confidence_in_mode": sure}
    run.write_probe_predictions(pd.DataFrame(predicted))
    run.write_probe_confidence(pd.DataFrame(rows))


def costs(run: Run) -> tuple[Cost, Cost]:
    """What one question costs to sample, and to probe; see `Cost`.

    Records of work are used where they cover all questions: a run that took over samples from another has none.
    """
    samples, manifest, nan = run.samples(), run.manifest(), float("nan")
    prompts, work = run.questions()["prompt_tokens"].to_numpy(), manifest["sampling_work"]
    n = len(prompts)
    prefix = max((w.get("prefix_tokens", 0) for w in work), default=0)
    whole = sum(w.get("prompt_tokens", 0) for w in work) + n * prefix >= prompts.sum()

    def each(name: str) -> float:
        return sum(w.get(name, nan) for w in work) / n if whole else nan

    counts = samples["count"].to_numpy(dtype=float, na_value=nan)
    lengths = np.array([len(ids) for ids in samples["token_ids"]])
    generated = float(counts @ lengths) / n if lengths.any() else nan
    seconds = manifest.get("sampling_seconds", nan) / n if whole else nan
    prompt = float(prompts.mean())
    return Cost(prompt, generated, each("rows_decoded"), seconds), Cost(prompt, 0.0, 0.0, each("prefill_seconds"))
