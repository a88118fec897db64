"""The pages of docs/results/: valid tables that say what the run folders say."""

from __future__ import annotations

import json
import re
import shutil

from experiments.report.results import COMMANDS, main, results_page
from tests.experiments.conftest import run_dict


def test_a_page_has_valid_tables_with_the_figures_of_the_runs(tmp_path, study_dict):
    runs = run_dict(tmp_path, study_dict | {"styles": ["concise", "sentence"]})
    page = results_page("small", tmp_path / "runs", tmp_path / "docs" / "results")
    assert page is not None
    for run in runs:
        assert f"{run.calibration()['smece']:.3f} [" in page
    assert run_started(page) == runs[0].manifest()["started"]
    tables = re.findall(r"(?:^\|.*\n)+", page, flags=re.MULTILINE)
    assert len(tables) >= 3
    for table in tables:
        widths = {len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}
        assert len(widths) == 1, table
    assert "quote the last" in page
    assert str(tmp_path) not in page


def test_what_was_decided_in_variants_stands_side_by_side(tmp_path, study_dict):
    decided = {"small": ("holds", 0.004), "small-seed-1": ("fails", 0.9)}
    for name, (decision, p) in decided.items():
        run_dict(tmp_path, study_dict | {"name": name})
        verdict = {"hypotheses": [{"key": "H1", "claim": "Base models are calibrated", "decision": decision, "p": p}]}
        (tmp_path / "runs" / name / "verdict.json").write_text(json.dumps(verdict))
    page = results_page("small", tmp_path / "runs", tmp_path / "docs" / "results")
    assert page is not None
    assert "| H1 | Base models are calibrated | holds (p 0.004) | fails |" in page


def test_another_study_whose_name_begins_alike_is_no_variant(monkeypatch, tmp_path, study_dict):
    run_dict(tmp_path, study_dict)
    runs = tmp_path / "runs"
    for name in ("small-again", "small-other"):
        shutil.copytree(runs / "small", runs / name)
    monkeypatch.setitem(COMMANDS, "small-other", [])
    page = results_page("small", runs, tmp_path)
    assert page is not None
    assert re.findall("^## (.*)", page, flags=re.MULTILINE) == ["small", "small-again"]


def run_started(page: str) -> str:
    found = re.search(r"sampled (\d{4}-\d\d-\d\d)", page)
    assert found is not None
    return found[1]


def test_studies_without_runs_are_skipped_by_name(monkeypatch, capsys, tmp_path):
    monkeypatch.setattr("sys.argv", ["results", "--runs", str(tmp_path), "--into", str(tmp_path)])
    monkeypatch.setattr("experiments.report.results.results_page", lambda name, *_: "page" if name == "demo" else None)
    main()
    assert capsys.readouterr().out.count("no scored run below") == len(COMMANDS) - 1
    assert [path.name for path in tmp_path.iterdir()] == ["demo.md"]
