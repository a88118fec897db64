"""The activations of a cell, observed at the prefills of its questions and read in its answers, shard by shard."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import numpy as np

from experiments.sample.asked import Asked
from experiments.sample.sampling_job import SamplingJob
from probes.activations.capture import Places, ResidualCapture
from probes.activations.chains import Chain, choose, read_chains
from probes.activations.engine_capture import EngineCapture, readable_layers
from probes.activations.hooks import choose_hooks
from semcal.models.checkpoint import LanguageModel
from semcal.positions import LAST_PROMPT_TOKEN, in_answer, of_question
from semcal.runs.partial_shard import Rows
from semcal.runs.run import Shard
from semcal.runs.stored_activations import Activations, joined


class Capturing:
    """Observes the prefills of a job, then reads answers, shard by shard.

    Attributes:
        observer: For the sampler, which it watches or, of vLLM, is told what was read; None if nothing is captured in
            prompts.
        first_token: The first position that must be observed in any prompt, and so cannot be in the shared prefix.
    """

    def __init__(self, job: SamplingJob, model: LanguageModel) -> None:
        self.job, self.model = job, model
        captured = job.cell.capture
        self.in_prompt = [p for p in captured.positions if not in_answer(p)]
        self.in_answer = [p for p in captured.positions if in_answer(p)]
        # Where only answers are read, float16 still shows at the first prompts whether it holds these activations.
        self.watched = self.in_prompt or ([LAST_PROMPT_TOKEN] if captured.dtype == "float16" else [])
        self.where = {a.question.id: _places(a, self.watched) for a in job.asked}
        self.observer: ResidualCapture | EngineCapture | None = None
        if self.watched and job.cell.model.engine == "vllm":
            layers = readable_layers([hook.name for hook in choose_hooks(model.model, captured.hooks)])
            self.observer = EngineCapture(layers, self.where, captured.dtype)
        elif self.watched:
            self.observer = ResidualCapture(captured.hooks, self.where, captured.dtype)
        self.first_token = first_watched(job.asked, captured.positions)
        self._portions: list[Mapping[str, Activations]] = []  # of the shard that is being sampled

    def collect(self, shard: Shard, number: int, asked: Sequence[Asked], *, keep: bool) -> None:
        """Take what was observed of a portion; write it down if it is to be kept."""
        if self.observer is None:
            return
        keys = [a.question.id for a in asked]
        watched = {p: self.observer.take(keys, p) for p in self.watched}
        if isinstance(self.observer, EngineCapture):
            self.observer.forget(keys)
        found = {p: at for p, at in watched.items() if p in self.in_prompt}
        if keep and found:
            self.job.run.write_partial_activations(shard.key, number, keys, found)
        self._portions.append(found)

    def restore(self, shard: Shard, number: int, asked: Sequence[Asked]) -> bool:
        """Take what was written of a portion; whether it is there, for these questions."""
        if not self.in_prompt:
            return True
        found = self.job.run.partial_activations(shard.key, number, [a.question.id for a in asked])
        if found.keys() != set(self.in_prompt):
            return False
        self._portions.append(found)
        return True

    def take(self, shard: Shard, asked: Mapping[str, Asked], rows: Mapping[str, Rows]) -> Captured:
        """The activations of a shard, given the samples of its questions.

        Raises:
            NonFiniteError: NaN or infinity, naming question and layer.
        """
        portions, self._portions = self._portions, []
        found = {p: joined([portion[p] for portion in portions], shard.question_ids) for p in self.in_prompt}
        answer_rows, sequences = None, {q: asked[q].prompt.ids for q in shard.question_ids}
        if self.in_answer:
            chosen = [choose(_weights(rows[q]), self.job.cell.seed, q) for q in shard.question_ids]
            chains = [
                Chain(asked[q].prompt, tuple(rows[q][i]["token_ids"]), rows[q][i]["text"])
                if i >= 0
                else Chain(asked[q].prompt, (), "")
                for q, i in zip(shard.question_ids, chosen, strict=True)
            ]
            sequences = {c.prompt.key: (*c.prompt.ids, *c.answer) for c in chains}
            cell, forms = self.job.cell, self.job.run.aliases().closed
            how: dict[str, Any] = {"style": cell.style, "forms": forms, "hooks": cell.capture.hooks}
            found |= read_chains(self.model, chains, self.in_answer, **how)
            before = accumulate((len(rows[q]) for q in shard.question_ids[:-1]), initial=0)
            answer_rows = np.array([n + i if i >= 0 else -1 for n, i in zip(before, chosen, strict=True)])
        return Captured(found, answer_rows, sequences, self.where if self.in_prompt else {})


@dataclass(frozen=True)
class Captured:
    """The activations of a shard.

    Attributes:
        found: By position.
        answer_rows: [question] row, among the shard's samples, of the answer that was read; -1 for none; None where
            no position lies in the answer.
        sequences: For each question what was read: its prompt, and that answer after it.
        where: For each question the places that were to be read in its prompt; empty if none were.
    """

    found: Mapping[str, Activations]
    answer_rows: np.ndarray | None
    sequences: Mapping[str, tuple[int, ...]]
    where: Mapping[str, Places]


def first_watched(asked: Sequence[Asked], positions: Sequence[str]) -> int | None:
    """The first position of any prompt at which something is captured; None if nothing is captured in prompts."""
    in_prompt = [p for p in positions if not in_answer(p)]
    return min((min(places) for a in asked for places in _places(a, in_prompt).values()), default=None)


def _places(asked: Asked, positions: Sequence[str]) -> Places:
    last = len(asked.prompt.ids) - 1
    return {p: (last,) if p == LAST_PROMPT_TOKEN else of_question(p, asked.question_tokens) for p in positions}


def _weights(rows: Rows) -> list[float]:
    """Counts of samples, or the probabilities of enumerated answers."""
    return [float(np.exp(r["logprob"])) if r["count"] is None else float(r["count"]) for r in rows]
