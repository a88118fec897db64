"""Which runs may be compared with which: chosen, read, paired, or refused.

Knows run folders and configurations; knows no statistics.
"""

import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from experiments.config.run_folder import FACTORS, differing, stored_cell
from experiments.config.study import Cell
from semcal.errors import UserError
from semcal.runs.run import Run
from semcal.runs.without_texts import fingerprints
from semcal.semantics.class_table import ClassTable


@dataclass(frozen=True)
class Scored:
    """A run that was scored, as a comparison needs it: `questions` (group, and fingerprints of text and answers, by id)
    are in the order of the table, `calibration` is calibration.json."""

    cell: Cell
    folder: Path
    table: ClassTable
    questions: pd.DataFrame
    calibration: dict[str, Any]

    @property
    def m(self) -> int | None:
        """Samples per question; None where answers were enumerated."""
        return self.table.m


def scored(run: Run) -> Scored:
    """Read a run that has been scored."""
    table, calibration = run.class_table(), run.calibration()
    questions = fingerprints(run.questions()).set_index("id").loc[list(table.questions), :]
    return Scored(stored_cell(run), run.folder, table, questions, calibration)


def sensible_pairs(runs: Sequence[Scored]) -> list[tuple[Scored, Scored]]:
    """The pairs on the same dataset that differ in exactly one of model, style, B and temperature.

    Raises:
        UserError: there is none.
    """
    by_factor: dict[str, list[tuple[Scored, Scored]]] = {factor: [] for factor in FACTORS}
    for a, b in itertools.combinations(runs, 2):
        factor, *others = differing(a.cell, b.cell) or [""]
        if a.cell.dataset.name == b.cell.dataset.name and factor in FACTORS and not others:
            by_factor[factor].append((a, b))
    pairs = list(itertools.chain.from_iterable(by_factor.values()))
    if not pairs:
        raise UserError(
            f"no two of these {len(runs)} runs share a dataset and differ in exactly one of {', '.join(FACTORS)}; "
            "name the runs to compare one by one"
        )
    return pairs


def by_temperature(runs: Sequence[Scored]) -> list[list[Scored]]:
    """Families of runs that differ in temperature alone, coldest first."""
    families: list[list[Scored]] = []
    for run in runs:
        alike = (f for f in families if _same_but_temperature(f[0], run))
        if (family := next(alike, None)) is None:
            families.append(family := [])
        family.append(run)
    return [sorted(f, key=lambda r: r.cell.sampling.temperature) for f in families if len(f) > 1]


def _same_but_temperature(a: Scored, b: Scored) -> bool:
    return a.cell.dataset.name == b.cell.dataset.name and differing(a.cell, b.cell) == ["temperature"]


def check_comparable(a: Scored, b: Scored) -> None:
    """Refuse pairs whose differences would mean nothing.

    Raises:
        UserError: different datasets, no common question, different texts or gold answers under one id; enumerated
            against sampled; different versions of B, or a different B in addition to another difference.
    """
    pair = f"{a.folder} and {b.folder}"
    if a.cell.dataset.name != b.cell.dataset.name:
        raise UserError(f"{pair} answer different datasets ({a.cell.dataset.name}, {b.cell.dataset.name})")
    common = a.questions.index.intersection(b.questions.index)
    if common.empty:
        raise UserError(f"{pair} have no question in common; give their datasets the same n and seed")
    for column, what in (("text", "has another text"), ("answers", "has other gold answers")):
        for question_id, one, two in zip(common, a.questions[column][common], b.questions[column][common], strict=True):
            if list(one) != list(two):
                raise UserError(f"{pair}: question {question_id!r} {what} in the second; run one of them again")
    if (a.m is None) != (b.m is None):
        raise UserError(f"{pair}: one was enumerated and the other sampled; sample both, or enumerate both")
    versions = [str(run.calibration["semantics"]) for run in (a, b)]
    factors = differing(a.cell, b.cell)
    if versions[0] != versions[1] and factors != ["B"]:
        others = [f for f in factors if f != "B"]
        fix = f" and differ in {', '.join(others)} too; score both with one B" if others else "; `semcal score` both"
        raise UserError(f"{pair} were read by different Bs ({', '.join(versions)}){fix}")
