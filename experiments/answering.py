"""Sampling and capturing a cell: from its prompts to shards on disk, whoever answers."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict
from typing import Any

from experiments.cell import SamplingJob
from experiments.prompting import Answerer, Asked
from probes.capture import ResidualCapture
from semcal.answers import Answer, enumerated_in_words, in_words, served_in_words, stop_rule
from semcal.errors import NonFiniteError, UserError
from semcal.models import LanguageModel
from semcal.sampling import SHARED, Sampler, enumerate_answers
from semcal.store import Shard

Answered = tuple[str, tuple[Answer, ...]]  # question id, its distinct answers


def sample_cell(job: SamplingJob, model: Answerer, on_answered: Callable[[int], None]) -> None:
    """Sample and capture every missing shard; a shard is on disk as soon as it is finished.

    Raises:
        NonFiniteError: naming model, question and layer; shards finished before it stay.
        UserError: out of memory, or a server that fails; likewise.
    """
    todo = [s for s in job.shards if s.key in set(job.todo)]
    by_id = {a.question.id: a for a in job.asked}
    # Within a shard neighbours of similar length waste the least padding; the order does not change the samples.
    asked = [a for s in todo for a in sorted((by_id[q] for q in s.question_ids), key=lambda a: len(a.prompt.ids))]
    observer = ResidualCapture() if job.cell.capture.positions else None
    work: dict[str, Any] = {}
    began = time.monotonic()
    try:
        answers = _answers(job, model, asked, observer, on_answered, work)
        for shard, answered in _by_shard(todo, answers):
            if observer is not None:
                seen = observer.take(shard.question_ids)
                for position in job.cell.capture.positions:
                    job.run.write_activations(shard.key, position, seen.layers, seen.values, seen.token_ids)
            job.run.write_samples(shard.key, [_row(key, answer) for key, its in answered for answer in its])
    except NonFiniteError as error:
        raise NonFiniteError(
            f"model {job.cell.model.name}: {error}; try dtype float32 (now {job.cell.model.dtype}); "
            "what was finished is kept"
        ) from error
    except UserError as error:
        raise UserError(f"{job.cell.label}: {error}; what was finished is kept") from error
    finally:
        manifest = job.run.manifest()
        manifest["sampling_seconds"] = manifest.get("sampling_seconds", 0.0) + time.monotonic() - began
        manifest["sampling_work"] = [*manifest["sampling_work"], work]
        job.run.write_manifest(manifest)


def _answers(
    job: SamplingJob,
    model: Answerer,
    asked: Sequence[Asked],
    observer: ResidualCapture | None,
    on_answered: Callable[[int], None],
    work: dict[str, Any],
) -> Iterator[Answered]:
    """Answers as they are finished; `work` is filled with what was done."""
    settings, exact, prompts = job.settings, job.cell.sampling.exact, [a.prompt for a in asked]
    if not isinstance(model, LanguageModel):
        for key, replies in model.answer([(a.question.id, a.text) for a in asked], settings, on_answered):
            work.update(asdict(model.work))
            yield key, served_in_words(replies)
        return
    rule = stop_rule(model, settings.stop)
    if exact is not None:
        work.update(path=SHARED, rows_decoded=0)
        for found in enumerate_answers(
            model.model,
            prompts,
            settings,
            rule,
            device=model.device,
            epsilon=exact.epsilon,
            row_budget=exact.row_budget,
            observer=observer,
            on_answered=on_answered,
        ):
            work["rows_decoded"] += found.rows
            yield found.key, enumerated_in_words(model, found, settings.stop)
        return
    sampler = Sampler(model.model, settings, rule, device=model.device, max_rows=job.cell.sampling.max_rows)
    for answered in sampler.sample(prompts, observer, on_answered):
        work.update(asdict(sampler.work))
        yield answered.key, in_words(model, answered, settings.stop)


def _by_shard(shards: Sequence[Shard], answered: Iterable[Answered]) -> Iterator[tuple[Shard, list[Answered]]]:
    """A shard as soon as all its questions are answered, with the answers in the order of its questions."""
    shard_of = {q: s for s in shards for q in s.question_ids}
    open_shards: dict[str, dict[str, Answered]] = {}
    for key, answers in answered:
        shard = shard_of[key]
        found = open_shards.setdefault(shard.key, {})
        found[key] = (key, answers)
        if len(found) == len(shard.question_ids):
            del open_shards[shard.key]
            yield shard, [found[q] for q in shard.question_ids]


def _row(question_id: str, answer: Answer) -> dict[str, Any]:
    return {
        "question_id": question_id,
        "text": answer.text,
        "token_ids": list(answer.ids),
        "count": answer.count,
        "logprob": answer.logprob,
        "finish": answer.finish,
    }
