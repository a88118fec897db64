"""Accuracy and confidence while a cell is sampled, over the questions that are finished so far."""

from __future__ import annotations

import numpy as np
import pandas as pd

from experiments.config.collapsing_functions import collapse_of
from experiments.config.study import Cell
from experiments.score.score import class_table, read_samples
from semcal.runs.partial_shard import SAMPLE_COLUMNS
from semcal.runs.run import Run

QUERYING = ("entailment", "embedding", "judge", "custom")  # kinds of B that query a model, or may


class RunningFigures:
    """Mean confidence and accuracy of the finished questions; each finished shard is read once.

    Questions of a shard are sampled from the shortest prompt to the longest, so these are no estimates of the whole.
    """

    def __init__(self, cell: Cell, run: Run) -> None:
        self._cell, self._run = cell, run
        self._collapse = collapse_of(cell.semantics, run.aliases(), lambda _: None)
        self._questions = run.questions().set_index("id", drop=False)
        self._records = {q.id: q for q in run.question_records()}
        self._shards: dict[str, tuple[float, float, int]] = {}  # sums of confidence and correctness; questions

    @classmethod
    def of(cls, cell: Cell, run: Run) -> RunningFigures | None:
        """None where B queries a model, which takes time that sampling needs, and for enumerated answers."""
        return None if cell.enumerated or cell.semantics.kind in QUERYING else cls(cell, run)

    def now(self) -> dict[str, float]:
        """`running/questions`, `running/confidence` and `running/accuracy`; empty while nothing is finished."""
        found = []
        for key in self._run.shard_keys():
            if key in self._shards:
                found.append(self._shards[key])
            elif (path := self._run.folder / "samples" / f"{key}.parquet").is_file():
                self._shards[key] = self._sums(pd.read_parquet(path))
                found.append(self._shards[key])
            elif rows := [row for portion in self._run.partial(key) for rows in portion.values() for row in rows]:
                found.append(self._sums(pd.DataFrame(rows, columns=list(SAMPLE_COLUMNS))))
        confidence, correct, n = map(sum, zip(*found, strict=True)) if found else (0.0, 0.0, 0)
        if n == 0:
            return {}
        return {"running/questions": n, "running/confidence": confidence / n, "running/accuracy": correct / n}

    def _sums(self, samples: pd.DataFrame) -> tuple[float, float, int]:
        ids = list(dict.fromkeys(samples["question_id"]))
        read = read_samples(self._cell, [self._records[q] for q in ids], samples, self._collapse)
        answers = class_table(self._cell, self._questions.loc[ids], read).by_count
        return float(np.sum(answers.plug_in)), float(np.sum(answers.correct)), len(ids)
