"""The page of two models: predictions, a table beside the paper's figures, one picture of all reliability diagrams."""

from __future__ import annotations

import re

import numpy as np
import pytest
from matplotlib.image import imread

from experiments.report.results import results_page
from semcal.calibration.plots.reliability_diagram import reliability_grid, smoothed
from tests.experiments.conftest import run_dict
from tests.readable import complaints


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


LONG = "lre-person_plays_pro_sport-with-a-name-that-nobody-should-choose"


@pytest.mark.parametrize("places", [[("a", "x")], [("a", "x"), (LONG, "y")], [("a", "x"), ("a", LONG), (LONG, "x")]])
def test_a_grid_has_a_place_for_every_row_and_column_and_names_them_whole(places):
    confidence = np.linspace(0.1, 0.9, 40)
    page = reliability_grid(
        {place: smoothed(confidence, confidence > 0.4) for place in places}, title=f"{LONG} · {LONG}"
    )
    rows, columns = ({place[i] for place in places} for i in (0, 1))
    assert len(page.axes) == 2 * len(rows) * len(columns)
    assert sum(axes.axison for axes in page.axes) == 2 * len(places)
    assert complaints(page) == []
    written = "".join(text.get_text() for axes in page.axes for text in (axes.title, axes.yaxis.label))
    for name in rows | columns:
        assert name in written.replace("\n", "")


def test_a_grid_of_nothing_is_refused():
    with pytest.raises(ValueError, match="no runs to draw"):
        reliability_grid({})
