"""Models, datasets and styles come in one order in every figure, in the same colours."""

from __future__ import annotations

from types import SimpleNamespace

from experiments.report.figures.study_figures import in_order
from semcal.calibration.plots.palette import LINES, lines_of, styles_in_order


def row(model: str, stage: str | None, lineage: str, dataset: str, style: str):
    cell = SimpleNamespace(
        model=SimpleNamespace(name=model, stage=stage, lineage=lineage),
        dataset=SimpleNamespace(name=dataset),
        style=style,
    )
    return cell, None


def test_runs_are_ordered_by_lineage_stage_dataset_and_style():
    rows = [  # as folders are sorted
        row("dpo", "dpo", "a", "facts", "cot"),
        row("base", "base", "a", "facts", "cot"),
        row("sft", "sft", "a", "facts", "cot"),
        row("base", "base", "a", "facts", "sentence"),
        row("base", "base", "a", "facts", "concise"),
        row("other", "base", "b", "facts", "concise"),
        row("untold", None, "a", "facts", "concise"),
    ]
    order = [(cell.model.name, cell.style) for cell, _ in in_order(rows)]
    assert order == [
        ("base", "concise"),
        ("base", "sentence"),
        ("base", "cot"),
        ("sft", "cot"),
        ("dpo", "cot"),
        ("untold", "concise"),
        ("other", "concise"),
    ]


def test_a_style_has_its_own_line_whichever_others_are_drawn():
    assert lines_of(["cot"])["cot"] == lines_of(["concise", "cot"])["cot"] == LINES[2]
    assert styles_in_order(["cot", "mine", "concise", "cot"]) == ["concise", "cot", "mine"]


def test_lines_of_many_names_all_differ():
    many = lines_of([f"dataset {i}" for i in range(42)])
    assert len({(colour, marker) for colour, _, marker in many.values()}) == 42
