"""From a cell's samples to semantic classes and calibration, without its model."""

from collections.abc import Callable, Sequence
from dataclasses import asdict

import pandas as pd

from experiments.config.collapsing_functions import collapse_of
from experiments.config.study import Cell
from experiments.score.calibration_sections import profile, sections
from experiments.score.read_answers import Read, class_table, measure, read_answers
from semcal.runs.run import Run
from semcal.semantics.answer_tree import expected_confidence
from semcal.semantics.collapsing.clustered import Clustered
from semcal.semantics.collapsing.judge import Judge


def score(cell: Cell, run: Run, tell: Callable[[str], None] = lambda _: None) -> None:
    """Collapse answers into classes and measure calibration.

    Writes classes.parquet, intermediate.parquet and calibration.json.

    Args:
        tell: receives the progress of a B that queries a model.
    """
    collapse = collapse_of(cell.semantics, run.aliases(), tell)
    read, questions = read_answers(cell, run, collapse), run.questions()
    table = class_table(cell, questions, read)
    run.write_classes(table)
    run.write_intermediate(_intermediate_table(table.questions, read))
    headline = measure(table, read, cell.calibration.resampling(cell.seed))
    rows = profile(cell, questions, read, table, headline)
    judge = collapse.cluster if isinstance(collapse, Clustered) else None
    failures = judge.failures if isinstance(judge, Judge) else {}
    run.write_calibration(
        {"semantics": collapse.name, **{f"judge_failed_to_{what}": n for what, n in failures.items()}}
        | headline.to_dict()
        | sections(cell, table, read, closed=len(run.aliases()) > 0)
        | {"profile": [asdict(row) for row in rows]}
    )


def _intermediate_table(ids: Sequence[str], read: Sequence[Read]) -> pd.DataFrame:
    """One row per question and token index, where token ids are known (not for served models)."""
    rows = []
    for question_id, answers in zip(ids, read, strict=True):
        tokens = [tuple(t) for t in answers.samples["token_ids"]]
        if tokens and all(tokens):
            expected = expected_confidence(tokens, answers.weights, answers.classes)
            rows += [(question_id, i, float(value)) for i, value in enumerate(expected)]
    return pd.DataFrame(rows, columns=["question_id", "token", "expected_confidence"])
