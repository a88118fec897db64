"""A study, checked before it is run: every cell resolved, prompts rendered, tokens counted, memory of local models.

Loads no weights, writes nothing and asks no server. Tokenizers, configurations and questions that are neither on this
machine nor in the Hub's cache are replaced by `stand_ins.py`, and the plan says so.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean

from experiments.config.datasets import DatasetConfig, NamedConfig, load_dataset
from experiments.config.run_folder import check_folder
from experiments.config.study import Cell, Study
from experiments.pipeline.run_study import check_all_semantics, check_groups, check_models
from experiments.pipeline.stand_ins import STATED, pieces, placeholders, rendered
from experiments.sample.capturing import first_watched
from experiments.sample.job import check_questions
from experiments.sample.models import model_to_look_at
from experiments.sample.prompting import Asked, ask_all, form_of, gold_ids, stop_strings
from probes.activations.hooks import choose_hooks
from semcal.errors import UserError
from semcal.models.checkpoint import LanguageModel
from semcal.positions import ALL_QUESTION_TOKENS, QUESTION_POSITIONS
from semcal.questions.load_dataset import build
from semcal.questions.named.named_datasets import read_named
from semcal.questions.prompts import QUESTION, SEPARATOR, question_span, written
from semcal.questions.question import Dataset
from semcal.runs.run import Run
from semcal.sampling.decoders import shared_prefix
from semcal.sampling.engine import kv_values
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
    """What a model will read and, as far as is known, write: one dataset in one style.

    Attributes:
        tokenizer: OWN or STAND_IN.
        n: Questions, without those dropped because their prompts are too long.
        prompt: Prompt of the first question.
        prefix: Tokens that all prompts begin with; read once.
        tail: Mean number of the other tokens of a prompt.
        longest: Tokens of the longest prompt.
        question: Mean tokens of the question itself, where something is captured there; else 0.
        answer: Mean tokens of an answer, including what ends it: that of the gold answers as exemplars show them;
            max_new_tokens for continuations and for a chain of thought without exemplars.
    """

    tokenizer: str
    n: int
    prompt: str
    prefix: int
    tail: float
    longest: int
    question: float
    answer: float


@dataclass(frozen=True)
class Memory:
    """Bytes: weights; keys and values of one question with all its answers at their longest; activations on disk."""

    weights: int
    kv: int
    activations: int


@dataclass(frozen=True)
class Planned:
    """Cells that share their samples (they differ in B alone); `memory` is None without a local model."""

    cells: tuple[Cell, ...]
    read: Read
    real: bool
    memory: Memory | None

    @property
    def cell(self) -> Cell:
        return self.cells[0]

    @property
    def exact(self) -> bool:
        """Whether prompt tokens are counted, not estimated."""
        return self.read.tokenizer == OWN and self.real

    @property
    def prefill_tokens(self) -> int:
        """Tokens read before anything is generated, counted as the sampler's own record counts them."""
        return self.read.prefix + round(self.read.n * self.read.tail)

    @property
    def decode_tokens(self) -> int:
        """Tokens generated, as expected; equal beginnings are decoded once, so that fewer may be computed."""
        return self._generated(self.read.answer)

    @property
    def decode_tokens_most(self) -> int:
        """Tokens generated if every answer has the greatest length."""
        return self._generated(self.cell.sampling.length(self.cell.style))

    def _generated(self, length: float) -> int:
        sampling = self.cell.sampling
        return round(self.read.n * (sampling.m * length if sampling.exact is None else sampling.exact.row_budget))


def dry_run(study: Study) -> list[Planned]:
    """Resolve and check every cell as `semcal run` would, and count its tokens.

    Raises:
        UserError: whatever `semcal run` would refuse before it samples, as far as the files for that are here.
    """
    check_models(study)
    posed = {d.name: _pose(d, study.prompting.exemplars) for d in study.datasets}
    for name, p in posed.items():
        check_groups(study, name, len({q.group for q in p.dataset.questions}) if p.real else p.n)
    cells = study.cells()
    real = {name: p.dataset for name, p in posed.items() if p.real}
    check_all_semantics(cells, real)
    for cell in cells:
        if check_folder(cell) is not None and cell.dataset.name in real:
            check_questions(Run(Path(cell.folder)), real[cell.dataset.name])
    models = {m.name: model_to_look_at(m, cached=True) for m in study.models}
    hooks = {name: _hooks(name, model, study) for name, model in models.items() if model is not None}

    @cache  # models without a tokenizer here read the same
    def stand_in(prompt: str, dataset: str, style: str) -> Read:
        of = next(c for c in cells if (c.model.prompt, c.dataset.name, c.style) == (prompt, dataset, style))
        return _read(of, posed[dataset], None)

    together: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        together.setdefault((cell.model.name, cell.dataset.name, cell.style), []).append(cell)
    planned = []
    for (name, dataset, style), group in together.items():
        cell, model, memory = group[0], models[name], None
        if model is None:
            read = stand_in(cell.model.prompt, dataset, style)
        else:
            read = _read(cell, posed[dataset], model)
            memory = _memory(cell, read, model, hooks[name])
        planned.append(Planned(tuple(group), read, posed[dataset].real, memory))
    return planned


def _hooks(name: str, model: LanguageModel, study: Study) -> int:
    try:
        return len(choose_hooks(model.model, study.capture.hooks)) if study.capture.positions else 0
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def _memory(cell: Cell, read: Read, model: LanguageModel, hooks: int) -> Memory:
    """Activations of heads are taken to be as wide as the residual stream."""
    config, size = model.model.config.get_text_config(), _ITEMSIZE[cell.model.dtype]
    places = sum(read.question if p == ALL_QUESTION_TOKENS else 1 for p in cell.capture.positions)
    most = cell.sampling.m * cell.sampling.length(cell.style)
    return Memory(
        weights=model.model.num_parameters() * size,
        kv=kv_values(config) * size * (read.longest + most),
        activations=round(read.n * hooks * places * config.hidden_size) * _ITEMSIZE[cell.capture.dtype],
    )


def _pose(config: DatasetConfig, exemplars: int) -> Posed:
    if not isinstance(config, NamedConfig) or config.path is not None:
        dataset = load_dataset(config, exemplars)
        return Posed(dataset, len(dataset.questions), real=True)
    try:
        rows = read_named(config.kind, None, split=config.split, revision=config.revision)
    except UserError:  # not in the cache
        stated = STATED[config.kind]
        left = stated.size - exemplars
        if config.split is None and config.n is not None and config.n > left:
            raise UserError(
                f"{config.name}: n is {config.n}, but {exemplars} exemplars leave only {left} questions"
            ) from None
        few = placeholders(config.name, stated, questions=_PLACEHOLDERS, exemplars=exemplars)
        return Posed(few, config.n or left, real=False)
    dataset = build(config.name, rows, n=config.n, exemplars=exemplars, seed=config.seed)
    return Posed(dataset, len(dataset.questions), real=True)


def _read(cell: Cell, posed: Posed, model: LanguageModel | None) -> Read:
    dataset = posed.dataset
    most = cell.sampling.length(cell.style)
    if model is None:
        asked = [_ask_without(cell, dataset, i) for i in range(len(dataset.questions))]
        gold = [len(pieces(f" {written(a.question, cell.style)}")) for a in asked]
        end = len(pieces(_ending(cell)))
    else:
        asked = ask_all(cell, dataset, model)
        gold = [len(gold_ids(cell, model, a)) for a in asked]
        end = len(model.encode_rendered(_ending(cell)))
    lengths = [len(a.prompt.ids) for a in asked]
    prefix = shared_prefix([a.prompt for a in asked])
    watched = first_watched(asked, cell.capture.positions)
    prefix = prefix if watched is None else min(prefix, watched)
    endless = form_of(cell).endless
    return Read(
        tokenizer=STAND_IN if model is None else OWN,
        n=len(asked) if posed.real else posed.n,
        prompt=asked[0].text,
        prefix=prefix,
        tail=fmean(lengths) - prefix,
        longest=max(lengths),
        question=fmean(len(a.question_tokens) for a in asked),
        answer=most if endless else fmean(min(g + max(end, 1), most) for g in gold),
    )


def _ending(cell: Cell) -> str:
    """What a base model writes after an answer until a stop string is complete; empty under a chat template."""
    goes_on = f"{SEPARATOR}{QUESTION}"
    ends = [goes_on.find(stop) + len(stop) for stop in stop_strings(cell) if stop in goes_on]
    return goes_on[: min(ends)] if ends else ""


def _ask_without(cell: Cell, dataset: Dataset, index: int) -> Asked:
    """One question for a model whose tokenizer is not on this machine."""
    question = dataset.questions[index]
    text = form_of(cell).text(dataset, question, rendered)
    asked = Asked(question, text, Prompt(question.id, pieces(text)))
    if not set(cell.capture.positions) & set(QUESTION_POSITIONS):
        return asked
    start, stop = question_span(text, question, cell.style)
    before = len(pieces(text[:start]))
    return replace(asked, question_tokens=range(before, before + len(pieces(text[start:stop]))))
