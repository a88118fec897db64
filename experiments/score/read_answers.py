"""The answers of a run as semantic classes: read from its samples by a B, made into a class table, and measured.

Knows run folders and configurations; writes nothing and needs no model except what B queries.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from experiments.config.study import Cell
from semcal.calibration.resampling import Resampling
from semcal.calibration.summary import Calibration, calibrate
from semcal.runs.run import Run
from semcal.sampling.records import LENGTH
from semcal.semantics.class_table import ClassTable
from semcal.semantics.collapse_answers import readable
from semcal.semantics.collapsing.collapse import Collapse, collapse_blind


@dataclass(frozen=True)
class Read:
    """The samples of one question, read by a collapsing function.

    Attributes:
        samples: one row per distinct answer.
        weights: [answer] counts, or the probabilities that enumeration gives.
        classes: [answer] semantic classes.
        gold: the correct classes, whether an answer fell into them or not.
    """

    samples: pd.DataFrame
    weights: list[Any]
    classes: tuple[str, ...]
    gold: frozenset[str]


def read_answers(cell: Cell, run: Run, collapse: Collapse) -> list[Read]:
    """The answers of every question as classes, in the order of `run.questions()`."""
    questions, samples = run.question_records(), run.samples()
    by_question = dict(iter(samples.groupby("question_id", sort=False)))
    empty = samples.iloc[:0]  # enumeration may have found no whole answer within its budget
    rows: list[pd.DataFrame] = [by_question.get(q.id, empty) for q in questions]  # pyright: ignore[reportAssignmentType]
    found = collapse_blind(collapse, questions, [readable_texts(answers, cell.style) for answers in rows], cell.style)
    weights = [list(np.exp(r["logprob"])) if cell.enumerated else list(r["count"]) for r in rows]
    return [Read(r, w, b.classes, b.gold) for r, w, b in zip(rows, weights, found, strict=True)]


def readable_texts(rows: pd.DataFrame, style: str) -> list[str]:
    """The texts of some samples as B may read them."""
    return [readable(text, finish, style) for text, finish in zip(rows["text"], rows["finish"], strict=True)]


def class_table(cell: Cell, questions: pd.DataFrame, read: Sequence[Read]) -> ClassTable:
    """The class table of answers that have been read.

    Masses come from the log-probabilities of the samples, where all are known, or are those that enumeration found.

    Args:
        questions: their rows of `Run.questions`, in the order of `read`.
    """
    classes, weights = [r.classes for r in read], [r.weights for r in read]
    ids, groups, gold = list(questions["id"]), questions["group"].to_numpy(), [r.gold for r in read]
    table = ClassTable.of_answers(ids, groups, classes, weights, gold, enumerated=cell.enumerated)
    return table.with_masses(classes, weights, [list(r.samples["logprob"]) for r in read])


def measure(table: ClassTable, read: Sequence[Read], resampling: Resampling) -> Calibration:
    """Every figure of calibration of answers that have been read."""
    weight = np.concatenate([np.array(r.weights, dtype=float) for r in read])
    cut = np.array([finish for r in read for finish in r.samples["finish"].tolist()]) == LENGTH
    truncated = float(weight[cut].sum() / weight.sum()) if weight.sum() else float("nan")
    return calibrate(table, resampling=resampling, truncated_share=truncated)
