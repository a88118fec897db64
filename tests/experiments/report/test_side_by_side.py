"""The page of two models: predictions, a table beside the paper's figures, one picture of all reliability diagrams."""

from __future__ import annotations

import re

import pytest
from matplotlib.figure import Figure
from matplotlib.image import imread

from experiments.compare.side_by_side import grid
from experiments.report.results import results_page
from tests.experiments.conftest import run_dict


def test_the_page_of_real_opens_with_the_predictions_and_shows_both_models(tmp_path, study_dict, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "figures").mkdir()
    models = [
        {"path": "atlas:base", "name": "one", "stage": "base", "lineage": "a"},
        {"path": "atlas:dpo", "name": "two", "stage": "dpo", "lineage": "b", "prompt": "chat"},
    ]
    small = {"models": models, "styles": ["concise"], "probes": {"enabled": False}}
    runs = run_dict(tmp_path, study_dict | small | {"name": "real"})
    page = results_page("real", tmp_path / "runs", tmp_path / "docs" / "results")
    assert page is not None
    heads = re.findall(r"^## (.*)", page, flags=re.MULTILINE)
    assert heads[:4] == [
        "The three predictions",
        "Beside the paper's base models",
        "Every run",
        "Reliability diagrams side by side",
    ]
    assert "3. Chain-of-thought breaks the calibration of a base model | not tested" in page
    for run in runs:
        assert f"{run.calibration()['seen_mass']:.3f}" in page
    assert "![One row a dataset, one column a model](../../figures/real-reliability-concise.png)" in page
    assert imread(tmp_path / "figures" / "real-reliability-concise.png").shape[1] > 500
    for table in re.findall(r"(?:^\|.*\n)+", page, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


@pytest.mark.parametrize("places", [[("a", "x")], [("a", "x"), ("b", "y")], [("a", "x"), ("a", "y"), ("b", "x")]])
def test_a_grid_has_a_place_for_every_row_and_column(places):
    page = grid({place: Figure(figsize=(1, 1)) for place in places})
    assert sum(bool(ax.images) for ax in page.axes) == len(places)
    assert len(page.axes) == len({row for row, _ in places}) * len({column for _, column in places})
