"""A run's probe confidence beside its sampled confidence: fitted out of fold, measured, with what each costs."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np
import pandas as pd

from experiments.config.study import Cell
from experiments.probe.run_layer import read_layer
from probes.evaluation.crossfit import out_of_fold
from probes.probe_confidence import ConfidenceRow, Cost, confidence_row, probe_answer, sampled_row
from probes.targets.closed import OTHER, b_confidence, class_target, mode_correctness, share_target
from semcal.runs.run import Run


def probe_confidence(cell: Cell, run: Run) -> list[ConfidenceRow]:
    """Confidence from samples, from a probe of the classes and from a probe of B-confidence; writes
    probe_confidence.parquet.

    Both are linear, on the last layer at the last prompt token, fixed before looking; every question is predicted by
    probes that saw none of its group. Where classes are open (names, numbers), the class probe can answer with those
    only that many questions share, which `pooled` tells; then the probe of B-confidence is the one to read.

    Raises:
        UserError: nothing was captured at the last prompt token.
    """
    read = read_layer(run)
    table = run.class_table()
    settings: dict[str, Any] = {"folds": cell.probes.folds, "seed": cell.seed}
    target = class_target(read.masses, max_classes=cell.probes.max_classes, m=read.m)
    answer = probe_answer(
        out_of_fold(read.activations, target.distribution, read.group, **settings), target.classes, read.gold
    )
    scalar = share_target(b_confidence(read.masses), name="b_confidence", m=read.m)
    sure = out_of_fold(read.activations, scalar.distribution, read.group, **settings)[:, 0]
    sampling, probing = costs(run)
    measured: dict[str, Any] = {"table": table, "cost": probing, "resampling": cell.calibration.detail(cell.seed)}
    agreement = mode_correctness(read.masses, [{label} for label in answer.labels])
    pooled = float(target.distribution[:, -1].mean()) if target.classes[-1] == OTHER else 0.0
    rows = [
        sampled_row(run.calibration(), sampling),
        confidence_row(
            "class probe", answer.confidence, answer.correct, agreement=agreement, pooled=pooled, **measured
        ),
        confidence_row("confidence probe", sure, table.by_count.correct, **measured),
    ]
    run.write_probe_confidence(pd.DataFrame([asdict(row) for row in rows]))
    return rows


def costs(run: Run) -> tuple[Cost, Cost]:
    """What a question costs to sample, and to probe; see `Cost`.

    Records of work are used where they are of all questions: a run that took samples over from another has none.
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
