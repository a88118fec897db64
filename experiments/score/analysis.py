"""What is computed from a cell's samples and activations: classes, calibration, probes. Only probes that read the model
itself ask for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pandas as pd

from experiments.config.collapsing_functions import collapse_of
from experiments.config.study import Cell
from experiments.score.calibration_sections import details, masses_of
from experiments.score.read_answers import Read, class_table, measure, read_answers
from semcal.runs.run import Run
from semcal.semantics.collapsing.clustered import Clustered
from semcal.semantics.collapsing.collapse import Collapse
from semcal.semantics.collapsing.judge import Judge
from semcal.semantics.distribution import count_matrix
from semcal.semantics.intermediate import expected_confidence


def score(cell: Cell, run: Run, tell: Callable[[str], None] = lambda _: None) -> None:
    """Collapse answers into classes and measure calibration; `tell` hears how far a B that asks a model has come.

    Writes classes.parquet, intermediate.parquet and calibration.json.
    """
    collapse = collapse_of(cell.semantics, run.aliases(), tell)
    read, table = read_answers(cell, run, collapse), run.questions()
    ids = list(table["id"])
    matrix = count_matrix([r.distribution for r in read])
    by_mass = masses_of(read, matrix) if cell.sampling.exact is None else None
    run.write_classes(class_table(run, read))
    run.write_intermediate(_intermediate_table(ids, read))
    result = measure(cell, run, read)
    behind = details(cell, run, read, matrix, by_mass, result)
    run.write_calibration({"semantics": collapse.name, **_failures(collapse), **result.to_dict(), **behind})


def _failures(collapse: Collapse) -> dict[str, int]:
    """What a judge could not say, by kind."""
    judge = collapse.cluster if isinstance(collapse, Clustered) else None
    return {f"judge_failed_to_{what}": n for what, n in judge.failures.items()} if isinstance(judge, Judge) else {}


def _intermediate_table(ids: Sequence[str], read: Sequence[Read]) -> pd.DataFrame:
    """A row a question and token index, where token ids are known (not for served models)."""
    rows = []
    for question_id, its in zip(ids, read, strict=True):
        tokens = [tuple(t) for t in its.samples["token_ids"]]
        if tokens and all(tokens):
            expected = expected_confidence(tokens, its.weights, its.classes)
            rows += [(question_id, i, float(value)) for i, value in enumerate(expected)]
    return pd.DataFrame(rows, columns=["question_id", "token", "expected_confidence"])
