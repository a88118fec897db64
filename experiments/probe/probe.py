"""Probes of a run: every target by every rung and baseline that its study names, at every position captured.

Rungs and baselines that read the model itself are in `experiments.probe.with_model`.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from experiments.config.study import Cell
from experiments.probe.confidence_of_probes import probe_confidence
from experiments.probe.open_classes import MOST_POOLED, features_of, is_open
from experiments.probe.probed import CLASSES, Probed, layers_of_other, probed_positions
from experiments.probe.with_model import ModelProbes
from experiments.sample.models import Models
from probes.activations.layers import Layers
from probes.evaluation.baselines import TEXT_PENALTIES, baseline_row
from probes.evaluation.folds import too_few_groups
from probes.evaluation.layerwise import Target
from probes.evaluation.result import (
    BASELINE,
    BILINEAR,
    COLUMNS,
    DENSITY,
    LINEAR,
    MARGINAL,
    OPEN_RUNGS,
    Evaluation,
)
from probes.evaluation.rungwise import Candidates
from probes.rungs.networks import Segments
from probes.rungs.registry import Given, candidates, rungs_reading
from probes.targets.closed import ClassTarget
from probes.targets.open import OpenTarget, open_target
from probes.targets.scalars import SCALARS
from semcal.errors import UserError
from semcal.positions import ALL_QUESTION_TOKENS, LAST_PROMPT_TOKEN
from semcal.runs.run import Run

log = logging.getLogger(__name__)


def probe(cell: Cell, run: Run, models: Models | None = None, tell: Callable[[str], None] = lambda _: None) -> None:
    """Fit probes on the captured activations to the classes that `score` found; writes probes.parquet and, per
    question, probe_losses.parquet.

    A position is probed on the questions that have it, if they make enough groups. At the last prompt token the probe's
    confidence is measured, too (`probe_confidence`), and rungs and baselines that read the run's model are fitted:
    `models` are asked for it, if there is one of them. `tell` hears of progress, in words.

    Raises:
        UserError: fewer groups of questions than folds, in the run or in a file of activations; a device that is not
            available; what `ModelProbes` or `fit_position` refuse.
    """
    if reason := too_few_groups(len(set(run.questions()["group"])), cell.probes.folds):
        raise UserError(f"{run.folder}: {reason}")
    models, table = models or Models(), run.class_table()
    opened, features = CLASSES in cell.probes.targets and is_open(cell, table), None
    if opened or {BILINEAR, DENSITY} & set(cell.probes.rungs):
        features = features_of(cell, run, open_target(table).classes, models)
    if opened and (unfit := [rung for rung in cell.probes.rungs if rung not in (LINEAR, *OPEN_RUNGS)]):
        log.warning(
            "%s: %s not fitted to its classes, which are open: more than %.0f %% of the mass would be pooled, or "
            "probes.target is open; add %s, or set probes.target to closed",
            cell.label, ", ".join(unfit), 100 * MOST_POOLED, " or ".join(OPEN_RUNGS),
        )  # fmt: skip
    with_model = None
    if cell.probes.reads_model:
        with_model = ModelProbes.of(cell, run, models, tell)
    tables, losses = [pd.DataFrame(columns=[*COLUMNS, "position"])], [pd.DataFrame()]
    for position in probed_positions(cell):
        at = Probed.of(cell, run, position, features, opened=opened)
        if reason := too_few_groups(len(set(at.group)), cell.probes.folds):
            if cell.probes.activations:
                raise UserError(f"{cell.probes.activations}: of the questions that it has, {reason}")
            where = "%s: not probed at the position %s: of the questions that have it, %s"
            log.warning(where, cell.label, position, reason)
            continue
        if cell.probes.activations and (absent := int((~at.activations.present).sum())) > 0:
            where = "%s: %s has no activations of %d of the %d questions, which are left out"
            log.warning(where, cell.label, cell.probes.activations, absent, len(at.activations.present))
        found = fit_position(at)
        if position == LAST_PROMPT_TOKEN and with_model is not None:
            found += with_model.fit(at)
        if position == LAST_PROMPT_TOKEN:
            probe_confidence(at, run)
        if found:
            tables.append(table_of(found, position))
            losses.append(losses_of(found, position, at.table.questions))
    run.write_probe_losses(pd.concat(losses, ignore_index=True))
    # Last, because a run counts as probed once this file is there.
    run.write_probes(pd.concat(tables[1:] or tables, ignore_index=True))


def fit_position(at: Probed) -> list[Evaluation]:
    """Every target by every rung and baseline that the study asks for and that needs no model, at one position.

    A target that is the same for all questions is warned of; what is explained of it is 0 or NaN.

    Raises:
        UserError: a layer in `probes.rung_layers` that was not captured, naming the nearest.
    """
    probes, position = at.cell.probes, at.activations.position
    targets = [at.target(name) for name in at.closed]
    for target in [*targets, *([at.classes.target] if at.opened else [])]:
        if _constant(target):
            log.warning(
                "%s: target %s is the same for all %d questions that have the position %s: nothing to explain; ask "
                "other questions, draw more samples, or choose another B",
                at.cell.label, target.name, len(at.table), position,
            )  # fmt: skip
    if position == ALL_QUESTION_TOKENS:
        return list(_above(at, "question tokens"))
    layers, rows = Layers.stored(at.activations), list(_above(at, "layer"))
    if LINEAR in probes.rungs and targets:
        rows = [*at.fit_linear(targets, layers), *rows]
    if at.bilinear:
        rows.append(at.classes.evaluation(at.by_text))
    if CLASSES in probes.targets and at.opened:
        rows.append(at.classes.marginal())
    if CLASSES in probes.targets and DENSITY in probes.rungs:
        rows += [at.classes.density(at.activations.layer(layer), layer) for layer in _chosen(at)]
    if "tfidf" in probes.baselines:
        how = replace(at.how, penalties=TEXT_PENALTIES, permutations=0)
        if targets:
            rows += at.fit_linear(targets, at.texts, rung="baseline:tfidf", how=how)
        if at.opened:
            rows.append(at.classes.baseline("tfidf", at.texts))
    if "other-model" in probes.baselines and position == LAST_PROMPT_TOKEN:
        rows += at.fit_baseline(probes.targets, "other-model", layers_of_other(at))
    # Target by target, as tables show them.
    return [e for name in probes.targets for e in rows if e.frame["target"].iloc[0] == name]


def _constant(target: Target | OpenTarget) -> bool:
    if isinstance(target, OpenTarget):
        return target.one_class
    if isinstance(target, ClassTarget):
        return bool((target.distribution == target.distribution[0]).all())
    return np.ptp(target.values) == 0


def _above(at: Probed, reads: str) -> Iterator[Evaluation]:
    """The rungs above the linear one that read a layer at one token, or at all tokens of the question."""
    cell = at.cell
    rungs = [rung for rung in cell.probes.rungs if rung != LINEAR and rung in rungs_reading(reads)]
    given = Given(at.table.m, cell.seed, at.how.device)
    for layer in _chosen(at) if rungs else ():
        X: Any = at.activations.layer(layer)
        if reads == "question tokens":
            X = Segments.of(X, at.activations.rows[at.activations.present])
        for rung in rungs:
            for name in (t for t in at.closed if t not in SCALARS):
                yield at.fit_rung(name, Candidates(rung, candidates(rung, given)), X, layer=layer)


def _chosen(at: Probed) -> tuple[str, ...]:
    """The layers that rungs above the linear one are fitted at: those asked for, or the middle one and the last."""
    names = at.activations.layers
    if not at.cell.probes.rung_layers:
        return tuple(dict.fromkeys((names[len(names) // 2], names[-1])))
    try:
        return Layers.stored(at.activations).only(at.cell.probes.rung_layers).names
    except ValueError as error:
        raise UserError(f"probes.rung_layers: {error}") from None


def table_of(evaluations: Sequence[Evaluation], position: str) -> pd.DataFrame:
    """The rows of all evaluations at a position; for each target also those of what they are read against, the marginal
    and the candidate-only model."""
    rows = [e.frame for e in evaluations if e.frame["rung"].iloc[0] != f"{BASELINE}{MARGINAL}"]
    first = {(str(e.frame["target"].iloc[0]), e.against): e for e in reversed(evaluations)}
    rows += [baseline_row(e) for e in reversed(first.values())]
    return pd.concat(rows, ignore_index=True).assign(position=position)


def losses_of(evaluations: Sequence[Evaluation], position: str, ids: Sequence[str]) -> pd.DataFrame:
    """Held-out nats for the target "classes": one row per question, rung and layer. Gaps as in `KLGap`."""
    frames = []
    for e in (e for e in evaluations if e.frame["target"].iloc[0] == CLASSES):
        for (_, row), losses, gap in zip(e.frame.iterrows(), e.losses, e.gaps[:-1], strict=True):
            own = {"position": position, "rung": row["rung"], "layer": row["layer"], "question_id": list(ids)}
            nats = {"baseline_nats": e.baseline, "probe_nats": losses}
            nats |= {"gap_nats": gap.per_question, "gap_top_nats": gap.top_per_question}
            frames.append(pd.DataFrame(own | {name: values.astype(np.float32) for name, values in nats.items()}))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame()
