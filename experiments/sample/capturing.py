"""The activations of a cell: in prompts, as the sampler reads them, and along one answer to each question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from experiments.sample.job import SamplingJob
from experiments.sample.prompting import Asked
from probes.activations.capture import Places, ResidualCapture
from probes.activations.chains import Chain, choose, read_chains
from semcal.models.checkpoint import LanguageModel
from semcal.positions import LAST_PROMPT_TOKEN, in_answer, of_question
from semcal.runs.run import Shard

Rows = list[dict[str, Any]]


class Capturing:
    """Observes the prefills of a job, then reads answers, and writes activations shard by shard.

    Attributes:
        observer: For the sampler; None if nothing is captured in prompts.
        first_token: The first position that must be observed in any prompt, and so cannot be in the shared prefix.
    """

    def __init__(self, job: SamplingJob, model: LanguageModel) -> None:
        self.job, self.model = job, model
        captured = job.cell.capture
        self.in_prompt = [p for p in captured.positions if not in_answer(p)]
        self.in_answer = [p for p in captured.positions if in_answer(p)]
        where = {a.question.id: _places(a, self.in_prompt) for a in job.asked}
        self.observer = ResidualCapture(captured.hooks, where) if self.in_prompt else None
        self.first_token = first_watched(job.asked, captured.positions)

    def write(self, shard: Shard, asked: Mapping[str, Asked], rows: Mapping[str, Rows]) -> None:
        """Write the activations of a shard, given the samples of its questions.

        Raises:
            NonFiniteError: NaN or infinity, naming question and layer.
            UserError: a number too large for float16, naming question and layer.
        """
        found = {} if self.observer is None else {p: self.observer.take(shard.question_ids, p) for p in self.in_prompt}
        answer_rows = None
        if self.in_answer:
            chosen = [choose(_weights(rows[q]), self.job.cell.seed, q) for q in shard.question_ids]
            chains = [
                Chain(asked[q].prompt, tuple(rows[q][i]["token_ids"]), rows[q][i]["text"])
                if i >= 0
                else Chain(asked[q].prompt, (), "")
                for q, i in zip(shard.question_ids, chosen, strict=True)
            ]
            cell, forms = self.job.cell, self.job.run.aliases()
            how: dict[str, Any] = {"style": cell.style, "forms": forms, "hooks": cell.capture.hooks}
            found |= read_chains(self.model, chains, self.in_answer, **how)
            before = accumulate((len(rows[q]) for q in shard.question_ids[:-1]), initial=0)
            answer_rows = np.array([n + i if i >= 0 else -1 for n, i in zip(before, chosen, strict=True)])
        self.job.run.write_activations(shard.key, found, dtype=self.job.cell.capture.dtype, answer_rows=answer_rows)


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
