"""From a cell's samples to semantic classes and calibration, without its model."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import pandas as pd

from experiments.config.collapsing_functions import collapse_of
from experiments.config.study import Cell
from experiments.score.calibration_sections import profile, sections
from experiments.score.read_answers import Read, class_table, measure, read_answers
from semcal.calibration.summary import Calibration
from semcal.runs.run import Run
from semcal.semantics.answer_tree import expected_confidence
from semcal.semantics.class_table import ClassTable
from semcal.semantics.collapsing.alias_table import Aliases, coverage
from semcal.semantics.collapsing.clustered import Clustered, at_other_thresholds
from semcal.semantics.collapsing.collapse import Collapse
from semcal.semantics.collapsing.exact_match import ExactMatch
from semcal.semantics.collapsing.judge import Judge


def score(cell: Cell, run: Run, tell: Callable[[str], None] = lambda _: None) -> None:
    """Collapse answers into classes and measure calibration.

    Writes classes.parquet, intermediate.parquet and calibration.json.

    Args:
        tell: receives the progress of a B that queries a model.
    """
    aliases = run.aliases()
    collapse = collapse_of(cell.semantics, aliases, tell)
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
        | _matched_gold(table, collapse, aliases)
        | sections(cell, table, read, closed=len(aliases.closed) > 0)
        | {"thresholds": _thresholds(cell, run, collapse, table, headline)}
        | {"profile": [asdict(row) for row in rows]}
    )


def _matched_gold(table: ClassTable, collapse: Collapse, aliases: Aliases) -> dict[str, Any]:
    """How gold answers met classes that were made without them.

    Questions whose gold answer is in several classes (all of them correct), and, for exact match in an open answer
    space, the share of wrong answers whose forms the alias table knows.
    """
    open_exact = isinstance(collapse, ExactMatch) and not aliases.closed
    return {
        "gold_in_several_classes": int((table.gold.sum(axis=1) > 1).sum()),
        "wrong_answers_with_known_forms": coverage(table, aliases.pooled) if open_exact else None,
    }


def _thresholds(
    cell: Cell, run: Run, collapse: Collapse, table: ClassTable, headline: Calibration
) -> list[dict[str, float]] | None:
    """The headline under B's own threshold, `table` and `headline`, and under the two beside it; None without one."""
    found = {}
    for threshold, b in at_other_thresholds(collapse).items():
        read = read_answers(cell, run, b)
        other = class_table(cell, run.questions(), read)
        found[threshold] = other, measure(other, read, cell.calibration.resampling(cell.seed))
    if not found:
        return None
    found[cell.semantics.threshold] = table, headline  # pyright: ignore[reportAttributeAccessIssue]
    figures = ("confidence", "accuracy", "smece", "null_mean", "excess")
    return [
        {"threshold": threshold, "classes_per_question": classes.mean_classes}
        | {name: float(getattr(measured, name)) for name in figures}
        for threshold, (classes, measured) in sorted(found.items())
    ]


def _intermediate_table(ids: Sequence[str], read: Sequence[Read]) -> pd.DataFrame:
    """One row per question and token index, where token ids are known (not for served models)."""
    rows = []
    for question_id, answers in zip(ids, read, strict=True):
        tokens = [tuple(t) for t in answers.samples["token_ids"]]
        if tokens and all(tokens):
            expected = expected_confidence(tokens, answers.weights, answers.classes)
            rows += [(question_id, i, float(value)) for i, value in enumerate(expected)]
    return pd.DataFrame(rows, columns=["question_id", "token", "expected_confidence"])
