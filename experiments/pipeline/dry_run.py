"""A study, checked before it is run: every cell resolved, prompts rendered, tokens counted, memory of local models.

Loads no weights, writes nothing and asks no server. Where a tokenizer or the questions of a named dataset are not on
this machine, stand-ins replace them; counts made with these are estimates and are shown as such.
"""

import re
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path
from statistics import fmean

import psutil
import torch

from experiments.config.run_folder import check_folder
from experiments.config.study import Cell, DatasetConfig, NamedConfig, PromptingConfig, Study, load_dataset
from experiments.pipeline.run_study import (
    check_all_semantics,
    check_models,
    check_untrained,
    warn_of_exemplars,
    warn_of_groups,
)
from experiments.sample.asked import Asked, ask_all, form_of, gold_ids, stop_strings
from experiments.sample.capturing import first_watched
from experiments.sample.models import model_to_look_at
from experiments.sample.sampling_job import check_questions
from probes.activations.hooks import choose_hooks
from semcal.errors import UserError
from semcal.models.checkpoint import LanguageModel, pick_device
from semcal.positions import ALL_QUESTION_TOKENS, QUESTION_POSITIONS
from semcal.questions.load_dataset import build, read_table
from semcal.questions.named.named_datasets import NAMED, read_named
from semcal.questions.pool import pool
from semcal.questions.prompts import QUESTION, SEPARATOR, exemplars_for, question_span
from semcal.questions.question import Dataset, Question
from semcal.runs.run import Run
from semcal.sampling.decoding.decoders import shared_prefix
from semcal.sampling.memory import Footprint, sorts
from semcal.sampling.records import Prompt

OWN, STAND_IN = "own", "stand-in"
_PLACEHOLDERS = 16  # questions made up for a dataset that is not on this machine
_ITEMSIZE = {"bfloat16": 2, "float16": 2, "float32": 4}


@dataclass(frozen=True)
class Posed:
    """The questions of a dataset, or some placeholders (not `real`); `n` of them will be asked."""

    dataset: Dataset
    n: int
    real: bool


@dataclass(frozen=True)
class Read:
    """What a model will read and probably write: one dataset in one style. Token counts are means where not said.

    `n` leaves out questions dropped because their prompts are too long; `prefix_tokens` begin all prompts and are read
    once; `question_tokens` are counted where something is captured there; answers are as long as exemplars show them,
    or max_new_tokens where nothing ends them.
    """

    tokenizer: str
    n: int
    prompt: str
    prefix_tokens: int
    prompt_tokens_mean: float
    prompt_tokens_longest: int
    question_tokens: float
    answer_tokens: float


@dataclass(frozen=True)
class Planned:
    """Cells that share their samples (they differ in B alone).

    `memory`, without a local model None, is in bytes, and at most: process, what this one holds already (libraries,
    tokenizers, questions; on a CPU); weights; kv, the keys and values of all that is in flight, answers at their
    longest; temporaries, logits among them; activations, on disk.
    """

    cells: tuple[Cell, ...]
    read: Read
    real: bool
    memory: dict[str, int] | None

    @property
    def cell(self) -> Cell:
        return self.cells[0]

    @property
    def prefill_tokens(self) -> int:
        """Tokens read before anything is generated, counted as the sampler's own record counts them."""
        prefix = self.read.prefix_tokens
        return prefix + round(self.read.n * (self.read.prompt_tokens_mean - prefix))

    def decode_tokens(self, length: float) -> int:
        """Tokens generated if answers have this length; equal beginnings are decoded once, so fewer may be computed."""
        exact = self.cell.sampling.exact
        return round(self.read.n * (exact.row_budget if exact else self.cell.sampling.m * length))


def dry_run(study: Study) -> list[Planned]:
    """Resolve and check every cell as `semcal run` would, and count its tokens.

    Raises:
        UserError: whatever `semcal run` would refuse before it samples, as far as the files for that are here.
    """
    check_models(study)
    posed = {d.name: _pose(d, study.prompting) for d in study.datasets}
    for name, p in posed.items():
        warn_of_groups(study, name, len({q.group for q in p.dataset.questions}) if p.real else p.n)
    warn_of_exemplars(study, [p.dataset for p in posed.values()])
    cells = study.cells()
    real = {name: p.dataset for name, p in posed.items() if p.real}
    check_untrained(study, real)
    check_all_semantics(cells, real)
    for cell in cells:
        if check_folder(cell) is not None and cell.dataset.name in real:
            check_questions(Run(Path(cell.folder)), real[cell.dataset.name])
    models = {m.name: model_to_look_at(m, cached=True) for m in study.models}
    hooks = {name: _hooks(name, model, study) for name, model in models.items() if model is not None}

    planned, read_alike = [], dict[tuple[str, str, str], Read]()
    for (name, dataset, style), some in groupby(cells, key=lambda c: (c.model.name, c.dataset.name, c.style)):
        group, model = tuple(some), models[name]
        if model is not None:
            read = _read(group[0], posed[dataset], model)
            memory = _memory(group[0], read, model, hooks[name])
        else:  # models without a tokenizer here read the same
            key, memory = (group[0].model.prompt, dataset, style), None
            read = read_alike[key] = read_alike.get(key) or _read(group[0], posed[dataset], None)
        planned.append(Planned(group, read, posed[dataset].real, memory))
    return planned


def _hooks(name: str, model: LanguageModel, study: Study) -> int:
    try:
        return len(choose_hooks(model.model, study.capture.hooks)) if study.capture.positions else 0
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def _memory(cell: Cell, read: Read, model: LanguageModel, hooks: int) -> dict[str, int]:
    """Activations of heads are taken to be as wide as the residual stream."""
    config, size, sampling = model.model.config.get_text_config(), _ITEMSIZE[cell.model.dtype], cell.sampling
    places = sum(read.question_tokens if p == ALL_QUESTION_TOKENS else 1 for p in cell.capture.positions)
    needed = Footprint(config, size, device_of(cell.model.device), sorts(sampling.top_k, sampling.top_p))
    weights, process = model.model.num_parameters() * size, psutil.Process().memory_info().rss
    rows = min(sampling.max_rows or needed.rows, read.n * sampling.m)
    tail, most = read.prompt_tokens_longest - read.prefix_tokens, sampling.length(cell.style)
    questions = min(read.n, max(1, 3 * rows // sampling.m))  # a third of the answers differ at first
    held = max(needed.positions(_free(needed.device) - weights, rows, weights), tail + sampling.m * most)
    held = read.prefix_tokens + min(held, questions * tail + 2 * rows * most)  # room is kept for twice the length
    return {
        "process": process if needed.device == "cpu" else 0,
        "weights": weights,
        "kv": held * needed.position,
        "temporaries": needed.a_pass(rows, questions * tail),
        "activations": round(read.n * hooks * places * config.hidden_size) * _ITEMSIZE[cell.capture.dtype],
    }


def device_of(name: str) -> str:
    """The kind of device that a name means on this machine: "cpu", "cuda" or "mps"."""
    return pick_device("auto").type if name == "auto" else "cuda" if name == "balanced" else name.partition(":")[0]


def _free(device: str) -> int:
    """Memory of a device, which may be one of another machine: then without a bound."""
    if device == "cuda":
        return torch.cuda.mem_get_info()[0] if torch.cuda.is_available() else 2**50
    return psutil.virtual_memory().available


def _pose(config: DatasetConfig, prompting: PromptingConfig) -> Posed:
    if not isinstance(config, NamedConfig) or config.path is not None:
        dataset = load_dataset(config, prompting)
        return Posed(dataset, len(dataset.questions), real=True)
    try:
        rows = read_named(config.kind, None, split=config.split, revision=config.revision)
    except UserError as error:  # not in the cache
        return _unread(config, prompting.exemplars, error)
    trained = () if config.exclude is None else read_table(Path(config.exclude))
    dataset = build(config.name, rows, n=config.n, exemplars=prompting.exemplars, seed=config.seed, trained=trained)
    return Posed(dataset, len(dataset.questions), real=True)


def _unread(config: NamedConfig, exemplars: int, error: UserError) -> Posed:
    """Placeholders of the lengths that are known of a dataset, no two of which begin alike."""
    if NAMED[config.kind].rows is not None:  # on no Hub; the message says where it is to be had
        raise error
    if (stated := STATED.get(config.kind)) is None:
        raise UserError(
            f"{config.name}: {error}; a dry run has no stand-in for {config.kind}, so read it once by `semcal prompts`"
        ) from None
    exemplars = 0 if stated.solution is None else exemplars  # those of the pool
    left = stated.size - exemplars
    if config.split is None and config.n is not None and config.n > left:
        raise UserError(f"{config.name}: n is {config.n}, but {exemplars} exemplars leave only {left} questions")
    worked = {} if stated.solution is None else {"cot": _filler(stated.solution)}
    made = []
    for i in range(_PLACEHOLDERS + exemplars):
        text = f"{chr(ord('A') + i % 26)} {_filler(stated.question - 1)}"
        made.append(Question(f"{config.name}-{i:05d}", text, (_filler(stated.answer),), worked=worked))
    shown = pool() if stated.solution is None else tuple(made[:exemplars])
    return Posed(Dataset(config.name, tuple(made[exemplars:]), shown), config.n or left, real=False)


def _filler(length: int) -> str:
    return " ".join(["token"] * length)  # one piece here, and one token in most vocabularies


def _read(cell: Cell, posed: Posed, model: LanguageModel | None) -> Read:
    most = cell.sampling.length(cell.style)
    form = form_of(cell)
    if model is None:
        asked, count = [_ask_without(cell, posed.dataset, q) for q in posed.dataset.questions], pieces
        gold = [len(pieces(f" {form.gold(a.question)}")) for a in asked]
    else:
        asked, count = ask_all(cell, posed.dataset, model), model.encode_rendered
        gold = [len(gold_ids(cell, model, a)) for a in asked]
    if not all(form.gold(a.question) for a in asked):  # no one knows how gold would be written; exemplars show a length
        gold = [len(count(f" {form.gold(e)}")) for e in exemplars_for(posed.dataset, cell.style)] or [most]
    end = len(count(_ending(cell)))
    prefix = shared_prefix([a.prompt for a in asked])
    watched = first_watched(asked, cell.capture.positions)
    lengths = [len(a.prompt.ids) for a in asked]
    return Read(
        tokenizer=STAND_IN if model is None else OWN,
        n=len(asked) if posed.real else posed.n,
        prompt=asked[0].text,
        prefix_tokens=prefix if watched is None else min(prefix, watched),
        prompt_tokens_mean=fmean(lengths),
        prompt_tokens_longest=max(lengths),
        question_tokens=fmean(len(a.question_tokens) for a in asked),
        answer_tokens=most if form.endless else fmean(min(g + max(end, 1), most) for g in gold),
    )


def _ending(cell: Cell) -> str:
    """What a base model writes after an answer until a stop string is complete; empty under a chat template."""
    goes_on = f"{SEPARATOR}{QUESTION}"
    ends = [goes_on.find(stop) + len(stop) for stop in stop_strings(cell) if stop in goes_on]
    return goes_on[: min(ends)] if ends else ""


def _ask_without(cell: Cell, dataset: Dataset, question: Question) -> Asked:
    """One question for a model whose tokenizer is not on this machine."""
    text = form_of(cell).text(dataset, question, rendered)
    asked = Asked(question, text, Prompt(question.id, pieces(text)))
    if not set(cell.capture.positions) & set(QUESTION_POSITIONS):
        return asked
    start, stop = question_span(text, question, cell.style)
    before = len(pieces(text[:start]))
    return replace(asked, question_tokens=range(before, before + len(pieces(text[start:stop]))))


# ---- stand-ins -------------------------------------------------------------------------------------------------------

# Words up to nine letters (longer ones in pieces) with the space before them, LaTeX commands, digits one by one, marks
# in twos, ends of lines. Against two public byte-level vocabularies of 100,000 and 200,000 tokens, few-shot prompts of
# eight of the named datasets in three styles come out between 2 % shorter and 11 % longer.
_PIECE = re.compile(r" ?\\?[^\W\d_]{1,9}|\d| ?[^\w\s]{1,2}|\n+|\s|_")


def pieces(text: str) -> tuple[int, ...]:
    """Stand-in token ids: equal pieces have equal ids, so that shared prefixes are found."""
    return tuple(zlib.crc32(piece.encode()) for piece in _PIECE.findall(text))


def rendered(messages: Sequence[dict[str, str]]) -> str:
    """A conversation about as long as chat templates make it, open for the assistant's answer."""
    turns = [f"<|{message['role']}|>\n{message['content']}<|end|>\n" for message in messages]
    return "".join(turns) + "<|assistant|>\n"


@dataclass(frozen=True)
class Stated:
    """What is known about a named dataset without reading it: rows of the split that is evaluated, as its page on the
    Hub states them, and mean lengths in pieces, of its original file (for openmathinstruct2, of a sample). Without a
    solution, exemplars are those of the pool; that of an option is the option."""

    size: int
    question: int
    answer: int
    solution: int | None = None


STATED = {
    "gsm8k": Stated(1_319, 60, 2, 95),
    "math500": Stated(500, 72, 4, 221),
    "openmathinstruct2": Stated(1_000_000, 81, 4, 401),
    "triviaqa": Stated(17_944, 18, 2),
    "simpleqa": Stated(4_326, 22, 5),
    "simpleqa-verified": Stated(1_000, 23, 6),
    "truthfulqa": Stated(817, 13, 11),
    "truthfulqa-mc": Stated(817, 78, 13, 13),
    "nq-open": Stated(3_610, 10, 4),
    "popqa": Stated(14_267, 8, 2),
}
