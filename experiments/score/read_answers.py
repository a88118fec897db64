"""The answers of a run as semantic classes: read from its samples by a B, as arrays, and measured.

Knows run folders and configurations; writes nothing and needs no model but what B asks.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from experiments.config.study import Cell
from semcal.calibration.estimators.masses import class_masses
from semcal.calibration.summary import Calibration, calibrate, calibrate_masses
from semcal.questions.question import CONTINUATION
from semcal.runs.run import Run
from semcal.sampling.records import LENGTH
from semcal.semantics.class_table import UNEXPLORED, UNPARSED, ClassTable, ordered_classes
from semcal.semantics.collapsing.collapse import Collapse
from semcal.semantics.distribution import ClassDistribution, count_matrix


@dataclass(frozen=True)
class Read:
    """One question's samples, read by a collapsing function.

    Attributes:
        samples: The rows of its distinct answers.
        weights: [answer] counts, or the probabilities that enumeration gives.
        classes: [answer] semantic classes.
        distribution: What they make.
    """

    samples: pd.DataFrame
    weights: list[Any]
    classes: tuple[str, ...]
    distribution: ClassDistribution


def read_answers(cell: Cell, run: Run, collapse: Collapse) -> list[Read]:
    """The answers of every question as classes, in the order of `run.questions()`."""
    questions, samples = run.question_records(), run.samples()
    by_question = dict(iter(samples.groupby("question_id", sort=False)))
    empty = samples.iloc[:0]  # enumeration may have found no whole answer within its budget
    rows: list[pd.DataFrame] = [by_question.get(q.id, empty) for q in questions]  # pyright: ignore[reportAssignmentType]
    found = collapse.collapse(questions, [readable(its, cell.style) for its in rows], cell.style)
    exact = cell.sampling.exact is not None
    read = []
    for its, collapsed in zip(rows, found, strict=True):
        weights = _weights(cell, its)
        distribution = ClassDistribution.of(collapsed.classes, weights, collapsed.gold, exact=exact)
        read.append(Read(its, weights, collapsed.classes, distribution))
    return read


def _weights(cell: Cell, rows: pd.DataFrame) -> list[Any]:
    """Counts of samples, or the probabilities that enumeration gives."""
    return list(rows["count"]) if cell.sampling.exact is None else list(np.exp(rows["logprob"]))


def readable(rows: pd.DataFrame, style: str) -> list[str]:
    """The texts of some samples as B may read them."""
    texts = list(rows["text"])
    if style != CONTINUATION:
        return texts
    cut = (rows["finish"] == LENGTH).to_list()  # the last word of a continuation that was cut may be half a word
    return [_whole_words(t) if c else t for t, c in zip(texts, cut, strict=True)]


def _whole_words(text: str) -> str:
    return re.sub(r"\S+$", "", text)


def measure(
    cell: Cell, run: Run, read: Sequence[Read], *, group: np.ndarray | None = None, draws: int | None = None
) -> Calibration:
    """Every figure of calibration of answers that have been read.

    Args:
        group: where the answers are not those of all questions.
        draws: resamples and simulated data sets, where they are to be others than the study's.
    """
    matrix = count_matrix([r.distribution for r in read])
    settings: dict[str, Any] = {
        "truncated_share": _truncated_share(read),
        "group": run.questions()["group"].to_numpy() if group is None else group,
        "bootstrap": draws or cell.calibration.bootstrap,
        "null_draws": draws or cell.calibration.null_draws,
        "level": cell.calibration.level,
        "seed": cell.seed,
    }
    if cell.sampling.exact is None:
        return calibrate(matrix.counts, matrix.gold, matrix.unparsed, m=cell.sampling.m, **settings)
    return calibrate_masses(matrix.counts, matrix.gold, matrix.unparsed, **settings)


def _truncated_share(read: Sequence[Read]) -> float:
    weight = np.concatenate([np.array(r.weights, dtype=float) for r in read])
    cut = np.array([finish for r in read for finish in r.samples["finish"].tolist()]) == LENGTH
    return float(weight[cut].sum() / weight.sum()) if weight.sum() else float("nan")


def class_table(run: Run, read: Sequence[Read]) -> ClassTable:
    """The class table of answers that have been read, in the order of `run.questions()`.

    Masses come from the log-probabilities of the samples, or are those that enumeration found.
    """
    questions, enumerated = run.questions(), any(r.distribution.exact for r in read)
    classes = [
        ordered_classes(r.distribution.counts, r.distribution.gold) or (UNEXPLORED,) for r in read
    ]  # a question of which enumeration found nothing keeps its row
    shape = (len(read), max(map(len, classes)))
    weights, gold, unparsed = np.zeros(shape), np.zeros(shape, dtype=bool), np.full(len(read), -1)
    for row, (r, labels) in enumerate(zip(read, classes, strict=True)):
        for column, label in enumerate(labels):
            weights[row, column] = r.distribution.counts.get(label, 0)
            gold[row, column] = label in r.distribution.gold and label != UNPARSED
            if label == UNPARSED:
                unparsed[row] = column
    counts = None if enumerated else weights.astype(np.int64)
    masses, seen = (weights, weights.sum(1)) if enumerated else _masses(read, classes, shape)
    return ClassTable(
        questions=tuple(questions["id"]),
        groups=questions["group"].to_numpy().astype(str),
        classes=tuple(classes),
        counts=counts,
        masses=masses,
        seen_mass=seen,
        gold=gold,
        unparsed=unparsed,
    )


def _masses(
    read: Sequence[Read], classes: Sequence[Sequence[str]], shape: tuple[int, int]
) -> tuple[np.ndarray | None, np.ndarray]:
    """Class masses by the log-probabilities of the samples, and the mass seen; None and NaN where one is unknown."""
    logprob = np.concatenate([r.samples["logprob"].to_numpy(dtype=float) for r in read])
    if np.isnan(logprob).any():
        return None, np.full(shape[0], np.nan)
    column = [{label: k for k, label in enumerate(labels)} for labels in classes]
    row = np.repeat(np.arange(len(read)), [len(r.classes) for r in read])
    masses = class_masses(
        row,
        [column[at][label] for at, r in enumerate(read) for label in r.classes],
        np.concatenate([r.samples["count"].to_numpy(dtype=int) for r in read]),
        logprob,
        shape=shape,
    )
    return masses, np.minimum(1.0, np.bincount(row, np.exp(logprob), shape[0]))
