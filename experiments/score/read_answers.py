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
from semcal.calibration.summary import Calibration, calibrate, calibrate_masses
from semcal.questions.question import CONTINUATION
from semcal.runs.run import Run
from semcal.sampling.records import LENGTH
from semcal.semantics.collapsing.collapse import Collapse
from semcal.semantics.distribution import UNEXPLORED, ClassDistribution, CountMatrix, count_matrix


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


def class_matrix(classes: pd.DataFrame) -> CountMatrix:
    """The table of classes as arrays again; a class stands in the column of its place among its question's."""
    row, column = _places(classes)
    counted = bool(classes["count"].notna().all())
    counts = np.zeros((row.max() + 1, column.max() + 1))
    counts[row, column] = classes["count" if counted else "mass"]
    unparsed = classes["is_unparsed"].to_numpy()
    gold, at = np.zeros(counts.shape, dtype=bool), np.full(len(counts), -1)
    gold[row, column] = classes["is_gold"].to_numpy() & ~unparsed
    at[row[unparsed]] = column[unparsed]
    return CountMatrix(counts.astype(np.int64) if counted else counts, gold, at)


def mass_matrix(classes: pd.DataFrame) -> np.ndarray | None:
    """[question, K] masses by log-probability (or enumeration), columns as in `class_matrix`; None where unknown."""
    row, column = _places(classes)
    masses = np.zeros((row.max() + 1, column.max() + 1))
    masses[row, column] = classes["by_mass"]
    return None if np.isnan(masses).any() else masses


def _places(classes: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Row and column of each class."""
    return pd.factorize(classes["question_id"])[0], classes.groupby("question_id", sort=False).cumcount().to_numpy()


def stored_masses(classes: pd.DataFrame) -> list[dict[str, float]]:
    """Class -> mass of every question; a class of its own where enumeration found no whole answer."""
    by_question = classes.groupby("question_id", sort=False)
    found = [{k: v for k, v in zip(q["klass"], q["mass"], strict=True) if v > 0} for _, q in by_question]
    return [masses or {UNEXPLORED: 1.0} for masses in found]
