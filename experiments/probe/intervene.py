"""Interventions on a finished run: its model is loaded again and changed while it reads the prompts.

The answers sampled under each intervention are kept in the run's `interventions/`, and what they show is one row of
`rows.parquet`. Both are written as soon as an intervention is finished. Settings of the analysis never delete answers:
another B or other calibration settings are applied to the stored ones (`remeasure`).
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd

from experiments.config.collapsing_functions import collapse_of
from experiments.config.run_folder import check_has_samples, stored_cell
from experiments.config.study import Cell
from experiments.probe.intervention_plan import LEFT_ALONE, Fitting, Halves, Wanted, conditions
from experiments.sample.asked import form_of
from experiments.sample.models import Models
from experiments.score.score import readable_texts
from probes.interventions.edits import Intervention, intervene
from probes.interventions.effects import against_random, effect
from semcal.errors import UserError, nearest
from semcal.models.checkpoint import LanguageModel
from semcal.positions import ALL_QUESTION_TOKENS, LAST_PROMPT_TOKEN, in_answer, of_question
from semcal.questions.prompts import question_span
from semcal.questions.question import Question
from semcal.runs.files import content_key
from semcal.runs.made_by import again
from semcal.runs.run import Run
from semcal.sampling.records import Prompt, Sampling
from semcal.semantics.class_table import ClassTable
from semcal.semantics.collapsing.collapse import Collapse, collapse_blind

SAME, OTHER = "same seed", "another seed"  # the model left alone: is the run reproduced, and what does finite M do
LABELS = ("key", "context", "fitted_to", "kind", "position", "hook", "name", "rank", "size", "control", "draw")
LABELS += ("readable", "overlap", "change")
KEPT = ("question_id", "text", "count", "logprob", "finish")  # of the answers under an intervention
log = logging.getLogger(__name__)


def intervene_run(
    run: Run,
    wanted: Wanted,
    *,
    layers: Sequence[str] = (),
    position: str = LAST_PROMPT_TOKEN,
    n: int = 300,
    tell: Callable[[Cell, str], None] = lambda *_: None,
) -> pd.DataFrame:
    """Intervene on a run; returns the rows of this call, which are part of `run.interventions()`.

    Probes are fitted on the stored activations of half of the question groups; up to n questions of the other half are
    asked again with the run's own seeds, first with the model left alone, then under each intervention. What was
    sampled before is not sampled again, even where B has changed since: `fitted_to` names the B whose classes a probe
    was fitted to.

    Args:
        layers: numbers of blocks, or hook names; none: the last one that was captured.
        position: where activations were read and are changed; at `question_mean` the probe reads the mean of the
            question's tokens, and each of them is changed.
        n: questions to change, at most.
        tell: hears of progress.

    Raises:
        UserError: a run that is served, enumerated, unfinished or without activations; a layer that was not captured;
            other weights than the run's.
    """
    cell = stored_cell(run)
    hooks = _check(cell, run, layers, position)
    table = run.class_table()
    halves = Halves.of(table.groups.tolist(), n, cell.seed)
    context = content_key(run.manifest()["samples_key"], halves.fit.tolist(), halves.changed.tolist())
    common = {"context": context, "fitted_to": run.calibration()["semantics"]}
    planned = [_Planned.alone(name, common, halves) for name in (SAME, OTHER)]
    stored, settings = run.activations(position), common | {"kind": wanted.kind, "position": position}
    for hook in hooks:
        tell(cell, f"fitting a probe at {hook}")
        of = Fitting(table, stored.layer(hook), halves, cell.probes.max_classes, cell.seed)
        for c in conditions(wanted, hook, of):
            planned.append(_Planned(settings | {"hook": hook} | c.labels, (c.made,), tuple(c.questions.tolist())))

    rows, base = remeasure(cell, run), planned[0].key
    there = set() if rows.empty else {key for key in rows["key"] if not run.intervened(key).empty}
    todo = [p for p in planned if p.key not in there]
    if todo:
        tell(cell, "loading the model")
        session, measuring = _Session.of(cell, run, position), _Measuring.of(cell, run)
        for done, (what, answers, change) in enumerate(session.sampled(todo), start=1):
            run.write_intervened(what.key, answers)
            labels = {"key": what.key} | what.labels | {"change": change, "m": session.settings.m}
            new = pd.DataFrame([measuring.row(labels, base)])
            rows = against_random(pd.concat([rows, new], ignore_index=True))
            run.write_interventions(rows)
            tell(cell, f"intervening, {done} of {len(todo)}")
    rows = rows.loc[rows["key"].isin([p.key for p in planned]), :].reset_index(drop=True)
    if len(other := set(rows["fitted_to"]) - {common["fitted_to"]}):
        log.warning(
            "%s: probes were fitted to the classes of %s, and effects are measured by %s; delete %s/interventions to "
            "fit and sample them again", cell.label, ", ".join(sorted(other)), common["fitted_to"], run.folder,
        )  # fmt: skip
    return rows


def _check(cell: Cell, run: Run, layers: Sequence[str], position: str) -> list[str]:
    """The hooks to write at, where the run allows interventions."""
    if cell.model.is_served:
        raise UserError(
            f"{run.folder}: {cell.model.name} is served, and a server's computation cannot be changed; intervene on a "
            "run of a local checkpoint"
        )
    if cell.enumerated:
        raise UserError(
            f"{run.folder} was enumerated, but interventions need samples; run its study without sampling.exact"
        )
    check_has_samples(run)
    if not run.sampled or not run.calibration():
        raise UserError(f"{run.folder} is not finished; {again(run.folder)} first")
    if not cell.capture.positions:
        raise UserError(f"{run.folder} has no activations; run its study under another name with capture.positions set")
    if in_answer(position) or position == ALL_QUESTION_TOKENS:
        raise UserError(f"{position} cannot be changed; expected a position in the prompt with one row per question")
    there = run.activations(position).layers
    return [_captured(layer, there, run) for layer in layers or [there[-1]]]


def _captured(layer: str, there: Sequence[str], run: Run) -> str:
    hook = f"blocks.{layer}.hook_resid_post" if layer.isdigit() else layer
    if hook in there:
        return hook
    blocks = [int(found[1]) for name in there if (found := re.fullmatch(r"blocks\.(\d+)\.hook_resid_post", name))]
    if layer.isdigit() and blocks:
        offer = f", the nearest is {min(blocks, key=lambda b: abs(b - int(layer)))}"
    else:
        offer = nearest(hook, there)
    raise UserError(f"layer {layer} was not captured in {run.folder}{offer}; captured are {', '.join(there)}")


@dataclass(frozen=True)
class _Planned:
    """A row to come: labels, what is done, and to which questions."""

    labels: dict[str, Any]
    made: tuple[Intervention, ...]
    questions: tuple[int, ...]

    @classmethod
    def alone(cls, name: str, common: dict[str, Any], halves: Halves) -> _Planned:
        labels = common | {"kind": LEFT_ALONE, "position": "", "hook": "", "name": name, "rank": 0}
        labels |= {"size": 0.0, "control": "", "draw": 0, "readable": np.nan, "overlap": np.nan}
        return cls(labels, (), tuple(halves.changed.tolist()))

    @property
    def key(self) -> str:
        named = ("context", "kind", "name", "hook", "position", "rank", "size", "control", "draw")
        return content_key([self.labels[name] for name in named])


@dataclass(frozen=True)
class _Session:
    """A run's model, loaded again; lists are over all questions of the run."""

    cell: Cell
    model: LanguageModel
    prompts: list[Prompt]
    where: dict[str, range] | None
    settings: Sampling

    @classmethod
    def of(cls, cell: Cell, run: Run, position: str) -> _Session:
        """
        Raises:
            UserError: other weights, or another tokenizer, than the run's.
        """
        model, manifest = Models().of_run(cell, run), run.manifest()
        prompts = [Prompt(key, ids) for key, ids in zip(run.questions()["id"], run.prompt_ids(), strict=True)]
        settings = Sampling(**manifest["sampling"] | {"stop": tuple(manifest["sampling"]["stop"])})
        where = None if position == LAST_PROMPT_TOKEN else _question_tokens(cell, run, model, position)
        return cls(cell, model, prompts, where, settings)

    def sampled(self, todo: Sequence[_Planned]) -> Iterator[tuple[_Planned, pd.DataFrame, float]]:
        """(what was done, the answers, mean norm of the change), as each is finished."""
        for (other, questions), some in groupby(todo, key=lambda p: (p.labels["name"] == OTHER, p.questions)):
            settings = replace(self.settings, seed=self.settings.seed + 1) if other else self.settings
            by_key = {p.key: p for p in some}
            # Neighbours of similar length waste the least padding.
            prompts = sorted((self.prompts[i] for i in questions), key=lambda p: len(p.ids))
            where = None if self.where is None else {p.key: self.where[p.key] for p in prompts}
            conditions = {key: planned.made for key, planned in by_key.items()}
            for found in intervene(
                self.model, prompts, settings, conditions, where=where, max_rows=self.cell.sampling.max_rows
            ):
                rows = [(q, a.text, a.count, a.logprob, a.finish) for q, said in found.answers.items() for a in said]
                yield by_key[found.condition], pd.DataFrame(rows, columns=list(KEPT)), found.change


@dataclass(frozen=True)
class _Measuring:
    """How the answers under an intervention are read and compared: by the run's B, with its calibration settings."""

    cell: Cell
    run: Run
    collapse: Collapse
    questions: dict[str, Question]

    @classmethod
    def of(cls, cell: Cell, run: Run) -> _Measuring:
        questions = {q.id: q for q in run.question_records()}
        return cls(cell, run, collapse_of(cell.semantics, run.aliases()), questions)

    @property
    def settings(self) -> str:
        """Changes when a row must be measured again."""
        how = self.cell.calibration
        return content_key(self.cell.semantics.model_dump(), how.bootstrap, how.null_draws, how.level)

    def row(self, labels: Mapping[str, Any], base: str) -> dict[str, Any]:
        """A row measured from stored answers; `base` is the key of those of the model left alone."""
        kept = {name: labels[name] for name in (*LABELS, "m")}
        unchanged = labels["name"] == SAME
        before = self.run.samples().astype({"count": int}) if unchanged else self.run.intervened(base)
        measured = self._effect(before, self.run.intervened(labels["key"]), resampled=not labels["control"])
        return kept | {"settings": self.settings} | measured

    def _effect(self, before: pd.DataFrame, after: pd.DataFrame, *, resampled: bool) -> dict[str, Any]:
        """Both sets of answers are read by B together, so that what they share is one class."""
        sides = [dict(iter(side.groupby("question_id", sort=False))) for side in (before, after)]
        questions = [q for q in self.questions.values() if q.id in sides[1]]
        pairs = [(sides[0][q.id], sides[1][q.id]) for q in questions]
        texts = [[text for rows in pair for text in readable_texts(rows, self.cell.style)] for pair in pairs]
        found = collapse_blind(self.collapse, questions, texts, self.cell.style)
        ids, groups, gold = [q.id for q in questions], [q.group for q in questions], [b.gold for b in found]
        parts = [(b.classes[: len(a)], b.classes[len(a) :]) for b, (a, _) in zip(found, pairs, strict=True)]
        first, second = (
            ClassTable.of_answers(ids, groups, classes, [list(pair[side]["count"]) for pair in pairs], gold)
            for side, classes in enumerate(zip(*parts, strict=True))
        )
        resampling = self.cell.calibration.resampling(self.cell.seed)
        return effect(first, second, resampling=resampling, intervals=resampled)


def remeasure(cell: Cell, run: Run) -> pd.DataFrame:
    """The rows of `run.interventions()`; those measured by another B or with other calibration settings are measured
    again from their stored answers, without the model, and written."""
    rows = run.interventions()
    if rows.empty:
        return rows
    measuring = _Measuring.of(cell, run)
    records = rows.to_dict("records")
    stale = [row["settings"] != measuring.settings for row in records]
    if not any(stale):
        return rows
    base = {row["context"]: row["key"] for row in records if row["name"] == SAME}
    new = [measuring.row(r, base[r["context"]]) if old else r for r, old in zip(records, stale, strict=True)]
    rows = against_random(pd.DataFrame(new))
    run.write_interventions(rows)
    return rows


def _question_tokens(cell: Cell, run: Run, model: LanguageModel, position: str) -> dict[str, range]:
    """Question id -> the tokens of its prompt to change."""
    rendered = form_of(cell).rendered
    found = {}
    for question, text in zip(run.question_records(), run.questions()["prompt"], strict=True):
        start, stop = question_span(text, question, cell.style)
        found[question.id] = of_question(position, model.tokens_at(text, start, stop, rendered=rendered))
    return found
