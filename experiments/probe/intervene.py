"""Interventions on a finished run: its model is loaded again and changed while it reads, and what that does to its
answers goes into `interventions.parquet`, row by row, so that what was finished is kept.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Any

import numpy as np
import pandas as pd

from experiments.config.collapsing_functions import collapse_of
from experiments.config.study import Cell
from experiments.pipeline.cell import stored_cell
from experiments.probe.intervention_plan import LEFT_ALONE, Condition, Halves, Material, Wanted, conditions
from experiments.sample.models import Models
from experiments.score.read_answers import readable
from probes.interventions.edits import Intervention, intervene
from probes.interventions.effects import against_random, effect
from semcal.errors import UserError, nearest
from semcal.models.checkpoint import LanguageModel
from semcal.positions import ALL_QUESTION_TOKENS, LAST_PROMPT_TOKEN, in_answer, of_question
from semcal.questions.prompts import question_span
from semcal.questions.question import CONTINUATION, Question
from semcal.runs.run import Run, content_key
from semcal.sampling.records import Prompt, Sampling
from semcal.semantics.collapsing.collapse import Collapse
from semcal.semantics.distribution import ClassDistribution

SAME, OTHER = "same seed", "another seed"  # the model left alone: is the run reproduced, and what does finite M do

# question id -> its distinct answers: text, count, finish
Answers = Mapping[str, pd.DataFrame]


def intervene_run(
    run: Run,
    wanted: Wanted,
    *,
    layers: Sequence[str] = (),
    position: str = LAST_PROMPT_TOKEN,
    n: int = 300,
    tell: Callable[[Cell, str], None] = lambda *_: None,
) -> pd.DataFrame:
    """Intervene on a run; returns the rows of this call, which also stand in `run.interventions()`.

    Probes are fitted on the stored activations of half of the question groups; up to n questions of the other half are
    asked again, with the run's own seeds, by the model left alone, and under each intervention. Only what is not there
    already is done.

    Args:
        layers: Numbers of blocks, or hook names; none is the last one that was captured.
        position: Where activations were read and are changed; at `question_mean` the probe reads the mean of the
            question's tokens, and each of them is changed.

    Raises:
        UserError: a run that is served, enumerated, not finished or without activations; a layer that was not captured;
            other weights than the run's.
    """
    cell = stored_cell(run)
    hooks = _check(cell, run, layers, position)
    table = run.questions()
    group = [str(g) for g in table["group"]]
    halves = Halves.of(group, n, cell.seed)
    context = content_key(
        run.manifest()["samples_key"], cell.semantics.model_dump(), halves.fit.tolist(), halves.changed.tolist()
    )
    common = {"context": context, "kind": wanted.kind, "position": position}
    planned = [_Planned.alone(name, context, halves) for name in (SAME, OTHER)]
    masses = run.class_table().distributions
    for hook in hooks:
        tell(cell, f"fitting a probe at {hook}")
        values = run.activations(position, [hook]).values[:, 0]
        of = Material(
            list(table["id"]), group, values, masses, cell.sampling.m, cell.probes.max_classes, halves, cell.seed
        )
        planned += [_Planned.of(c, common | {"hook": hook}) for c in conditions(wanted, hook, of)]

    rows = run.interventions()
    there = set() if rows.empty else set(rows["key"])
    todo = [p for p in planned if p.key not in there]
    if todo:
        tell(cell, "loading the model")
        session = _Session.of(cell, run, position)
        for done, row in enumerate(session.measured(todo, halves), start=1):
            rows = against_random(pd.concat([rows, pd.DataFrame([row])], ignore_index=True))
            run.write_interventions(rows)
            tell(cell, f"intervening, {done} of {len(todo)}")
    of_this_call = rows["key"].isin([p.key for p in planned])
    return rows.loc[of_this_call, :].reset_index(drop=True)


def _check(cell: Cell, run: Run, layers: Sequence[str], position: str) -> list[str]:
    """The hooks to write at.

    Raises:
        UserError: see `intervene_run`.
    """
    if cell.model.is_served:
        raise UserError(f"{run.folder}: {cell.model.name} is served, and what a server computes cannot be changed")
    if cell.sampling.exact is not None:
        raise UserError(f"{run.folder} was enumerated; interventions sample, so run its study without sampling.exact")
    if not run.sampled or not run.calibration():
        raise UserError(f"{run.folder} is not finished; `semcal run` its study first")
    if not cell.capture.positions:
        raise UserError(f"{run.folder} has no activations; run its study under another name with capture.positions set")
    if in_answer(position) or position == ALL_QUESTION_TOKENS:
        raise UserError(f"{position} cannot be changed; a position with one row a question, in the prompt, can")
    there = run.activation_layers(position)
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
    raise UserError(f"layer {layer} was not captured in {run.folder}{offer}; there is {', '.join(there)}")


@dataclass(frozen=True)
class _Planned:
    """A row to come: what it will be called, what is done, to which questions."""

    labels: dict[str, Any]
    made: tuple[Intervention, ...]
    questions: tuple[int, ...]

    @classmethod
    def of(cls, condition: Condition, common: dict[str, Any]) -> _Planned:
        return cls(common | condition.labels, (condition.made,), tuple(condition.questions.tolist()))

    @classmethod
    def alone(cls, name: str, context: str, halves: Halves) -> _Planned:
        labels = {"context": context, "kind": LEFT_ALONE, "position": "", "hook": "", "name": name, "rank": 0}
        labels |= {"size": 0.0, "control": "", "draw": 0, "readable": np.nan, "overlap": np.nan}
        return cls(labels, (), tuple(halves.changed.tolist()))

    @property
    def key(self) -> str:
        named = ("context", "kind", "name", "hook", "position", "rank", "size", "control", "draw")
        return content_key([self.labels[name] for name in named])


@dataclass(frozen=True)
class _Session:
    """A run's model, loaded again, and what it is asked; lists are over all questions of the run."""

    cell: Cell
    run: Run
    model: LanguageModel
    collapse: Collapse
    questions: list[Question]
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
        questions = run.question_records()
        prompts = [Prompt(q.id, ids) for q, ids in zip(questions, run.prompt_ids(), strict=True)]
        settings = Sampling(**manifest["sampling"] | {"stop": tuple(manifest["sampling"]["stop"])})
        where = None if position == LAST_PROMPT_TOKEN else _question_tokens(cell, run, model, position)
        collapse = collapse_of(cell.semantics, run.aliases())
        return cls(cell, run, model, collapse, questions, prompts, where, settings)

    def measured(self, todo: Sequence[_Planned], halves: Halves) -> Iterator[dict[str, Any]]:
        """A row for each, as it is finished."""
        ((_, base, _),) = self._asked(self.settings, {"": ()}, halves.changed.tolist())
        for planned in todo:
            if planned.labels["name"] == SAME:
                samples = self.run.samples().astype({"count": int})
                own = {str(key): its for key, its in samples.groupby("question_id", sort=False)}
                yield self._row(planned, own, base, 0.0)
            elif planned.labels["name"] == OTHER:
                other = replace(self.settings, seed=self.settings.seed + 1)
                ((_, again, _),) = self._asked(other, {"": ()}, planned.questions)
                yield self._row(planned, base, again, 0.0)
        of_interest = [p for p in todo if p.made]
        for questions, some in groupby(of_interest, key=lambda p: p.questions):
            by_key = {p.key: p for p in some}
            for key, answers, change in self._asked(self.settings, {k: p.made for k, p in by_key.items()}, questions):
                yield self._row(by_key[key], base, answers, change)

    def _asked(
        self, settings: Sampling, conditions: Mapping[str, Sequence[Intervention]], questions: Sequence[int]
    ) -> Iterator[tuple[str, Answers, float]]:
        """(condition, answers, mean norm of the change), in order."""
        # Neighbours of similar length waste the least padding.
        prompts = sorted((self.prompts[i] for i in questions), key=lambda p: len(p.ids))
        where = None if self.where is None else {p.key: self.where[p.key] for p in prompts}
        for found in intervene(
            self.model, prompts, settings, conditions, where=where, max_rows=self.cell.sampling.max_rows
        ):
            yield found.condition, {k: pd.DataFrame(its) for k, its in found.answers.items()}, found.change

    def _row(self, planned: _Planned, before: Answers, after: Answers, change: float) -> dict[str, Any]:
        """Both sets of answers are read by B together, so that what they share is one class."""
        asked = [self.questions[i] for i in planned.questions]
        pairs = [(before[q.id], after[q.id]) for q in asked]
        texts = [[text for its in pair for text in readable(its, self.cell.style)] for pair in pairs]
        first, second = [], []
        for (a, b), found in zip(pairs, self.collapse.collapse(asked, texts, self.cell.style), strict=True):
            first.append(ClassDistribution.of(found.classes[: len(a)], a["count"].tolist(), found.gold))
            second.append(ClassDistribution.of(found.classes[len(a) :], b["count"].tolist(), found.gold))
        settings = self.cell.calibration
        measured = effect(
            first,
            second,
            [q.group for q in asked],
            draws=0 if planned.labels["control"] else settings.bootstrap,
            null_draws=settings.null_draws,
            level=settings.level,
            seed=self.cell.seed,
        )
        return {"key": planned.key} | planned.labels | {"change": change, "m": self.settings.m} | measured


def _question_tokens(cell: Cell, run: Run, model: LanguageModel, position: str) -> dict[str, range]:
    """Question id -> the tokens of its prompt to change."""
    rendered = cell.style != CONTINUATION and cell.model.prompt == "chat"
    found = {}
    for question, text in zip(run.question_records(), run.questions()["prompt"], strict=True):
        start, stop = question_span(text, question, cell.style)
        found[question.id] = of_question(position, model.tokens_at(text, start, stop, rendered=rendered))
    return found
