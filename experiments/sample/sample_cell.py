"""Sampling and capturing a cell: from its prompts to shards on disk, for local and served models."""

from __future__ import annotations

import resource
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from experiments.sample.job import SamplingJob
from experiments.sample.prompting import Answerer, Asked
from probes.activations.capture import Places, ResidualCapture
from probes.activations.chains import Chain, choose, read_chains
from semcal.answers import Answer, in_words, stop_rule
from semcal.errors import NonFiniteError, UserError
from semcal.models.checkpoint import LanguageModel
from semcal.positions import LAST_PROMPT_TOKEN, in_answer, of_question
from semcal.runs.run import Shard
from semcal.sampling.decoders import shared_prefix
from semcal.sampling.engine import SHARED, Sampler
from semcal.sampling.enumeration import SearchLimits, enumerate_answers

if TYPE_CHECKING:  # it needs the extra `serve`
    from semcal.models.served import ServedModel

Rows = list[dict[str, Any]]
# Answers questions of a shard; yields (question id, rows of its distinct answers) as they are finished.
Ask = Callable[[str, Sequence[Asked]], Iterator[tuple[str, Rows]]]


def sample_cell(job: SamplingJob, model: Answerer, on_answered: Callable[[int], None]) -> None:
    """Sample and capture every missing shard; each is written to disk as soon as it is finished.

    Shards are sampled one at a time, so that the batches do not depend on where a run was interrupted, and a resumed
    run ends with exactly the same tables.

    Raises:
        NonFiniteError: NaN or infinity, naming model, question and layer; completed shards are saved.
        UserError: out of memory, or a server fails; completed shards are saved.
    """
    by_id = {a.question.id: a for a in job.asked}
    local = isinstance(model, LanguageModel)
    capturing = Capturing(job, model) if local and job.cell.capture.positions else None
    work: dict[str, Any] = {}
    began = time.monotonic()
    try:
        ask = _asker(job, model, capturing, on_answered, work)
        for shard in (s for s in job.shards if s.key in set(job.todo)):
            # Sorting by length saves padding and does not change the samples.
            asked = sorted((by_id[q] for q in shard.question_ids), key=lambda a: len(a.prompt.ids))
            rows = dict(ask(shard.key, asked))
            if capturing is not None:
                capturing.write(shard, by_id, rows)
            job.run.write_samples(shard.key, [row for q in shard.question_ids for row in rows[q]])
    except NonFiniteError as error:
        raise NonFiniteError(
            f"model {job.cell.model.name}: {error}; try dtype float32 (now {job.cell.model.dtype}); "
            "completed shards are saved"
        ) from error
    except UserError as error:
        raise UserError(f"{job.cell.label}: {error}; completed shards are saved") from error
    finally:
        manifest = job.run.manifest()
        manifest["sampling_seconds"] = manifest.get("sampling_seconds", 0.0) + time.monotonic() - began
        manifest["sampling_work"] = [*manifest["sampling_work"], work | _peak_memory(model)]
        job.run.write_manifest(manifest)


def _peak_memory(model: Answerer) -> dict[str, int]:
    """Peak memory of this process so far and, on a GPU, of its tensors; in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"peak_process_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if isinstance(model, LanguageModel) and model.device.type == "cuda":
        devices = range(torch.cuda.device_count())
        peak["peak_gpu_bytes"] = sum(torch.cuda.max_memory_allocated(d) for d in devices)
    return peak


def _asker(
    job: SamplingJob,
    model: Answerer,
    capturing: Capturing | None,
    on_answered: Callable[[int], None],
    work: dict[str, Any],
) -> Ask:
    """How this cell gets answers: a server, exact enumeration or the sampler. `work` is updated with what was done."""
    if not isinstance(model, LanguageModel):
        return _ask_server(job, model, on_answered, work)
    settings, exact = job.settings, job.cell.sampling.exact
    rule = stop_rule(model, settings.stop)
    observer, first_token = (capturing.observer, capturing.first_token) if capturing else (None, None)
    if exact:
        work.update(path=SHARED, rows_decoded=0)

        def enumerate_all(_: str, asked: Sequence[Asked]) -> Iterator[tuple[str, Rows]]:
            prompts = [a.prompt for a in asked]
            for found in enumerate_answers(
                model.model,
                prompts,
                settings,
                rule,
                limits=SearchLimits(exact.epsilon, exact.row_budget),
                prefix=prompts[0].ids[: shared_prefix(prompts)][:first_token],
                observer=observer,
                on_answered=on_answered,
            ):
                work["rows_decoded"] += found.rows
                yield found.key, _rows(found.key, in_words(model, found, settings.stop))

        return enumerate_all
    prompts = [a.prompt for a in job.asked]  # those of finished shards too: a resumed run shares the same prefix
    sampler = Sampler(
        model.model,
        settings,
        rule,
        device=model.device,
        max_rows=job.cell.sampling.max_rows,
        prefix=prompts[0].ids[: shared_prefix(prompts)][:first_token],
    )

    def sample_all(_: str, asked: Sequence[Asked]) -> Iterator[tuple[str, Rows]]:
        for answered in sampler.sample([a.prompt for a in asked], observer, on_answered):
            work.update(asdict(sampler.work))
            yield answered.key, _rows(answered.key, in_words(model, answered, settings.stop))

    return sample_all


def _ask_server(job: SamplingJob, model: ServedModel, on_answered: Callable[[int], None], work: dict[str, Any]) -> Ask:
    """Each question is written to disk as soon as it is answered: asking again costs time and perhaps money."""

    def ask(shard: str, asked: Sequence[Asked]) -> Iterator[tuple[str, Rows]]:
        kept = job.run.partial(shard)
        yield from kept.items()
        on_answered(len(kept))
        left = [(a.question.id, a.text) for a in asked if a.question.id not in kept]
        for key, answers in model.answer(left, job.settings, on_answered):
            work.update(asdict(model.work))
            rows = _rows(key, answers)
            job.run.append_partial(shard, key, rows)
            yield key, rows

    return ask


def _rows(question_id: str, answers: Sequence[Answer]) -> Rows:
    return [
        {
            "question_id": question_id,
            "text": answer.text,
            "token_ids": list(answer.ids),
            "count": answer.count,
            "logprob": answer.logprob,
            "finish": answer.finish,
        }
        for answer in answers
    ]


# ---- activations -----------------------------------------------------------------------------------------------------


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
