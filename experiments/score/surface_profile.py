"""A run's profile: the same samples by how they begin, how long they are and what they mean, calibration under each."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd

from experiments.config.study import Cell
from experiments.score.read_answers import Read, measure
from semcal.calibration.plots.profile import ProfileRow
from semcal.calibration.summary import Calibration
from semcal.questions.question import CONTINUATION
from semcal.runs.run import Run
from semcal.sampling.records import LENGTH
from semcal.semantics.collapsing.surface import first_token, first_word, length
from semcal.semantics.distribution import ClassDistribution


def profile(cell: Cell, run: Run, read: Sequence[Read], own: Calibration) -> list[ProfileRow]:
    """A row for each B that the run has what it needs for: first token, first word, length in words, the run's own.

    The first three see the gold answer as the run's style writes it (columns `written` and `written_ids` of its
    questions), of a question with several correct answers the first. There is no first token of a served model, no
    length of a text that is only to be continued, and nothing but the run's own B of runs of early versions.

    Args:
        read: the run's answers as `experiments.score.read_answers.read_answers` gives them.
        own: their calibration under the run's own B.
    """
    group = run.questions()["group"].to_numpy()
    surfaces = {name: its for name, its in _surfaces(cell, run.questions(), read).items() if its}
    rows, draws = [], cell.calibration.detail_draws
    for name, its in surfaces.items():
        seen = list(its.values())
        rows.append(ProfileRow.of(name, _classes(seen), measure(cell, run, seen, group=group[list(its)], draws=draws)))
    return [*rows, ProfileRow.of(f"meaning ({cell.semantics.label})", _classes(read), own)]


def _classes(read: Sequence[Read]) -> float:
    """Mean number of classes a question."""
    return float(np.mean([len(r.distribution.counts) for r in read]))


def _surfaces(cell: Cell, questions: pd.DataFrame, read: Sequence[Read]) -> dict[str, dict[int, Read]]:
    """name of a B -> place of each question whose gold answer it can see -> the question's answers as classes."""
    if "written" not in questions:
        return {}
    by_token, by_word, by_length = {}, {}, {}
    limit = cell.sampling.length(cell.style)
    for at, (text, ids, its) in enumerate(zip(questions["written"], questions["written_ids"], read, strict=True)):
        cut = [finish == LENGTH for finish in its.samples["finish"].tolist()]
        texts = list(zip(its.samples["text"], cut, strict=True))
        if len(ids):
            by_token[at] = _seen(its, map(first_token, its.samples["token_ids"]), first_token(ids))
        by_word[at] = _seen(its, (first_word(t, cut=c) for t, c in texts), first_word(text))
        if cell.style != CONTINUATION:  # whose length is the limit's, and the gold's that of the excerpt
            gold = length(text, cut=len(ids) >= limit)  # an answer needs one token more, to end
            by_length[at] = _seen(its, (length(t, cut=c) for t, c in texts), gold)
    return {"first token": by_token, "first word": by_word, "length in words": by_length}


def _seen(its: Read, classes: Iterable[str], gold: str) -> Read:
    """The same samples under another B."""
    found = tuple(classes)
    distribution = ClassDistribution.of(found, its.weights, frozenset({gold}), exact=its.distribution.exact)
    return Read(its.samples, its.weights, found, distribution)
