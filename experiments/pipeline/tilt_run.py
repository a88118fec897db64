"""`semcal tilt`: the remedy that follows from the theory, tried on a run.

Each half of the questions, whole groups apart, is asked again of the run's model with an adapter that was trained on
gold answers to the other half (`experiments.train.gold_adapter`); these adapters and samples go to looks/tilt of the
run. A third adapter is trained on all questions, for others than these: the folder `adapter` of the run.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import numpy as np
import pandas as pd

from experiments.compare.gates import TILTED
from experiments.compare.remedies_side_by_side import HALVES
from experiments.config.collapsing_functions import collapse_of
from experiments.config.run_folder import LOOKS, open_cell
from experiments.config.study import Cell, load_dataset
from experiments.pipeline.progress import Reporter
from experiments.sample.asked import ask, form_of
from experiments.sample.models import Models
from experiments.sample.sample_cell import sample_cell
from experiments.sample.sampling_job import check_questions, prepare
from experiments.score.score import class_table, read_answers
from experiments.train.gold_adapter import Gold, Learnt, train_on_gold
from probes.evaluation.folds import group_folds
from semcal.errors import UserError
from semcal.models.checkpoint import LanguageModel
from semcal.models.formats.adapters import ADAPTER_FILES
from semcal.questions.held_out import TRAINED, write_trained
from semcal.questions.question import Dataset, Question
from semcal.runs.claims import locked
from semcal.runs.files import write_atomically
from semcal.runs.run import Run
from semcal.semantics.class_table import ClassTable

_ORDINALS = ("first", "second")
ADAPTER, LEARNT = "adapter", "learnt.json"


@dataclass(frozen=True)
class Tilted:
    """A run's questions, asked again of tilted models.

    Attributes:
        before, after: the same questions in the same order; classes by the run's own B and alias table.
        adapters: [half] folders, each a model that has not seen gold of the half that it was asked.
        whole: likewise, of all questions: the tilted model for others than these.
        learnt: [half].
        tokens: [half] read in training, all epochs: what the remedy costs beforehand.
    """

    before: ClassTable
    after: ClassTable
    adapters: tuple[Path, ...]
    whole: Path
    learnt: tuple[Learnt, ...]
    tokens: tuple[int, ...]


@dataclass(frozen=True)
class _Lesson:
    """What an adapter learns from.

    Attributes:
        name: in messages and seeds.
        said: to who watches.
        questions, gold: the same in the same order.
        adapter: its folder.
        record: the file that says how the training went, once it is over.
    """

    name: str
    said: str
    questions: Sequence[Question] = field(repr=False)
    gold: Sequence[Gold] = field(repr=False)
    adapter: Path
    record: Path


def tilt_run(cell: Cell, run: Run, reporter: Reporter) -> Tilted:
    """Train the adapters, ask both halves, and read the answers as the run's were read. What was stopped is gone on
    from; what is finished is not made again.

    Raises:
        UserError: no local model, enumerated answers, questions without gold as this style writes it, too few groups of
            questions, prompts that are no longer those of the run; what training and sampling refuse.
    """
    if cell.enumerated:
        raise UserError(
            f"{run.folder} was enumerated; tilt asks again by sampling, so choose a run without sampling.exact"
        )
    questions = run.questions()
    halves = _halves(cell, run, questions)
    folder = run.folder / LOOKS / "tilt"
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder):
        model = Models().of_run(cell, run)
        dataset = load_dataset(cell.dataset, cell.prompting)
        check_questions(run, dataset)
        by_id = {question.id: question for question in dataset.questions}
        gold = _gold(cell, run, dataset, model)

        def lesson(rows: np.ndarray, name: str, said: str, adapter: Path, own: Path) -> _Lesson:
            ids = [i for i in questions["id"].iloc[rows] if i in gold]
            return _Lesson(name, said, [by_id[i] for i in ids], [gold[i] for i in ids], adapter, own / LEARNT)

        tables, learnt, tokens = [], [], []
        for number, (train, test) in enumerate(halves, start=1):
            own, said = folder / f"half-{number}", f"learning from the {_ORDINALS[number - 1]} half"
            half = lesson(train, f"half {number}", said, own / ADAPTER, own)
            learnt.append(_learn(cell, model, half, reporter))
            tokens.append(_tokens(half.gold, learnt[-1]))
            ids = set(questions["id"].iloc[test])
            tables.append(_ask(cell, run, _only(dataset, ids), own, reporter))
        every, whole = np.arange(len(questions)), run.folder / ADAPTER
        _learn(cell, model, lesson(every, "all", "learning from all questions", whole, folder / "all"), reporter)
    frame = pd.concat([table.to_frame() for table in tables], ignore_index=True)
    after, before = ClassTable.from_frame(frame), run.class_table()
    place = {question: row for row, question in enumerate(after.questions)}
    order = [place[question] for question in before.questions]
    write_atomically(run.folder / TILTED, lambda path: after.select(order).to_frame().to_parquet(path))
    adapters = tuple(folder / f"half-{number + 1}" / ADAPTER for number in range(HALVES))
    return Tilted(before, after.select(order), adapters, whole, tuple(learnt), tuple(tokens))


def _halves(cell: Cell, run: Run, questions: pd.DataFrame) -> list[tuple[np.ndarray, np.ndarray]]:
    """(learnt from, asked) rows of each half; groups are kept together.

    Raises:
        UserError: a half with fewer than two groups that have gold, one to learn from and one to stop by.
    """
    group, known = questions["group"].to_numpy(), questions["written_ids"].map(len).to_numpy() > 0
    halves = group_folds(group.tolist(), HALVES, seed=cell.seed) if len(set(group)) >= HALVES else []
    if not halves or min(len(set(group[train][known[train]])) for train, _ in halves) < 2:
        raise UserError(
            f"{run.folder}: only {int(known.sum())} of {len(questions)} questions have a gold answer as the style "
            f"{cell.style} writes it, in {len(set(group[known]))} of {len(set(group))} groups; "
            "tilt learns from each half of the questions, which needs two groups with gold; ask more questions, or "
            "those that have gold"
        )
    return halves


def _gold(cell: Cell, run: Run, dataset: Dataset, model: LanguageModel) -> dict[str, Gold]:
    """Question id -> what can be learnt from it, of those whose gold this style writes.

    Raises:
        UserError: a prompt is not the one that the run asked.
    """
    found, by_id = {}, {question.id: question for question in dataset.questions}
    columns = (run.questions()[name] for name in ("id", "group", "written_ids", "prompt_hash"))
    for question, group, written, prompt_hash in zip(*columns, strict=True):
        if not len(written):
            continue
        asked = ask(cell, dataset, model, by_id[question])
        if asked.ids_hash != prompt_hash:
            raise UserError(
                f"{run.folder}: the prompt of question {question!r} is not the one that was asked; restore the "
                "exemplars of its dataset as they were, or run the study again under another name"
            )
        found[question] = Gold(str(group), asked.prompt.ids, tuple(map(int, written)))
    return found


def _learn(cell: Cell, model: LanguageModel, lesson: _Lesson, reporter: Reporter) -> Learnt:
    """An adapter, trained if it is not there; what it learns from lies beside it before it does."""
    lesson.adapter.mkdir(parents=True, exist_ok=True)
    if not (lesson.adapter / TRAINED).is_file():
        write_trained(lesson.questions, lesson.adapter)
    if lesson.record.is_file() and (lesson.adapter / ADAPTER_FILES[1]).is_file():
        kept = json.loads(lesson.record.read_text(encoding="utf-8"))
        return Learnt(**kept | {key: tuple(kept[key]) for key in ("training", "validation")})

    def told(words: str) -> None:
        reporter.stage(cell, f"{lesson.said}: {words}")

    form, into = form_of(cell), lesson.adapter
    found = train_on_gold(model, lesson.gold, form, into, name=lesson.name, seed=cell.seed, told=told)
    lesson.record.parent.mkdir(exist_ok=True)
    text = json.dumps(asdict(found), indent=1) + "\n"
    write_atomically(lesson.record, lambda path: path.write_text(text, encoding="utf-8"))
    return found


def _tokens(gold: Sequence[Gold], learnt: Learnt) -> int:
    """Read in training: every epoch that was trained, of the rate that was chosen, and one of the other."""
    each = sum(len(one.prompt) + len(one.answer) + 1 for one in gold) * learnt.questions // len(gold)
    return each * (len(learnt.training) + 1)


def _only(dataset: Dataset, ids: set[str]) -> Dataset:
    return replace(dataset, questions=tuple(q for q in dataset.questions if q.id in ids))


def _ask(cell: Cell, run: Run, dataset: Dataset, own: Path, reporter: Reporter) -> ClassTable:
    """One half, asked of its tilted model and read by the run's B."""
    config = {"path": str(own / ADAPTER), "name": f"{cell.model.name} tilted", "revision": None, "adapter": None}
    changed = {"model": cell.model.model_copy(update=config), "folder": str(own / "run")}
    changed |= {"capture": cell.capture.model_copy(update={"positions": []})}
    asked = cell.model_copy(update=changed)
    into = open_cell(asked)
    if not into.sampled:
        model = Models().of(asked.model)
        job = prepare(asked, into, dataset, model, [])
        reporter.sampling(asked, len(job.asked), len(job.asked) - job.questions_left)
        if job.todo:
            sample_cell(job, model, reporter.answered)
    read = read_answers(asked, into, collapse_of(cell.semantics, run.aliases(), lambda _: None))
    return class_table(asked, into.questions(), read)
