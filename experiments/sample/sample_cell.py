"""Sampling and capturing a cell, for local and served models: from its questions to what a model reads, token by token;
from a run's manifest to what is left to sample; and on to shards on disk."""

from __future__ import annotations

import hashlib
import logging
import platform
import resource
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from functools import partial
from importlib.metadata import version
from itertools import accumulate
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import numpy as np
import pandas as pd
import torch

from experiments.config.collapsing_functions import known_aliases
from experiments.config.run_folder import stored_cell
from experiments.config.study import Cell
from experiments.sample.models import Answerer
from experiments.sample.portions import Portions
from experiments.sample.run_checks import RunChecks, merged
from probes.activations.capture import Places, ResidualCapture
from probes.activations.chains import Chain, choose, read_chains
from probes.activations.hooks import choose_hooks
from semcal.errors import NonFiniteError, NotFromModelError, UserError
from semcal.models.checkpoint import Answer, LanguageModel
from semcal.models.weights import changed
from semcal.positions import LAST_PROMPT_TOKEN, QUESTION_POSITIONS, in_answer, of_question
from semcal.questions.pool import pool
from semcal.questions.prompts import Chat, Continuation, FewShot, Form, Messages, exemplars_for, question_span
from semcal.questions.prompts import asked as written_out
from semcal.questions.question import CONTINUATION, Dataset, Question
from semcal.runs.files import content_key
from semcal.runs.partial_shard import Rows
from semcal.runs.run import Run, Shard, shards
from semcal.runs.stored_activations import Activations, joined
from semcal.sampling.checks import FAILED
from semcal.sampling.decoding.decoders import shared_prefix
from semcal.sampling.decoding.paths import SHARED, ChosenPath, choose_path
from semcal.sampling.engine import Sampler
from semcal.sampling.enumeration import SearchLimits, enumerate_answers
from semcal.sampling.records import Prompt, Sampling

if TYPE_CHECKING:  # it needs the extra `serve`
    from semcal.models.served import ServedModel

PACKAGES = ("semcal", "torch", "transformers", "transformer-lens", "numpy", "scikit-learn")
log = logging.getLogger(__name__)


# ---- what a model reads --------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Asked:
    """A question and the prompt that the model reads for it; a served model reads text, so it has no token ids here.

    `question_tokens` are the positions of the question's own tokens in the prompt; empty if nothing is captured there.
    """

    question: Question
    text: str
    prompt: Prompt
    question_tokens: range = range(0)

    @property
    def ids_hash(self) -> str:
        """A hash of the token ids, or of the text if there are none."""
        read = ",".join(map(str, self.prompt.ids)) or self.text
        return hashlib.sha256(read.encode()).hexdigest()[:16]


def form_of(cell: Cell) -> Form:
    """The form of a cell's prompts."""
    if cell.style == CONTINUATION:
        return Continuation(cell.style)
    if cell.model.prompt == "chat":
        return Chat(cell.style)
    return FewShot(cell.style, cell.prompting.shots, cell.prompting.vary, cell.seed)


def stop_strings(cell: Cell, model: Answerer | None = None) -> tuple[str, ...]:
    """The stop strings that the study sets, or those of the cell's form of prompt; and, if `model` reads its chat
    template, what that writes after an answer."""
    form = form_of(cell)
    stops = form.stops if cell.sampling.stop is None else tuple(cell.sampling.stop)
    ends = model.turn_ends if form.rendered and isinstance(model, LanguageModel) else ()
    return tuple(dict.fromkeys([*stops, *ends]))


def ask(cell: Cell, dataset: Dataset, model: Answerer, question: Question) -> Asked:
    """One question with its prompt.

    Raises:
        UserError: activations are to be captured at the question, and the chat template does not show it as it is.
    """
    form = form_of(cell)
    if not isinstance(model, LanguageModel):
        return Asked(question, form.text(dataset, question, _no_template), Prompt(question.id, ()))
    text = form.text(dataset, question, model.render_chat)
    typed = _typed(cell, model, question, text) if form.rendered else ()
    prompt = Prompt(question.id, _encode(model, text, typed, rendered=form.rendered))
    if not set(cell.capture.positions) & set(QUESTION_POSITIONS):
        return Asked(question, text, prompt)
    try:
        start, stop = question_span(text, question, cell.style)
    except ValueError as error:
        raise UserError(f"{cell.label}: {error}; capture at last_prompt_token instead") from None
    return Asked(question, text, prompt, model.tokens_at(text, start, stop, rendered=form.rendered))


def _typed(cell: Cell, model: LanguageModel, question: Question, text: str) -> list[tuple[int, int]]:
    """Where a conversation holds the question: control tokens there are text.

    Raises:
        UserError: the question contains some, and the chat template does not show it as it is.
    """
    try:
        return [question_span(text, question, cell.style)]
    except ValueError as error:
        if found := model.control_tokens_in(written_out(question)):
            raise UserError(
                f"{cell.label}: {error}, and {found[0]!r} in it would be a control token; reword it"
            ) from None
        return []


def _encode(model: LanguageModel, text: str, typed: Sequence[tuple[int, int]], *, rendered: bool) -> tuple[int, ...]:
    return model.encode_rendered(text, typed) if rendered else model.encode(text)


def _no_template(_: Messages) -> str:
    raise AssertionError("a served model has no chat template here; the configuration refuses prompt: chat for it")


def gold_ids(cell: Cell, model: Answerer, asked: Asked) -> tuple[int, ...]:
    """The token ids that the model would have to generate to write the gold answer as an exemplar shows it.

    The answer is encoded after its prompt, which decides how it begins. What ends an answer is not part of it. Empty
    for a served model, where no one knows how gold would be written, and where prompt and answer share a token, so that
    no answer begins like that.
    """
    form = form_of(cell)
    gold = form.gold(asked.question)
    if not isinstance(model, LanguageModel) or not gold:
        return ()
    try:
        text = form.answered(asked.question, asked.text, gold, partial(model.render_chat, answered=True))
    except UserError:  # a template that takes no conversation with an answer
        return ()
    typed = []
    if form.rendered:
        typed = [*_typed(cell, model, asked.question, asked.text), (len(text) - len(gold), len(text))]
    whole = _encode(model, text, typed, rendered=form.rendered)
    prompt = asked.prompt.ids
    return whole[len(prompt) :] if whole[: len(prompt)] == prompt else ()


def ask_all(cell: Cell, dataset: Dataset, model: Answerer) -> list[Asked]:
    """Every question with its prompt; prompts that are too long are refused or dropped, as the study says.

    Raises:
        UserError: a prompt and `max_new_tokens` together exceed the model's context (count and ids named); as
            `LanguageModel.check_lengths`.
    """
    asked = [ask(cell, dataset, model, question) for question in dataset.questions]
    if not isinstance(model, LanguageModel):
        return asked
    fitting = _fitting(cell, asked, model.context)
    model.check_lengths([a.prompt for a in fitting], cell.sampling.length(cell.style))
    return fitting


def look(cell: Cell, dataset: Dataset, model: LanguageModel | None, n: int) -> list[str]:
    """What the model will read for the first n questions, in words: ids, special tokens, where it stops."""
    shown = []
    captured = ", where activations are captured" if LAST_PROMPT_TOKEN in cell.capture.positions else ""
    for question in dataset.questions[:n]:
        if model is None:  # a server keeps its tokenizer to itself
            text = form_of(cell).text(dataset, question, _no_template)
            shown.append(f"{question.id} · token ids are known to the server only\n{text}")
            continue
        asked = ask(cell, dataset, model, question)
        ids, tokenizer = asked.prompt.ids, model.tokenizer
        begins = sum(i == tokenizer.bos_token_id for i in ids)
        facts = [
            f"{len(ids)} tokens of {model.context - cell.sampling.length(cell.style)} that fit",
            f"{begins} × {tokenizer.bos_token}" if tokenizer.bos_token_id is not None else "no BOS token",
            f"last token {tokenizer.convert_ids_to_tokens(ids[-1])!r}{captured}",
            f"stops at {', '.join(map(repr, stop_strings(cell, model))) or 'its end-of-sequence token'}",
            f"gold {question.answers[0]!r}",
        ]
        if tokens := asked.question_tokens:
            span = tokenizer.convert_ids_to_tokens([ids[tokens[0]], ids[tokens[-1]]])
            facts.append(f"question {span[0]!r} to {span[1]!r}, tokens {tokens[0]} to {tokens[-1]}")
        shown.append(f"{question.id} · {' · '.join(facts)}\n{tokenizer.decode(list(ids), skip_special_tokens=False)}")
    return shown


def _fitting(cell: Cell, asked: Sequence[Asked], context: int) -> list[Asked]:
    room = context - cell.sampling.length(cell.style)
    if room < 1:
        raise UserError(
            f"{cell.label}: max_new_tokens is {context - room}, but the model's context is only {context} tokens; "
            "lower max_new_tokens"
        )
    long = [a for a in asked if len(a.prompt.ids) > room]
    if not long:
        return list(asked)
    names = ", ".join(a.question.id for a in long[:5]) + (", ..." if len(long) > 5 else "")
    longest = max(len(a.prompt.ids) for a in long)
    what = (
        f"{cell.label}: {len(long)} of {len(asked)} prompts ({names}) are longer than {room} tokens, the context of "
        f"{context} minus max_new_tokens {context - room} (longest {longest})"
    )
    kept = [a for a in asked if len(a.prompt.ids) <= room]
    if cell.on_long_prompt == "refuse":
        raise UserError(f"{what}; lower prompting.shots or max_new_tokens, or set on_long_prompt: drop")
    if not kept:
        raise UserError(f"{what}; dropping them leaves no question")
    log.warning("%s; dropped", what)
    return kept


# ---- what is left to sample ----------------------------------------------------------------------------------------


def refresh_gold(run: Run, dataset: Dataset) -> None:
    """Take over gold answers, groups and aliases that were corrected since the run started; its results are then out
    of date, and the next analysis replaces them.

    Raises:
        UserError: a question of the run is gone or asks something else now.
    """
    if not run.manifest():
        return
    check_questions(run, dataset)
    table, asked_now = run.questions(), {q.id: q for q in dataset.questions}
    known = [asked_now[q] for q in table["id"]]
    aliases = known_aliases(dataset)
    if _gold_columns(run.question_records()) != _gold_columns(known) or not run.has_aliases(aliases):
        now = [form_of(stored_cell(run)).gold(q) for q in known]
        rows = zip(now, table["written"], table["written_ids"], strict=True)
        # Token ids need the model, so those of changed answers are dropped.
        ids = [list(ids) if text == before else [] for text, before, ids in rows]
        new = {"written": now, "written_ids": ids}
        with run.replacing() as replaced:
            replaced.write_questions(table.assign(**_gold_columns(known), **new), aliases)
            replaced.write_manifest(run.manifest() | {"analysed": {}})


def check_questions(run: Run, dataset: Dataset) -> None:
    """
    Raises:
        UserError: a question of the run is gone or asks something else now.
    """
    table, now = run.questions(), {q.id: q for q in dataset.questions}
    for question_id, text in zip(table["id"], table["text"], strict=True):
        if question_id not in now or now[question_id].text != text:
            raise UserError(
                f"{run.folder} was started with another question {question_id!r}; delete the folder, or give this "
                "study another name or output"
            )


@dataclass(frozen=True)
class SamplingJob:
    """What is left to sample in a run."""

    run: Run
    cell: Cell
    asked: tuple[Asked, ...]
    settings: Sampling
    todo: tuple[str, ...]  # shard keys

    @property
    def questions_left(self) -> int:
        """Number of questions whose samples are not on disk."""
        return len(self.asked) - self.run.questions_saved()

    @property
    def shards(self) -> list[Shard]:
        manifest = self.run.manifest()
        return shards(manifest["samples_key"], [a.question.id for a in self.asked], manifest["shard_size"])


def prepare(cell: Cell, run: Run, dataset: Dataset, model: Answerer, siblings: Sequence[Run]) -> SamplingJob:
    """Write questions and manifest, take over shards that a sibling run has sampled already, and say what is left.

    Files of shards that are cut short are removed, with a warning: what they held is among what is left.

    Raises:
        UserError: weights or prompts differ from those the run was started with; the model lacks a hook.
    """
    asked = ask_all(cell, dataset, model)
    if cell.capture.positions and isinstance(model, LanguageModel):
        choose_hooks(model.model, cell.capture.hooks)  # before anything is written that says so
    settings = Sampling(
        **cell.sampling.model_dump(include={"m", "temperature", "top_k", "top_p"}),
        max_new_tokens=cell.sampling.length(cell.style),
        stop=stop_strings(cell, model),
        seed=cell.seed,
    )
    exact = cell.sampling.exact and cell.sampling.exact.model_dump()
    key = content_key(
        settings.to_dict() | ({"exact": exact} if cell.enumerated else {}),
        [(a.question.id, a.ids_hash) for a in asked],
        model.weights_hash,
        model.tokenizer_hash,
        str(model.dtype),
        cell.capture.identity(),
    )
    manifest = run.manifest()
    if manifest and (other := _other_than(manifest, model, key)):
        raise UserError(
            f"{run.folder} was started with {other}; delete the folder, or give this study another name or output"
        )
    if not manifest:
        run.write_questions(_question_table(cell, model, asked), known_aliases(dataset))
        if cell.capture.positions:
            run.write_prompt_ids([a.prompt.ids for a in asked])
        few_shot = cell.model.prompt == "few-shot" and cell.style != CONTINUATION and cell.prompting.shots > 0
        shown = exemplars_for(dataset, cell.style) if few_shot else ()
        run.write_manifest(
            _new_manifest(cell, model, settings, key, [a.question.id for a in asked])
            | {
                "exact": exact,
                "exemplars": None if not shown else "pool" if shown[0] in pool() else "dataset",
                # Whether exemplars in cot, which are then questions with options, show no chain of thought.
                "cot_without_steps": cell.style == "cot" and any("cot" not in e.worked for e in shown),
            }
        )
    siblings = [other for other in siblings if not _computes_otherwise(other.manifest(), model)]
    if siblings and not run.manifest().get("checks"):
        same = (other.manifest() for other in siblings if other.folder != run.folder)
        if taken := next((m["checks"] for m in same if m.get("samples_key") == key and m.get("checks")), None):
            run.write_manifest(run.manifest() | {"checks": taken})
    for path in run.damaged():
        log.warning("%s: %s was cut short, so what it held is made again", cell.label, path)
        path.unlink()
    for shard in run.missing_shards():
        any(run.adopt_shard(other, shard, with_activations=bool(cell.capture.positions)) for other in siblings)
    return SamplingJob(run, cell, tuple(asked), settings, tuple(run.missing_shards()))


def _other_than(manifest: Mapping[str, Any], model: Answerer, key: str) -> str:
    """What has changed since a run was started, in words; "" if nothing has."""
    if manifest["weights_hash"] != model.weights_hash:
        return "different weights"
    if manifest["tokenizer_hash"] != model.tokenizer_hash:
        return "a different tokenizer or chat template"
    if settings := _computes_otherwise(manifest, model):
        return settings
    return "different questions or prompts" if manifest["samples_key"] != key else ""


def _computes_otherwise(manifest: Mapping[str, Any], model: Answerer) -> str:
    """Which setting the model of a run had otherwise, with the same weights; "" if none, or if it was not recorded."""
    return changed(manifest.get("computation", {}), model.computation) if isinstance(model, LanguageModel) else ""


def _question_table(cell: Cell, model: Answerer, asked: Sequence[Asked]) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "id": [a.question.id for a in asked],
            "text": [a.question.text for a in asked],
            **_gold_columns([a.question for a in asked]),
            "choices": [list(a.question.choices) for a in asked],
            "prompt": [a.text for a in asked],
            "prompt_tokens": [len(a.prompt.ids) for a in asked],
            "prompt_hash": [a.ids_hash for a in asked],
            "written": [form_of(cell).gold(a.question) for a in asked],
            "written_ids": [list(gold_ids(cell, model, a)) for a in asked],
        }
    )


def _gold_columns(questions: Sequence[Question]) -> dict[str, list[Any]]:
    """The columns of a question that the analysis reads; they may be corrected after sampling."""
    return {
        "group": [q.group for q in questions],
        "answers": [list(q.answers) for q in questions],
        "others": [[list(forms) for forms in q.others] for q in questions],
        "incorrect": [list(q.incorrect) for q in questions],
    }


def _new_manifest(cell: Cell, model: Answerer, settings: Sampling, key: str, ids: Sequence[str]) -> dict[str, Any]:
    return {
        "samples_key": key,
        "started": date.today().isoformat(),
        "shard_size": cell.sampling.shard_size,
        "shards": [s.key for s in shards(key, ids, cell.sampling.shard_size)],
        "positions": cell.capture.positions,
        "model": model.path,
        "revision": model.revision,
        "weights_hash": model.weights_hash,
        "adapter": cell.model.adapter,
        "base": model.base if isinstance(model, LanguageModel) else "",
        "computation": model.computation if isinstance(model, LanguageModel) else {},
        "tokenizer_hash": model.tokenizer_hash,
        "quantised": model.quantised if isinstance(model, LanguageModel) else "",
        "dtype": str(model.dtype).removeprefix("torch."),
        "device": str(model.device),
        "sampling": settings.to_dict(),
        "sampling_work": [],
        "questions": len(ids),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in PACKAGES},
    }


# ---- sampling ------------------------------------------------------------------------------------------------------

# Answers questions; yields (question id, rows of its distinct answers) as they are finished.
Ask = Callable[[Sequence[Asked]], Iterator[tuple[str, Rows]]]


@dataclass(frozen=True)
class Asking:
    """How a cell gets its answers: from the model here, in portions, or from a server (`portions` is None), which
    answers each question by itself."""

    ask: Ask
    portions: Portions | None


def sample_cell(job: SamplingJob, model: Answerer, on_answered: Callable[[int], None]) -> None:
    """Sample and capture every missing shard.

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
    began = time.monotonic()
    try:
        asking = _asking(job, model, capturing, checks, on_answered, work)
        for shard in (s for s in job.shards if s.key in set(job.todo)):
            # Sorting by length saves padding and does not change the samples.
            asked = sorted((by_id[q] for q in shard.question_ids), key=lambda a: len(a.prompt.ids))
            if asking.portions is None:
                rows = _answered(job, shard, asked, asking.ask)
            else:
                rows = _sampled(job, shard, asked, asking, capturing)
            captured = None if capturing is None else capturing.take(shard, by_id, rows)
            try:
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
        manifest, made = job.run.manifest(), checks.made()
        manifest["checks"] = merged(manifest.get("checks", []), made)
        manifest["sampling_seconds"] = manifest.get("sampling_seconds", 0.0) + time.monotonic() - began
        manifest["sampling_work"] = [*manifest["sampling_work"], work | _peak_memory(model)]
        job.run.write_manifest(manifest)
    for check in made:
        if check.outcome == FAILED:
            shown = (job.cell.label, check.name, check.figure, check.limit, check.why)
            log.warning("%s: CHECK FAILED: %s is %.3g, at most %.3g is right (%s)", *shown)


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


def saved(run: Run) -> str:
    """How many questions of a run are on disk, in words."""
    if (done := run.questions_saved()) == 0:
        return "no question is saved yet"
    return f"{done} of {run.manifest()['questions']} questions are saved, and the same command continues"


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
    """How this cell gets answers: a server, exact enumeration or the sampler. `work` is updated with what was done."""
    if not isinstance(model, LanguageModel):
        return Asking(_ask_server(job, model, on_answered, work), None)
    settings, exact = job.settings, job.cell.sampling.exact
    rule = model.stop_rule(settings.stop)
    observer, first_token = (capturing.observer, capturing.first_token) if capturing else (None, None)
    prompts = [a.prompt for a in job.asked]  # those of finished shards too: a resumed run shares the same prefix
    prefix = prompts[0].ids[: shared_prefix(prompts)][:first_token]
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

        portions = Portions.of(model, worst=exact.row_budget, prefix=len(prefix), path=chosen.path)
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

    worst = settings.m * settings.max_new_tokens
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


# ---- activations -----------------------------------------------------------------------------------------------------


class Capturing:
    """Observes the prefills of a job, then reads answers, shard by shard.

    Attributes:
        observer: For the sampler; None if nothing is captured in prompts.
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
        self.observer = ResidualCapture(captured.hooks, self.where, captured.dtype) if self.watched else None
        self.first_token = first_watched(job.asked, captured.positions)
        self._portions: list[Mapping[str, Activations]] = []  # of the shard that is being sampled

    def collect(self, shard: Shard, number: int, asked: Sequence[Asked], *, keep: bool) -> None:
        """Take what was observed of a portion; write it down if it is to be kept."""
        if self.observer is None:
            return
        keys = [a.question.id for a in asked]
        watched = {p: self.observer.take(keys, p) for p in self.watched}
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
