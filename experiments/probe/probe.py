"""Probes of a run: every target by every rung and baseline that its study names, at every position captured.

Rungs and baselines that read the model itself are in `experiments.probe.with_model`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch

from experiments.config.study import Cell
from experiments.sample.models import Models
from probes.activations.foreign import ForeignActivations
from probes.activations.layers import Layers
from probes.evaluation.baselines import TEXT_PENALTIES, Texts, marginal_row
from probes.evaluation.folds import too_few_groups
from probes.evaluation.layerwise import CrossValidation, Source, Target, evaluate_all
from probes.evaluation.result import COLUMNS, LINEAR, Evaluation
from probes.evaluation.rungwise import Candidates, evaluate_rung, out_of_fold
from probes.probe_confidence import Cost, confidence_row, probe_answer, sampled_row
from probes.rungs.networks import Segments
from probes.rungs.registry import Given, candidates, rungs_reading
from probes.targets.closed import ClassTarget, class_target, ranked_target, share_target
from probes.targets.scalars import SCALARS, b_confidence, mode_correctness, mode_share, scalar_target
from semcal.calibration.resampling import Resampling
from semcal.errors import UserError
from semcal.models.checkpoint import pick_device
from semcal.positions import ALL_QUESTION_TOKENS, LAST_PROMPT_TOKEN
from semcal.runs.run import Run
from semcal.runs.stored_activations import StoredActivations
from semcal.semantics.class_table import ClassTable

CLASSES = "classes"
log = logging.getLogger(__name__)


def probe(cell: Cell, run: Run, models: Models | None = None) -> None:
    """Fit probes on the captured activations to the classes that `score` found; writes probes.parquet and, per
    question, probe_losses.parquet.

    A position is probed on the questions that have it, if they make enough groups. At the last prompt token the probe's
    confidence is measured, too (`probe_confidence`), and rungs and baselines that read the run's model are fitted:
    `models` are asked for it, if there is one of them.

    Raises:
        UserError: fewer groups of questions than folds; a device that is not available; what `ModelProbes` or
            `fit_position` refuse.
    """
    if reason := too_few_groups(len(set(run.questions()["group"])), cell.probes.folds):
        raise UserError(f"{run.folder}: {reason}")
    with_model = None
    if cell.probes.reads_model:
        from experiments.probe.with_model import ModelProbes  # it fits by the functions of this module

        with_model = ModelProbes.of(cell, run, models or Models())
    tables, losses = [pd.DataFrame(columns=[*COLUMNS, "position"])], [pd.DataFrame()]
    for position in probed_positions(cell):
        at = Probed.of(cell, run, position)
        if reason := too_few_groups(len(set(at.group)), cell.probes.folds):
            where = "%s: not probed at the position %s: of the questions that have it, %s"
            log.warning(where, cell.label, position, reason)
            continue
        if cell.probes.activations and (absent := int((~at.activations.present).sum())) > 0:
            where = "%s: %s has no activations of %d of the %d questions, which are left out"
            log.warning(where, cell.label, cell.probes.activations, absent, len(at.activations.present))
        found = fit_position(at)
        if position == LAST_PROMPT_TOKEN and with_model is not None:
            found += with_model.fit(at)
        if found:
            tables.append(table_of(found, position, with_marginal="marginal" in cell.probes.baselines))
            losses.append(losses_of(found, position, at.table.questions))
    run.write_probe_losses(pd.concat(losses, ignore_index=True))
    if LAST_PROMPT_TOKEN in probed_positions(cell):
        probe_confidence(cell, run)
    # Last, because a run counts as probed once this file is there.
    run.write_probes(pd.concat(tables[1:] or tables, ignore_index=True))


@dataclass(frozen=True)
class Probed:
    """The questions of a run that have a position, and what is read there.

    Attributes:
        table, questions: their classes, and their rows of `Run.questions`.
        activations: of all questions of the run that have the position, read from disk layer by layer.
    """

    cell: Cell
    table: ClassTable
    questions: pd.DataFrame
    activations: StoredActivations | ForeignActivations

    @classmethod
    def of(cls, cell: Cell, run: Run, position: str) -> Probed:
        activations = activations_of(cell, run, position)
        rows = np.flatnonzero(activations.present)
        return cls(cell, run.class_table().select(rows), run.questions().iloc[rows], activations)

    @property
    def group(self) -> list[str]:
        return self.table.groups.tolist()

    @property
    def texts(self) -> Texts:
        return Texts.of(list(self.questions["text"]), list(self.questions["prompt_tokens"]))

    @property
    def how(self) -> CrossValidation:
        """How linear probes are cross-validated."""
        probes = self.cell.probes
        return CrossValidation(folds=probes.folds, permutations=probes.permutations, device=probe_device(probes.device))

    def target(self, name: str) -> Target:
        if name in SCALARS:
            return scalar_target(self.table, name, seed=self.cell.seed)
        return self.distribution(name)

    def distribution(self, name: str) -> ClassTarget:
        """A target that is a distribution."""
        if name == CLASSES:
            return class_target(self.table, max_classes=self.cell.probes.max_classes)
        if name == "ranked":
            return ranked_target(self.table)
        return share_target(mode_correctness(self.table), name=name, m=self.table.m)

    def fit_linear(
        self, targets: Sequence[Target], source: Source, *, rung: str = LINEAR, how: CrossValidation | None = None
    ) -> list[Evaluation]:
        """Linear probes of whatever can be read like layers; each layer is read once for all targets."""
        resampling = Resampling(seed=self.cell.seed)
        return evaluate_all(source, targets, group=self.group, how=how or self.how, resampling=resampling, rung=rung)

    def fit_rung(self, name: str, chosen_from: Candidates, X: Any, *, layer: str) -> Evaluation:
        """One target that is a distribution by one rung at one layer; see `evaluate_rung`."""
        resampling, target = Resampling(seed=self.cell.seed), self.distribution(name)
        return evaluate_rung(chosen_from, X, target, layer=layer, group=self.group, how=self.how, resampling=resampling)


def probed_positions(cell: Cell) -> list[str]:
    """Where a run is probed. Another tool's activations count as those at the last prompt token."""
    return [LAST_PROMPT_TOKEN] if cell.probes.activations else cell.capture.positions


def activations_of(cell: Cell, run: Run, position: str) -> StoredActivations | ForeignActivations:
    """What probes of a run read at a position: its own activations, or the file of another tool.

    Raises:
        UserError: as `Run.activations` and `ForeignActivations.open`.
    """
    if not cell.probes.activations:
        return run.activations(position)
    ids = run.questions()["id"].tolist()
    return ForeignActivations.open(Path(cell.probes.activations), ids, position=position)


def probe_device(name: str) -> str:
    """The device that probes are fitted on: "auto" is CUDA where it is available, else the CPU (they need float64).

    Raises:
        UserError: a device that is not available on this machine.
    """
    if name == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    return str(pick_device(name))


def fit_position(at: Probed) -> list[Evaluation]:
    """Every target by every rung and baseline that the study asks for and that needs no model, at one position.

    A target that is the same for all questions is warned of; what is explained of it is 0 or NaN.

    Raises:
        UserError: a layer in `probes.rung_layers` that was not captured, naming the nearest.
    """
    probes, position = at.cell.probes, at.activations.position
    targets = [at.target(name) for name in probes.targets]
    for target in targets:
        if _constant(target):
            log.warning(
                "%s: target %s is the same for all %d questions that have the position %s: nothing to explain; ask "
                "other questions, draw more samples, or choose another B",
                at.cell.label, target.name, len(at.table), position,
            )  # fmt: skip
    if position == ALL_QUESTION_TOKENS:
        return list(_above(at, "question tokens"))
    layers, rows = Layers.stored(at.activations), list(_above(at, "layer"))
    if LINEAR in probes.rungs:
        rows = [*at.fit_linear(targets, layers), *rows]
    if "tfidf" in probes.baselines:
        how = replace(at.how, penalties=TEXT_PENALTIES, permutations=0)
        rows += at.fit_linear(targets, at.texts, rung="baseline:tfidf", how=how)
    # Target by target, as tables show them.
    return [e for name in probes.targets for e in rows if e.frame["target"].iloc[0] == name]


def _constant(target: Target) -> bool:
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
            for name in (t for t in cell.probes.targets if t not in SCALARS):
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


def table_of(evaluations: Sequence[Evaluation], position: str, *, with_marginal: bool) -> pd.DataFrame:
    """The rows of all evaluations at a position; for each target also the marginal's, which explains nothing."""
    frames = [e.frame for e in evaluations]
    if with_marginal:
        first: dict[str, Evaluation] = {}
        for e in evaluations:
            first.setdefault(str(e.frame["target"].iloc[0]), e)
        frames += [marginal_row(e) for e in first.values()]
    return pd.concat(frames, ignore_index=True).assign(position=position)


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


def probe_confidence(cell: Cell, run: Run) -> None:
    """Confidence from samples, from a probe of the classes and from a probe of B-confidence; writes
    probe_confidence.parquet and, per question, what the class probe answers: probe_predictions.parquet.

    Both are linear, on the last layer at the last prompt token, fixed before looking; every question is predicted by
    probes that saw none of its group. Where classes are open (names, numbers), the class probe can answer only with
    those that many questions share (see `pooled`); then read the probe of B-confidence.

    Raises:
        UserError: nothing was captured at the last prompt token.
    """
    at = Probed.of(cell, run, LAST_PROMPT_TOKEN)
    table, X, group = at.table, at.activations.layer(at.activations.layers[-1]), at.group
    settings: dict[str, Any] = {"folds": cell.probes.folds, "seed": cell.seed}
    target = class_target(table, max_classes=cell.probes.max_classes)
    answer = probe_answer(out_of_fold(X, target.distribution, group, **settings), target.classes, table.gold_classes)
    scalar = share_target(b_confidence(table), name="b_confidence", m=table.m)
    sure = out_of_fold(X, scalar.distribution, group, **settings)[:, 0]
    sampling, probing = costs(run)
    measured: dict[str, Any] = {"table": table, "cost": probing, "resampling": cell.calibration.detail(cell.seed)}
    named = np.zeros(table.gold.shape, dtype=bool)
    for row, (labels, own) in enumerate(zip(table.classes, answer.labels, strict=True)):
        named[row, : len(labels)] = np.array(labels) == own
    of_classes: dict[str, Any] = {"agreement": mode_share(table, named), "pooled": target.pooled} | measured
    rows = [
        sampled_row(run.calibration(), sampling),
        confidence_row("class probe", answer.confidence, answer.correct, **of_classes),
        confidence_row("confidence probe", sure, table.by_count.correct, **measured),
    ]
    predicted = {"question_id": table.questions, "class": answer.labels}
    predicted |= {"confidence": answer.confidence, "correct": answer.correct}
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
