"""Studies small enough for a test, on a random-init checkpoint and questions of our own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.config.study import Study, load_study
from experiments.pipeline.progress import Reporter
from experiments.pipeline.run_study import prepare_study, run_study
from semcal import Run


@pytest.fixture(autouse=True)
def without_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pages have no pictures: drawing them takes twice as long as a study of this size. Tests of pictures are marked
    so; fixtures of a module draw them."""
    if not request.node.get_closest_marker("pictures"):
        for name in ("run_figures", "study_figures"):
            monkeypatch.setattr(f"experiments.report.pages.{name}", lambda *_: {})


@pytest.fixture
def questions_file(tmp_path: Path) -> Path:
    return questions_in(tmp_path)


def questions_in(folder: Path) -> Path:
    colours = ["red", "blue", "green", "one", "two", "three"]
    lines = [
        {
            "id": f"q{i}",
            "question": f"the {colours[i % 6]} {colours[i // 6 % 6]} ? {colours[i // 36]}",
            "answers": [colours[i % 4]],
            "worked": {"cot": f"one two three . The answer is {colours[i % 4]}."},
        }
        for i in range(60)
    ]
    path = folder / "colours.jsonl"
    path.write_text("\n".join(map(json.dumps, lines)))
    return path


@pytest.fixture
def study_dict(checkpoint: Path, questions_file: Path, tmp_path: Path) -> dict[str, Any]:
    return study_of(checkpoint, questions_file, tmp_path)


def study_of(checkpoint: Path, questions: Path, folder: Path) -> dict[str, Any]:
    return {
        "name": "small",
        "models": [{"path": str(checkpoint), "name": "llama", "device": "cpu"}],
        "datasets": [{"kind": "jsonl", "path": str(questions), "n": 48}],
        "styles": ["concise"],
        "output": str(folder / "runs"),
        "sampling": {"m": 8, "max_new_tokens": 4, "max_rows": 16, "shard_size": 8},
        "prompting": {"shots": 2, "exemplars": 4},
        "calibration": {"bootstrap": 20, "null_draws": 20, "detail_draws": 10},
        "probes": {"permutations": 2, "folds": 3, "targets": ["classes", "b_confidence"]},
    }


def write_study(folder: Path, study: dict[str, Any]) -> Path:
    path = folder / "study.yaml"
    path.write_text(yaml.safe_dump(study))
    return path


def run_dict(folder: Path, study: dict[str, Any], *overrides: str, drawn: bool = False):
    """Run a study given as a dictionary; returns its runs. Their pages, and pictures of the study, only if asked for."""
    parsed: Study = load_study(write_study(folder, study), overrides)
    prepared = prepare_study(parsed)
    with pytest.MonkeyPatch.context() as patch:
        if not drawn:
            patch.setattr("experiments.pipeline.run_study.write_report", _no_report)
            patch.setattr("experiments.report.pages.study_figures", lambda *_: {})
        run_study(prepared, Reporter())
    return prepared.runs


def _no_report(_, run: Run, *_width: float | None) -> None:
    (run.folder / "report.html").write_text("not drawn in this test")
