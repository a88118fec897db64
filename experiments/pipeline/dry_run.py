"""A study, looked at before it is run: every cell resolved and checked, some prompts rendered, tokens counted.

Loads no weights, writes nothing and asks no server. Tokenizers, configurations and questions are the real ones where
they lie on this machine or in the Hub's cache; what is not at hand is replaced by `standins.py` and said to be. (Where
HF_HUB_OFFLINE is not set before, `datasets` may ask the Hub.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from statistics import fmean

from experiments.config.datasets import DatasetConfig, NamedConfig, load_dataset
from experiments.config.study import Cell, Study
from experiments.pipeline.cell import check_folder, check_questions
from experiments.pipeline.cost import ITEMSIZE, Accelerator, Activations, Cost, Shape, Workload, activations, cost
from experiments.pipeline.run_study import check_all_semantics, check_groups, check_models
from experiments.pipeline.shapes import shape_of
from experiments.pipeline.stand_ins import STATED, pieces, placeholders, rendered
from experiments.sample.capturing import first_watched
from experiments.sample.models import model_path, model_to_look_at
from experiments.sample.prompting import Asked, ask_all, form_of, gold_ids, stop_strings
from probes.activations.hooks import choose_hooks
from semcal.errors import UserError
from semcal.models.checkpoint import LanguageModel
from semcal.positions import ALL_QUESTION_TOKENS, QUESTION_POSITIONS, block_hooks, in_answer, matching
from semcal.questions.build import build
from semcal.questions.named.registry import read_named
from semcal.questions.prompts import QUESTION, SEPARATOR, question_span, written
from semcal.questions.question import Dataset
from semcal.runs.run import Run
from semcal.sampling.decoders import shared_prefix
from semcal.sampling.engine import usual_rows
from semcal.sampling.records import Prompt

OWN, STAND_IN = "own", "stand-in"
_PLACEHOLDERS = 16  # questions made up of a dataset that is not at hand


@dataclass(frozen=True)
class Posed:
    """The questions of a dataset as far as they are at hand.

    Attributes:
        dataset: The questions, or some placeholders.
        n: How many will be asked.
        real: Whether they are the dataset's own.
    """

    dataset: Dataset
    n: int
    real: bool


@dataclass(frozen=True)
class Read:
    """What a model will read and, as far as can be said, write: one dataset in one style.

    Attributes:
        tokenizer: OWN or STAND_IN.
        n: Questions, without those dropped for their long prompts.
        prompt: That of the first question.
        prefix: Tokens that all prompts begin with.
        tail: Mean other tokens of a prompt.
        longest: Tokens of the longest prompt.
        question: Mean tokens of the question itself, where something is captured there; else 0.
        answer: Mean tokens of an answer, what ends it included: of the gold answers as exemplars show them; the most
            there may be for a chain of thought without exemplars and for a continuation, which end where they like.
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
class Planned:
    """Cells that share their samples (they differ in B alone), and what sampling them takes.

    Attributes:
        cells: One for each B.
        read: Prompts and tokens.
        real: Whether the questions are the dataset's own.
        shape: Of the model; None where neither a configuration nor its name tells, and for a served model.
        work: Tokens.
        cost, activations: None without a shape.
    """

    cells: tuple[Cell, ...]
    read: Read
    real: bool
    shape: Shape | None
    work: Workload
    cost: Cost | None
    activations: Activations | None

    @property
    def cell(self) -> Cell:
        return self.cells[0]


@dataclass(frozen=True)
class DryRun:
    """A whole study."""

    study: Study
    planned: tuple[Planned, ...]
    gpu: Accelerator


def dry_run(study: Study, gpu: Accelerator | None = None) -> DryRun:
    """Resolve and check every cell as `semcal run` would, and estimate what it takes.

    Raises:
        UserError: whatever `semcal run` would refuse before it samples, as far as the files for that are here.
    """
    gpu = gpu or Accelerator()
    check_models(study)
    posed = {d.name: _pose(d, study.prompting.exemplars) for d in study.datasets}
    for name, its in posed.items():
        check_groups(study, name, len({q.group for q in its.dataset.questions}) if its.real else its.n)
    cells = study.cells()
    real = {name: its.dataset for name, its in posed.items() if its.real}
    check_all_semantics(cells, real)
    for cell in cells:
        if check_folder(cell) is not None and cell.dataset.name in real:
            check_questions(Run(Path(cell.folder)), real[cell.dataset.name])
    looked = {m.name: model_to_look_at(m, cached=True) for m in study.models}
    shapes = {m.name: None if m.is_served else shape_of(model_path(m), looked[m.name]) for m in study.models}
    for name, model in looked.items():
        if model is not None and study.capture.positions:
            _check_hooks(name, model, study.capture.hooks)

    @cache  # models without a tokenizer here read the same
    def stand_in(prompt: str, dataset: str, style: str) -> Read:
        of = next(c for c in cells if (c.model.prompt, c.dataset.name, c.style) == (prompt, dataset, style))
        return _read(of, posed[dataset], None)

    together: dict[tuple[str, str, str], list[Cell]] = {}
    for cell in cells:
        together.setdefault((cell.model.name, cell.dataset.name, cell.style), []).append(cell)
    planned = []
    for (model_name, dataset, style), group in together.items():
        model = looked[model_name]
        read = (
            stand_in(group[0].model.prompt, dataset, style) if model is None else _read(group[0], posed[dataset], model)
        )
        planned.append(_plan(group, read, posed[dataset].real, shapes[model_name], gpu))
    return DryRun(study, tuple(planned), gpu)


# ---- what is asked -------------------------------------------------------------------------------------------------


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
                f"{config.name}: n is {config.n}, but beside {exemplars} exemplars there are only {left} questions"
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
    """What a base model writes after an answer until a stop string is complete, as exemplars go on; else nothing."""
    goes_on = f"{SEPARATOR}{QUESTION}"
    ends = [goes_on.find(stop) + len(stop) for stop in stop_strings(cell) if stop in goes_on]
    return goes_on[: min(ends)] if ends else ""


def _ask_without(cell: Cell, dataset: Dataset, index: int) -> Asked:
    """One question for a model whose tokenizer is not here."""
    question = dataset.questions[index]
    text = form_of(cell).text(dataset, question, rendered)
    asked = Asked(question, text, Prompt(question.id, pieces(text)))
    if not set(cell.capture.positions) & set(QUESTION_POSITIONS):
        return asked
    start, stop = question_span(text, question, cell.style)
    before = len(pieces(text[:start]))
    return replace(asked, question_tokens=range(before, before + len(pieces(text[start:stop]))))


# ---- what it takes -------------------------------------------------------------------------------------------------


def _check_hooks(name: str, model: LanguageModel, patterns: Sequence[str]) -> None:
    try:
        choose_hooks(model.model, patterns)
    except UserError as error:
        raise UserError(f"{name}: {error}") from None


def _plan(cells: Sequence[Cell], read: Read, real: bool, shape: Shape | None, gpu: Accelerator) -> Planned:
    cell = cells[0]
    exact, most, vocabulary = cell.sampling.exact, cell.sampling.length(cell.style), shape.vocabulary if shape else 1
    later = any(in_answer(p) for p in cell.capture.positions)
    work = Workload(
        questions=read.n,
        m=cell.sampling.m if exact is None else 1,  # an enumeration decodes so many prefixes of a question, all told
        prefix=read.prefix,
        tail=read.tail,
        longest=read.longest,
        answer=read.answer if exact is None else exact.row_budget,
        most=most if exact is None else exact.row_budget,
        reread=read.prefix + read.tail + read.answer if later else 0,
        rows=cell.sampling.max_rows or usual_rows("cuda", vocabulary),
        captured=_captured(cell, read, shape) if shape else 0,
        captured_bytes=ITEMSIZE[cell.capture.dtype],
        shard=cell.sampling.shard_size,
        dtype=cell.model.dtype,
    )
    return Planned(
        tuple(cells),
        read,
        real,
        shape,
        work,
        cost(work, shape, gpu) if shape else None,
        activations(work) if shape else None,
    )


def _captured(cell: Cell, read: Read, shape: Shape) -> int:
    """Numbers kept of a question; those of heads are taken to be as wide as the residual stream."""
    hooks = [h for i in range(shape.layers) for h in block_hooks(i)]
    wanted = {h for pattern in cell.capture.hooks for h in matching(pattern, hooks)}
    places = sum(read.question if p == ALL_QUESTION_TOKENS else 1 for p in cell.capture.positions)
    return round(len(wanted) * places * shape.width)
