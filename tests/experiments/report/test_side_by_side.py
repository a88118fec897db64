"""The page of two models: predictions, a table beside the paper's figures, one picture of all reliability diagrams."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from matplotlib.image import imread

from experiments.compare import side_by_side
from experiments.config.run_folder import stored_cell
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
    relation = tmp_path / "company_hq.json"
    samples = [{"subject": f"C{i}", "object": "Oslo"} for i in range(8)]
    relation.write_text(json.dumps({"samples": samples}))
    datasets = [study_dict["datasets"][0], {"kind": "lre", "path": str(relation), "n": 4}]
    runs = run_dict(tmp_path, study_dict | small | {"name": "real", "datasets": datasets})
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
    assert side_by_side._CHOSEN in page
    others = [(stored_cell(run), run) for run in runs if "lre" not in run.folder.name]
    assert side_by_side._CHOSEN not in side_by_side._predictions(others, [])
    for run in runs:
        assert f"{run.calibration()['seen_mass']:.3f}" in page
    assert "![One row a dataset, one column a model](../../figures/real-reliability-concise.png)" in page
    assert imread(tmp_path / "figures" / "real-reliability-concise.png").shape[1] > 500
    for table in re.findall(r"(?:^\|.*\n)+", page, flags=re.MULTILINE):
        assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1, table


def test_how_relations_were_chosen_is_told_as_in_the_head_of_the_study():
    head = (side_by_side.STUDIES / "real.yaml").read_text(encoding="utf-8").partition("\nname:")[0]
    found = re.findall(r"^#   \w+ +Gemma (\d+ / \d+) % +SmolLM2 (\d+ / \d+) %$", head, re.MULTILINE)
    assert len(found) == 3
    for figures in zip(*found, strict=True):
        assert re.search(r".*?".join(figures), side_by_side._CHOSEN)
    missed = [int(share) for _, smollm2 in found for share in smollm2.split(" / ") if not 20 <= int(share) <= 80]
    assert (len(missed), "missed it in four of six" in side_by_side._CHOSEN) == (4, True)


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
