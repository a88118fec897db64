"""Sampling a cell, by a local or served model: shard by shard, with its activations and checks, to disk."""

from __future__ import annotations

import logging
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch

from experiments.sample.asked import Asked
from experiments.sample.capturing import Capturing
from experiments.sample.models import Answerer
from experiments.sample.portions import Portions
from experiments.sample.run_checks import RunChecks, together
from experiments.sample.sampling_job import SamplingJob, saved
from probes.activations.engine_capture import EngineCapture
from semcal.errors import NonFiniteError, NotFromModelError, UserError
from semcal.models.checkpoint import Answer, LanguageModel
from semcal.runs.claims import claimed, part
from semcal.runs.partial_shard import Rows
from semcal.runs.run import Shard
from semcal.sampling.checks import FAILED
from semcal.sampling.decoding.decoders import shared_prefix
from semcal.sampling.decoding.paths import SHARED, ChosenPath, choose_path
from semcal.sampling.engine import Sampler
from semcal.sampling.enumeration import SearchLimits, enumerate_answers
from semcal.sampling.records import Prompt
from semcal.sampling.vllm.vllm_sampling import PATH

if TYPE_CHECKING:  # it needs the extra `serve`
    from semcal.models.served import ServedModel


log = logging.getLogger(__name__)

# Answers questions; yields (question id, rows of its distinct answers) as they are finished.
Ask = Callable[[Sequence[Asked]], Iterator[tuple[str, Rows]]]


@dataclass(frozen=True)
class Asking:
    """How a cell gets its answers: from the model here, in portions, or from a server (`portions` is None), which
    answers each question by itself."""

    ask: Ask
    portions: Portions | None


def sample_cell(job: SamplingJob, model: Answerer, on_answered: Callable[[int], None]) -> None:
    """Sample and capture every missing shard that no other process is at work on.

    A portion of questions (`portions.py`; of a served model, each question) is on disk with its activations as soon as
    it is finished, a shard as soon as it is complete. No batch reaches beyond a portion, and its size does not depend
    on where a run was stopped, so that a run that goes on ends with exactly the same tables, on the same machine with
    the same number of threads, unless free memory limits its batches.

    Raises:
        NonFiniteError: NaN or infinity, naming model, question and layer.
        UserError: out of memory, a full disk, a server fails, or a check does (see `run_checks`).

    Both say how many questions are saved.
    """
    by_id = {a.question.id: a for a in job.asked}
    local = isinstance(model, LanguageModel)
    capturing = Capturing(job, model) if local and job.cell.capture.positions else None
    work: dict[str, Any] = {}
    checks = RunChecks(job, model)
    began, cpu = time.monotonic(), time.process_time()
    ours, began_any = _unclaimed(job), False
    try:
        asking = _asking(job, model, capturing, checks, on_answered, work)
        for shard in ours:
            began_any = True
            # Sorting by length saves padding and does not change the samples.
            asked = sorted((by_id[q] for q in shard.question_ids), key=lambda a: len(a.prompt.ids))
            if asking.portions is None:
                rows = _answered(job, shard, asked, asking.ask)
            else:
                rows = _sampled(job, shard, asked, asking, capturing)
            captured = None if capturing is None else capturing.take(shard, by_id, rows)
            try:
                with checks.timed():
                    checks.shard(asked, rows, captured, work)
            except UserError:
                job.run.discard_partial(shard.key)  # wrong numbers are not kept
                raise
            if captured is not None:
                how: dict[str, Any] = {"dtype": job.cell.capture.dtype, "answer_rows": captured.answer_rows}
                job.run.write_activations(shard.key, captured.found, **how)
            job.run.write_samples(shard.key, [row for q in shard.question_ids for row in rows[q]])
    except NonFiniteError as error:
        dtype = job.cell.model.dtype
        wider = "bfloat16 or float32" if dtype == "float16" else "float32"
        raise NonFiniteError(
            f"model {job.cell.model.name}: {error}; try dtype {wider} (now {dtype}); {saved(job.run)}"
        ) from error
    except NotFromModelError as error:
        raise NotFromModelError(
            f"{job.cell.label}: {error}; then delete {job.run.folder}, whose answers are not used"
        ) from error
    except UserError as error:
        raise UserError(f"{job.cell.label}: {error}; {saved(job.run)}") from error
    finally:
        ours.close()
        made, seconds = checks.made(), time.monotonic() - began
        elsewhere = work.pop("engine_cpu_seconds", 0.0)
        spent = {"cpu_seconds": time.process_time() - cpu + elsewhere, "check_cpu_seconds": checks.cpu_seconds}
        done = work | spent | _peak_memory(model)
        if began_any:
            further = {"checks": [asdict(c) for c in made], "sampling_seconds": seconds, "sampling_work": [done]}
            job.run.change_manifest(lambda manifest: manifest | together(manifest, further))
    for check in made:
        if check.outcome == FAILED:
            shown = (job.cell.label, check.name, check.figure, check.limit, check.why)
            log.warning("%s: CHECK FAILED: %s is %.3g, at most %.3g is right (%s)", *shown)


def _unclaimed(job: SamplingJob) -> Generator[Shard]:
    """The missing shards that no other process is at work on, each claimed as long as it is at hand."""
    todo, captured = set(job.todo), bool(job.cell.capture.positions)
    for shard in (s for s in job.shards if s.key in todo):
        with claimed(job.run.folder, part(shard.key)) as ours:
            if ours and not job.run.has_shard(shard.key, with_activations=captured):
                yield shard


def _sampled(
    job: SamplingJob, shard: Shard, asked: Sequence[Asked], asking: Asking, capturing: Capturing | None
) -> dict[str, Rows]:
    """The answers to all questions of a shard: those of the portions that are kept, and the others, which are kept
    portion by portion unless the shard is a single one."""
    assert asking.portions
    kept, at = [], 0
    for portion in job.run.partial(shard.key):
        some = asked[at : at + len(portion)]
        if [a.question.id for a in some] != list(portion) or not all(_is_right(job, r) for r in portion.values()):
            break
        if capturing is not None and not capturing.restore(shard, len(kept), some):
            break
        kept.append(portion)
        at += len(portion)
    rows = {question_id: found for portion in kept for question_id, found in portion.items()}
    costs = [asking.portions.cost(len(a.prompt.ids), _lengths(rows[a.question.id])) for a in asked[:at]]
    with job.run.open_partial(shard.key, kept) as partial:
        number = len(kept)
        while left := asked[at:]:
            n = asking.portions.next(costs, [len(a.prompt.ids) for a in left])
            found = dict(asking.ask(left[:n]))
            portion = {a.question.id: found[a.question.id] for a in left[:n]}
            costs += [asking.portions.cost(len(a.prompt.ids), _lengths(portion[a.question.id])) for a in left[:n]]
            alone = n == len(asked)
            if capturing is not None:
                capturing.collect(shard, number, left[:n], keep=not alone)
            if not alone:
                partial.append(portion)
            rows |= portion
            at, number = at + n, number + 1
    return rows


def _answered(job: SamplingJob, shard: Shard, asked: Sequence[Asked], ask: Ask) -> dict[str, Rows]:
    """The answers to all questions of a shard: those that are kept, and the others, which are kept one by one."""
    wanted, found = set(shard.question_ids), Counter(q for portion in job.run.partial(shard.key) for q in portion)
    kept = [
        portion
        for portion in job.run.partial(shard.key)
        if all(q in wanted and found[q] == 1 and _is_right(job, rows) for q, rows in portion.items())
    ]
    rows = {question_id: rows for portion in kept for question_id, rows in portion.items()}
    with job.run.open_partial(shard.key, kept) as partial:
        for question_id, answers in ask([a for a in asked if a.question.id not in rows]):
            partial.append({question_id: answers})
            rows[question_id] = answers
    return rows


def _is_right(job: SamplingJob, rows: Rows) -> bool:
    """Whether these answers are all that was asked for."""
    counts = [row["count"] for row in rows]
    if job.cell.enumerated:
        return not any(counts)
    return None not in counts and sum(counts) == job.settings.m


def _lengths(rows: Rows) -> list[int]:
    return [len(row["token_ids"]) for row in rows]


def _peak_memory(model: Answerer) -> dict[str, int]:
    """Peak memory of this process so far and, on a GPU, of its tensors; in bytes."""
    unit = 1 if sys.platform == "darwin" else 1024
    peak = {"peak_process_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit}
    if isinstance(model, LanguageModel) and model.device.type == "cuda":
        devices = range(torch.cuda.device_count())
        peak["peak_gpu_bytes"] = sum(torch.cuda.max_memory_allocated(d) for d in devices)
    return peak


def _asking(
    job: SamplingJob,
    model: Answerer,
    capturing: Capturing | None,
    checks: RunChecks,
    on_answered: Callable[[int], None],
    work: dict[str, Any],
) -> Asking:
    """How this cell gets answers: a server, vLLM, exact enumeration or the sampler. `work` is updated as it is done."""
    if not isinstance(model, LanguageModel):
        return Asking(_ask_server(job, model, on_answered, work), None)
    if job.cell.model.engine == "vllm":
        return _ask_vllm(job, model, capturing, checks, on_answered, work)
    settings, exact = job.settings, job.cell.sampling.exact
    rule = model.stop_rule(settings.stop)
    observer, first_token = (capturing.observer, capturing.first_token) if capturing else (None, None)
    assert not isinstance(observer, EngineCapture)
    prompts = [a.prompt for a in job.asked]  # those of finished shards too: a resumed run shares the same prefix
    prefix = prompts[0].ids[: shared_prefix(prompts)][:first_token]
    with checks.timed():
        chosen = _path_of(model, prompts)
    if exact:
        found = {"apart": chosen.apart, "apart_limit": chosen.limit, "apart_single": chosen.single}
        work.update(found, path=chosen.path, why=chosen.why, rows_decoded=0)

        def enumerate_all(asked: Sequence[Asked]) -> Iterator[tuple[str, Rows]]:
            for enumerated in enumerate_answers(
                model.model,
                [a.prompt for a in asked],
                settings,
                rule,
                limits=SearchLimits(exact.epsilon, exact.row_budget),
                path=chosen,
                prefix=prefix,
                observer=observer,
            ):
                on_answered(1)
                work["rows_decoded"] += enumerated.rows
                yield enumerated.key, _rows(enumerated.key, model.in_words(enumerated, settings.stop))

        longest = settings.max_new_tokens
        worst = (longest,) * max(1, exact.row_budget // longest)
        portions = Portions.of(model, worst=worst, prefix=len(prefix), path=chosen.path)
        return Asking(enumerate_all, portions)
    sampler = Sampler(
        model.model,
        settings,
        rule,
        device=model.device,
        max_rows=job.cell.sampling.max_rows,
        prefix=prefix,
        watch=checks.watch,
    )
    sampler.take(chosen)
    work.update(asdict(sampler.work))

    def sample_all(asked: Sequence[Asked]) -> Iterator[tuple[str, Rows]]:
        for answered in sampler.sample([a.prompt for a in asked], observer, on_answered):
            work.update(asdict(sampler.work))
            yield answered.key, _rows(answered.key, model.in_words(answered, settings.stop))

    worst = (settings.max_new_tokens,) * settings.m
    shared = len(prefix) if chosen.path == SHARED else 0
    return Asking(sample_all, Portions.of(model, worst=worst, prefix=shared, path=chosen.path))


_FOUND: WeakKeyDictionary[torch.nn.Module, tuple[int, ChosenPath]] = WeakKeyDictionary()
_LONGER = 2  # prompts of up to so many times the length need no trial of their own


def _path_of(model: LanguageModel, prompts: Sequence[Prompt]) -> ChosenPath:
    """The way of decoding, found once for all cells that a loaded model is asked for in this process.

    Drawn answers of every cell are compared with plain passes, so a path that goes wrong on other prompts stops it.
    """
    longest = max(len(p.ids) for p in prompts)
    tried, chosen = _FOUND.get(model.model, (0, None))
    if chosen is None or longest > _LONGER * tried:
        chosen = choose_path(model.model, model.device, prompts)
        _FOUND[model.model] = longest, chosen
    return chosen


def _ask_vllm(
    job: SamplingJob,
    model: LanguageModel,
    capturing: Capturing | None,
    checks: RunChecks,
    on_answered: Callable[[int], None],
    work: dict[str, Any],
) -> Asking:
    from experiments.sample.vllm_cell import VllmSampler, engine_of

    capture = capturing.observer if capturing else None
    assert capture is None or isinstance(capture, EngineCapture)
    engine = engine_of(model, job.cell.model, job.cell.sampling.max_rows)
    with checks.timed():
        sampler = VllmSampler(engine, model, job, capture)
    checks.law = sampler.law
    work.update(sampler.work)
    said = {"engine": engine.facts | {"compared": sampler.parity}}
    job.run.change_manifest(lambda manifest: manifest | said)

    def sample_all(asked: Sequence[Asked]) -> Iterator[tuple[str, Rows]]:
        for answered in sampler.sample([a.prompt for a in asked], on_answered):
            work.update(sampler.work)
            yield answered.key, _rows(answered.key, model.in_words(answered, job.settings.stop))

    worst = (job.settings.max_new_tokens,) * job.settings.m
    return Asking(sample_all, Portions.of(model, worst=worst, prefix=0, path=PATH, device=engine.facts["device"]))


def _ask_server(job: SamplingJob, model: ServedModel, on_answered: Callable[[int], None], work: dict[str, Any]) -> Ask:
    if any(check["outcome"] == FAILED for check in job.run.manifest().get("checks", ())):
        raise NotFromModelError(f"{job.run.folder} holds answers that its server did not draw from the model itself")

    def ask(asked: Sequence[Asked]) -> Iterator[tuple[str, Rows]]:
        try:
            for key, answers in model.answer([(a.question.id, a.text) for a in asked], job.settings, on_answered):
                yield key, _rows(key, answers)
        finally:
            work.update({name: value for name, value in asdict(model.work).items() if name != "checks"})

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
