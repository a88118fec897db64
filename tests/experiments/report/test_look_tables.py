"""What `semcal tilt`, `semcal gate` and a sweep over B found is on results pages, on the page of a run and in what is kept of it."""

from __future__ import annotations

import json
import shutil
from math import inf, nan
from pathlib import Path

import pandas as pd
import pytest

from experiments.config.run_folder import stored_cell
from experiments.report.look_tables import gates_table, remedies_table
from experiments.report.pages import write_report
from experiments.report.results import results_page
from experiments.report.runs_without_texts import keep
from experiments.train.step_log import add_to_log
from semcal import Run, UserError
from tests.experiments.conftest import questions_in, run_dict, study_of
from tests.experiments.pipeline.test_cli import semcal

FIGURES = ["smece", "smece_low", "smece_high", "change", "change_low", "change_high", "signed_gap", "accuracy", "auroc"]
COSTS = ["passes", "tokens"]
REMEDIES = pd.DataFrame(
    [
        ["as sampled", 0.25, 0.125, 0.375, 0.0, 0.0, 0.0, 0.1, 0.5, 0.75, 50.0, 4321.0],
        ["beta", 0.125, 0.0625, 0.25, -0.125, nan, nan, -0.1, 0.5, 0.75, 50.0, 4321.0],
        ["class probe", 0.2, 0.1, 0.3, -0.05, nan, nan, 0.0, 0.4, 0.5, 1.0, nan],
        ["tilted model", 0.0625, 0.03125, 0.09375, -0.1875, -0.25, -0.125, 0.0, 0.625, 0.875, 50.0, 4000.0],
    ],
    columns=pd.Index(["remedy", *FIGURES, *COSTS]),
)
GATES = pd.DataFrame(
    [
        ["B-confidence", 0.1, "of the answers", 0.1, 0.41, 0.325, 0.0625],
        ["class probe", 0.1, "of the answers", 0.1, inf, 0.0, nan],
        ["tilted model", 0.05, None, nan, nan, nan, nan],
    ],
    columns=pd.Index(["source", "risk", "guarantee", "delta", "threshold", "coverage", "wrong"]),
)
RELATION = ("rho", "rho_low", "rho_high", "rho_given", "rho_given_low", "rho_given_high")
SWEPT = pd.DataFrame(
    [
        ["hash", 22, "linear", 0.125, 2.0, -0.01, 0.25, *[nan] * 9, nan, nan],
        ["all", 74, "bilinear and linear", 0.0, 2.5, -0.01, 0.25, *(0.5, 0.25, 0.75, 0.25, 0, 0.5, 0.1, 0, 0.2), 7, 2],
    ],
    columns=pd.Index(
        [
            *("kind", "bs", "rung", "gap_least", "gap_most", "excess_least", "excess_most"),
            *(*RELATION, "slope", "slope_low", "slope_high", "small", "violations"),
        ]
    ),
)


def add_looks(run: Run) -> None:
    """The files that `semcal tilt`, `semcal gate` and a sweep leave."""
    tables = ((REMEDIES, "tilt/remedies.csv"), (GATES, "gates/gates.csv"), (SWEPT, "sweep/kinds.csv"))
    for table, name in tables:
        path = run.folder / "looks" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        table.to_csv(path, index=False)


@pytest.fixture(scope="module")
def measured(tmp_path_factory, checkpoint) -> Path:
    """A folder with a study of a model that was trained, whose run has remedies and gates."""
    folder = tmp_path_factory.mktemp("remedied")
    tuned = folder / "runs" / "lineage" / "dpo"
    shutil.copytree(checkpoint, tuned)
    made = {"stage": "dpo", "trained_on": 1784, "dataset": "triviaqa", "steps": 20, "batch_size": 8}
    (tuned / "training.json").write_text(json.dumps(made | {"learning_rate": 2e-4}))
    for step in range(1, 21):
        add_to_log(tuned / "steps.jsonl", step, {"loss": step / 20})
    study = study_of(tuned, questions_in(folder), Path()) | {"probes": {"enabled": False}}
    study["models"] = [{"path": str(tuned.relative_to(folder)), "name": "dpo", "stage": "dpo", "device": "cpu"}]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        add_looks(run_dict(folder, study)[0])
    return folder


@pytest.fixture
def run(measured, tmp_path, monkeypatch) -> Run:
    """The run in a copy of it, which is the working folder."""
    shutil.copytree(measured, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return Run(next(Path("runs/small").glob("*/config.yaml")).parent)


def page() -> str:
    found = results_page("small", Path("runs"), Path("docs/results"))
    assert found is not None
    return found


def test_remedies_have_intervals_where_there_are_some_and_columns_where_they_are_there():
    table = remedies_table(REMEDIES.assign(excess=0.1)).set_index("remedy")
    assert list(table) == ["smECE", "change", "signed gap", "accuracy", "AUROC", "passes", "tokens"]
    assert table.loc["tilted model"].tolist() == [
        *("0.062 [0.031, 0.094]", "-0.188 [-0.250, -0.125]", "+0.000", "0.625", "0.88", "50", "4,000"),
    ]
    assert table["change"].tolist()[:2] == ["—", "-0.125"]
    assert table.loc["class probe", ["passes", "tokens"]].tolist() == ["1", "unknown"]
    assert list(remedies_table(REMEDIES.drop(columns=COSTS)))[-1] == "AUROC"
    assert remedies_table(pd.DataFrame()).empty


def test_a_gate_without_a_threshold_says_why():
    table = gates_table(GATES).set_index("confidence")
    assert table.loc["B-confidence"].tolist() == ["of the answers", "10 %", "0.41", "32.5 %", "6.2 %"]
    assert table.loc["class probe"].tolist()[2:] == ["never", "0.0 %", "—"]
    assert table.loc["tilted model"].tolist() == ["—", "5 %", "too few groups", "—", "—"]


@pytest.mark.usefixtures("run")
def test_a_results_page_has_remedies_gates_and_training_also_from_what_was_kept():
    before = page()
    for line in (
        "| concise | tilted model | 0.062 [0.031, 0.094] | -0.188 [-0.250, -0.125] | +0.000 | 0.625 | 0.88 | 50 | 4,000 |",
        "| concise | class probe | of the answers | 10 % | never | 0.0 % | — |",
        "| concise | all | 74 | bilinear and linear | 0.000 to 2.500 | -0.010 to +0.250 | 0.50 [0.25, 0.75] "
        "| 0.25 [0.00, 0.50] | 0.100 [0.000, 0.200] | 7, 2 off |",
        "| concise | hash | 22 | linear | 0.125 to 2.000 | -0.010 to +0.250 | – | – | – | – |",
        "| dpo | dpo | 1784 questions of triviaqa | 20 of 8 | 0.0002 | — | 0.075 → 0.975 | — |",
    ):
        assert line.replace("| concise ", f"| {run_label(before)} ") in before.split("\n")
    (kept,) = keep("small", Path("runs"), Path("docs/results/evidence"))
    shutil.rmtree("runs")
    assert page().replace("1 runs; 1 from [docs/results/evidence/small](evidence/small), ", "1 runs, ") == before
    assert Run.open(kept).unchanged().changed == ()
    (kept / "looks/gates/gates.csv").write_text(GATES.assign(coverage=1.0).to_csv(index=False))
    assert Run.open(kept).unchanged().changed == ("looks/gates/gates.csv",)
    with pytest.raises(UserError, match=r"gates\.csv was changed after semcal wrote it"):
        page()


def run_label(text: str) -> str:
    return text.split("### Remedies")[1].strip().split("\n")[2].split("|")[1].strip()


@pytest.mark.usefixtures("run")
def test_a_summary_that_was_kept_outlives_the_model():
    into = Path("docs/results/evidence")
    keep("small", Path("runs"), into)
    shutil.rmtree("runs/lineage")
    assert "How these were trained is missing here: dpo" in page()
    (kept,) = keep("small", Path("runs"), into)
    assert Run(kept).training()["loss"] == pytest.approx([0.075, 0.975])
    shutil.rmtree("runs")
    assert "1784 questions of triviaqa" in page()


def test_the_page_of_a_run_shows_them_where_they_are_there(run):
    write_report(stored_cell(run), run)
    text = (run.folder / "report.html").read_text()
    for word in (
        "The same samples under many Bs",
        "bilinear and linear",
        "Remedies, with a tilted model",
        "Gates on each confidence",
        "tilted model",
        "too few groups",
    ):
        assert word in text, word
    shutil.rmtree(run.folder / "looks")
    write_report(stored_cell(run), run)
    text = (run.folder / "report.html").read_text()
    assert "The same samples under many Bs" not in text
    assert "Remedies, with a tilted model" not in text
    assert "Gates on each confidence" not in text


def test_gates_with_both_guarantees_are_on_one_page(monkeypatch, capsys, run):
    options = ("--risk", "0.5", "--guarantee", "of the questions", "--guarantee", "of the answers")
    code, said, err = semcal(monkeypatch, capsys, "gate", run.folder, *options)
    assert code == 0, err
    table = gates_table(run.gates())
    for promise in ("of the questions", "of the answers"):
        assert f"| {promise} | 50 % |" in page()
        assert table["guarantee"].tolist().count(promise) == 1
    assert said.count("guarantee:") == 2


@pytest.mark.parametrize(
    ("name", "command"),
    [("tilt/remedies.csv", "tilt"), ("gates/gates.csv", "gate"), ("sweep/kinds.csv", "score --semantics sweep")],
)
@pytest.mark.parametrize("content", ["", "a,b\n1,2\n", "\x00\n'\"\n"])
def test_a_file_that_is_no_such_table_is_one_line(run, name, command, content):
    (run.folder / "looks" / name).write_text(content)
    with pytest.raises(UserError, match=f"`semcal {command} .*` makes it again"):
        page()
