"""A run's profile: the same samples by how they begin, how long they are and what they mean, calibration under each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import pandas as pd

from experiments.config.study import Cell
from experiments.score.read_answers import Read, class_table, measure
from semcal.calibration.plots.profile import ProfileRow
from semcal.calibration.summary import Calibration
from semcal.questions.question import CONTINUATION
from semcal.sampling.records import LENGTH
from semcal.semantics.class_table import ClassTable
from semcal.semantics.collapsing.surface import first_token, first_word, length


def profile(
    cell: Cell, questions: pd.DataFrame, read: Sequence[Read], table: ClassTable, own: Calibration
) -> list[ProfileRow]:
    """One row for each B that the run has data for: first token, first word, length in words, the run's own.

    The first three see the gold answer as the run's style writes it (columns `written` and `written_ids` of its
    questions); of several correct answers, the first. A served model has no first token, and a text that is only
    continued no length.

    Args:
        questions: `Run.questions`.
        read: the run's answers, read by its own B.
        table: their class table.
        own: their calibration.
    """
    detail, rows = cell.calibration.detail(cell.seed), []
    for name, found in _surfaces(cell, questions, read).items():
        if found:
            seen = list(found.values())
            classes = class_table(cell, questions.iloc[list(found)], seen)
            rows.append(ProfileRow.of(name, classes.mean_classes, measure(classes, seen, detail)))
    return [*rows, ProfileRow.of(f"meaning ({cell.semantics.label})", table.mean_classes, own)]


def _surfaces(cell: Cell, questions: pd.DataFrame, read: Sequence[Read]) -> dict[str, dict[int, Read]]:
    """Name of a B -> row of each question whose gold answer it can see -> the question's answers as classes."""
    by_token, by_word, by_length = {}, {}, {}
    limit = cell.sampling.length(cell.style)
    for row, (text, ids, answers) in enumerate(zip(questions["written"], questions["written_ids"], read, strict=True)):
        cut = [finish == LENGTH for finish in answers.samples["finish"].tolist()]
        texts = list(zip(answers.samples["text"], cut, strict=True))
        if len(ids):
            by_token[row] = _seen(answers, map(first_token, answers.samples["token_ids"]), first_token(ids))
        by_word[row] = _seen(answers, (first_word(t, cut=c) for t, c in texts), first_word(text))
        if cell.style != CONTINUATION:  # where the length is that of the limit, and of the excerpt for gold
            gold = length(text, cut=len(ids) >= limit)  # an answer needs one token more, to end
            by_length[row] = _seen(answers, (length(t, cut=c) for t, c in texts), gold)
    return {"first token": by_token, "first word": by_word, "length in words": by_length}


def _seen(answers: Read, classes: Iterable[str], gold: str) -> Read:
    """The same samples under another B."""
    return replace(answers, classes=tuple(classes), gold=frozenset({gold}))
