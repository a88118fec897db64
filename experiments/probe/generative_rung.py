"""The generative rung of a run: its prompts and classes as token ids, its row in the tables, and its learning curve."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import pandas as pd

from experiments.config.run_folder import unfinished
from experiments.config.study import Cell
from experiments.sample.asked import form_of
from experiments.score.score import readable_texts
from probes.evaluation.baselines import held_out_marginal
from probes.evaluation.folds import nested_folds
from probes.evaluation.result import (
    CANDIDATES,
    GENERATIVE,
    KL_EXPLAINED,
    MARGINAL,
    Evaluation,
    OpenPrediction,
    Seeds,
    open_evaluation,
)
from probes.rungs.emitting.generated_text import class_texts, prompts_without_exemplars, usual_texts
from probes.rungs.emitting.generative import Generated, Learnt, Progress, Training, generate_classes
from probes.targets.entropy import Entropies
from probes.targets.open import Universe, open_entropies, open_target
from semcal.arrays import FloatArray
from semcal.calibration.inference.bootstrap import bootstrap_interval
from semcal.calibration.inference.paired import plain_mean
from semcal.calibration.resampling import Resampling
from semcal.models.checkpoint import LanguageModel
from semcal.questions.question import Question
from semcal.runs.run import Run
from semcal.semantics.class_table import ClassTable
from semcal.semantics.extract import extract

Tell = Callable[[str], None]


def fit_generative(
    cell: Cell,
    run: Run,
    model: LanguageModel,
    table: ClassTable,
    prompts: Sequence[Sequence[int]],
    against: FloatArray | None,
    tell: Tell,
) -> tuple[Evaluation, pd.DataFrame]:
    """The rung's evaluation over all classes of the run, and its learning curve.

    Args:
        table, prompts: the questions to probe, and the token ids that the model read for each.
        against: [entry of `open_target(table)`] log-probabilities by the candidate-only model, which the share
            explained is read against; None: the marginal.
        tell: hears of progress, in words.

    Raises:
        UserError: as `generate_classes` and `class_texts`.
    """
    target, group = open_target(table), table.groups.tolist()
    found = _generated(cell, run, model, table, prompts, Training(folds=cell.probes.folds, seed=cell.seed), tell)
    seeds, resampling = Seeds.of(cell.seed), Resampling(level=cell.calibration.level, seed=cell.seed)
    if against is None:
        folds = nested_folds(group, cell.probes.folds, seeds.folds)
        marginal = held_out_marginal(target, folds, Universe.of(target, group).size)
        predicted = OpenPrediction(found.log_q[None], marginal, MARGINAL)
    else:
        predicted = OpenPrediction(found.log_q[None], against, CANDIDATES)
    of_run = open_evaluation(
        predicted,
        {"rung": GENERATIVE, "layer": ["whole model"], "measure": KL_EXPLAINED},
        target=target,
        found=open_entropies(table),
        group=group,
        resampling=replace(resampling, seed=seeds.bootstrap),
        columns={"choice": _chosen(found.learnt) if found.learnt else ""},
    )
    return of_run, learning_curve(found, open_entropies(table), group, resampling)


def over_all_classes(
    cell: Cell, run: Run, model: LanguageModel, table: ClassTable, prompts: Sequence[Sequence[int]], tell: Tell
) -> FloatArray:
    """[question, class] log-probabilities that the rung gives to every class of `open_target(table)`, in nats; each
    question by adapters that saw none of its group. The rest of the probability is that of other strings.

    Args and errors as of `fit_generative`.
    """
    how = Training(folds=cell.probes.folds, seed=cell.seed, curve=(), all_classes=True)
    found = _generated(cell, run, model, table, prompts, how, tell).over_classes
    assert found is not None
    return found


def _generated(
    cell: Cell,
    run: Run,
    model: LanguageModel,
    table: ClassTable,
    prompts: Sequence[Sequence[int]],
    how: Training,
    tell: Tell,
) -> Generated:
    target, form = open_target(table), form_of(cell)
    if cell.probes.exemplars == "drop":
        by_id = {question.id: question for question in run.question_records()}
        asked: list[Question] = [by_id[key] for key in table.questions]
        prompts = prompts_without_exemplars(model, form, asked, prompts)
    texts = class_texts(model, target.classes, form, usual_texts(target.classes, _phrases(cell, run, table)))
    return generate_classes(
        *(model, prompts, texts, target, table.groups.tolist(), how),
        scratch=unfinished(run),
        told=lambda p: tell(_words(p)),
    )


def _phrases(cell: Cell, run: Run, table: ClassTable) -> dict[str, float]:
    """The answering phrases of the questions, with how often they were sampled, or the mass that enumeration found."""
    samples = run.samples()
    samples = samples.loc[samples["question_id"].isin(table.questions)]
    weights = np.exp(samples["logprob"]) if cell.enumerated else samples["count"]
    found: dict[str, float] = {}
    for text, weight in zip(readable_texts(samples, cell.style), weights, strict=True):
        if text and (phrase := extract(text, cell.style)):
            found[phrase] = found.get(phrase, 0.0) + float(weight)
    return found


def learning_curve(found: Generated, known: Entropies, group: Sequence[str], resampling: Resampling) -> pd.DataFrame:
    """One row per number of questions learnt from: the KL gap on the first fold's held-out questions, with its interval
    over groups, and how training went."""
    rows = []
    for point in found.curve:
        gaps = point.cross_entropy - known.point[point.rows]
        labels = np.asarray(group)[point.rows]
        mean = bootstrap_interval(plain_mean, (gaps, gaps), group=labels, resampling=resampling)
        rows.append(
            {"rung": GENERATIVE, "questions": point.learnt.questions, "held_out": len(gaps), "gap": mean.estimate}
            | {"gap_low": mean.low, "gap_high": mean.high, "rate": point.learnt.rate, "epoch": point.learnt.epoch}
        )
    return pd.DataFrame(rows)


def _chosen(learnt: Sequence[Learnt]) -> str:
    """The learning rates and epochs that were kept, over folds."""
    rates = ", ".join(f"{rate:g}" for rate in sorted({one.rate for one in learnt}))
    epochs = sorted(one.epoch for one in learnt)
    kept = str(epochs[0]) if epochs[0] == epochs[-1] else f"{epochs[0]} to {epochs[-1]}"
    return f"rate={rates}, epoch={kept}"


def _words(progress: Progress) -> str:
    left = "" if progress.seconds_left is None else f", at most {max(1, round(progress.seconds_left / 60))} min left"
    loss = "" if progress.loss is None else f", loss {progress.loss:.2f}"
    return f"probing, LoRA {progress.what}{loss}, {progress.fraction:.0%}{left}"
