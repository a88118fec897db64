"""Too few questions, groups, samples or classes: said before anything is sampled; the rest is measured all the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from experiments.config.study import load_study
from experiments.pipeline.dry_run import dry_run
from experiments.pipeline.progress import Reporter
from experiments.pipeline.run_study import prepare_study, run_study
from semcal import Run
from tests.conftest import WORDS
from tests.experiments.conftest import write_study
from tests.experiments.pipeline.test_cli import semcal

held_before = pytest.mark.held_before
ANYTHING = [word for word in WORDS if word.strip().isalpha()]


def a_study(folder: Path, checkpoint: Path, rows: list[dict[str, Any]], **changes: Any) -> Path:
    file = folder / "colours.jsonl"
    file.write_text("\n".join(json.dumps({"id": f"q{i}", **row}) for i, row in enumerate(rows)))
    study = {
        "name": "few",
        "models": [{"path": str(checkpoint), "name": "llama", "device": "cpu"}],
        "datasets": [{"kind": "jsonl", "path": str(file)}],
        "styles": ["concise"],
        "output": str(folder / "runs"),
        "sampling": {"m": 5, "max_new_tokens": 1},
        "prompting": {"shots": 0, "exemplars": 0},
        "calibration": {"bootstrap": 20, "null_draws": 20, "detail_draws": 10},
        "probes": {"permutations": 1, "folds": 2},
        "tracking": {"wandb": "disabled"},
    }
    return write_study(folder, study | changes)


def asked(n: int, groups: int | None = None, answers: list[str] | None = None) -> list[dict[str, Any]]:
    colours = ["red", "blue", "green"]
    rows = [{"question": f"the {colours[i % 3]} {colours[i // 3]} ?", "answers": answers or ["red"]} for i in range(n)]
    return [row | ({} if groups is None else {"group": f"g{i % groups}"}) for i, row in enumerate(rows)]


def atlas(n: int) -> list[dict[str, Any]]:
    return [{"kind": "atlas", "family": "facts", "n": n}]


# rows, changes of the study, and what is said of what cannot be computed
FEW = {
    "one question": (asked(1), {}, "1 group of questions cannot be split into 2 folds"),
    "one question of a closed set": (asked(1), {"datasets": atlas(1)}, "Intervals not computed"),
    "one question without probes": (
        asked(1),
        {"datasets": atlas(1), "probes": {"enabled": False}},
        "Intervals not computed: all questions are of one group",
    ),
    "one group of several questions": (asked(4, groups=1), {}, "1 group of questions cannot be split"),
    "two groups and two folds": (asked(4, groups=2), {}, "2 groups of questions cannot be split into 2 folds that"),
    "three groups and two folds": (asked(3), {}, "or raise probes.folds"),
    "three groups and four folds": (asked(3), {"probes": {"folds": 4, "permutations": 1}}, "or lower probes.folds"),
    "all answers right, one class": (asked(6, answers=ANYTHING), {}, "AUROC not computed"),
    "all answers wrong": (asked(6, answers=["tree"]), {}, "AUROC not computed"),
}


@pytest.fixture
def in_one_format(monkeypatch) -> None:
    """Whatever is drawn of so little is drawn; the other formats of it take most of the time."""
    monkeypatch.setattr("experiments.report.figures.figure_files._UNDATED", {"png": {}})
    monkeypatch.setattr("experiments.report.figures.figure_files.DPI", 50)


@pytest.mark.pictures
@pytest.mark.usefixtures("in_one_format")
@pytest.mark.parametrize("case", FEW)
def test_the_run_ends_well_and_names_what_it_could_not_compute(monkeypatch, capsys, tmp_path, checkpoint, case):
    rows, changes, said = FEW[case]
    code, out, err = semcal(monkeypatch, capsys, "run", a_study(tmp_path, checkpoint, rows, **changes))
    assert code == 0, err
    assert said in " ".join(out.split())
    (folder,) = (tmp_path / "runs" / "few").glob("*__*")
    run = Run.open(folder)
    found, table = run.calibration(), run.table()
    assert found["n"] == len(table) == run.questions()["id"].nunique()
    assert found["accuracy"] == pytest.approx(table["correct"].mean())
    assert found["confidence"] == pytest.approx(table["confidence"].mean())
    assert (found["smece_low"] is None) == (run.questions()["group"].nunique() == 1)
    assert (folder / "report.html").is_file()
    assert said.split(";")[0] in (folder / "report.html").read_text()


@held_before
def test_enough_is_probed(monkeypatch, capsys, tmp_path, checkpoint):
    """The smallest number of groups that the warning asks for is enough."""
    study = a_study(tmp_path, checkpoint, asked(3), probes={"folds": 3, "permutations": 0})
    code, _, err = semcal(monkeypatch, capsys, "run", study)
    assert code == 0, err
    (folder,) = (tmp_path / "runs" / "few").glob("*__*")
    assert not Run.open(folder).probes().empty


def test_it_is_said_before_sampling_and_by_a_dry_run_alike(tmp_path, checkpoint, caplog):
    study = load_study(a_study(tmp_path, checkpoint, asked(2)))
    dry_run(study)
    (first,) = caplog.messages
    assert "probes will not be computed: 2 groups of questions cannot be split into 2 folds" in first
    assert not (tmp_path / "runs").exists()
    prepare_study(study)
    assert caplog.messages == [first, first]


def test_probes_asked_for_by_name_are_refused_with_the_reason(monkeypatch, capsys, tmp_path, checkpoint):
    study = a_study(tmp_path, checkpoint, asked(2))
    assert semcal(monkeypatch, capsys, "run", study)[0] == 0
    code, _, err = semcal(monkeypatch, capsys, "probe", study)
    assert code == 2
    assert "2 groups of questions cannot be split into 2 folds" in err


@pytest.fixture(scope="module")
def of_one_question(checkpoint, tmp_path_factory) -> Path:
    """The folder of a finished study of two models and one question, to be copied."""
    folder = tmp_path_factory.mktemp("one")
    models = [{"path": str(checkpoint), "name": name, "device": "cpu", "stage": "base"} for name in ("a", "b")]
    models[1]["lineage"] = "b"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.report.pages.run_figures", lambda *_: {})
        run_study(prepare_study(load_study(a_study(folder, checkpoint, asked(1), models=models))), Reporter())
    return folder


@pytest.mark.pictures
@pytest.mark.usefixtures("in_one_format")
@pytest.mark.parametrize("command", ["score", "report", "verdict"])
def test_the_commands_after_a_run_of_one_question(monkeypatch, capsys, tmp_path, of_one_question, command):
    monkeypatch.setattr("experiments.verdict.measured_run.NULL_DRAWS", 20)
    shutil.copytree(of_one_question / "runs", tmp_path / "runs")
    settings = yaml.safe_load((of_one_question / "study.yaml").read_text())
    study = write_study(tmp_path, settings | {"output": str(tmp_path / "runs")})
    code, _, err = semcal(monkeypatch, capsys, command, study)
    assert code == 0 or (code == 2 and "unparsed" in err), err


@held_before
def test_one_sample_is_refused_before_anything_is_written(monkeypatch, capsys, tmp_path, checkpoint):
    study = a_study(tmp_path, checkpoint, asked(3), sampling={"m": 1})
    code, _, err = semcal(monkeypatch, capsys, "run", study)
    assert code == 2
    assert "sampling.m: input should be greater than or equal to 2" in err
    assert not (tmp_path / "runs").exists()
