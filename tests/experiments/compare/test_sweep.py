"""`semcal score --semantics sweep`: one run under many Bs, beside its results."""

import json

import matplotlib.image
import numpy as np
import pandas as pd
import pytest

from experiments.compare import coarser_semantics
from experiments.compare.coarser_semantics import _clusters, _features, sweep
from experiments.config.run_folder import stored_cell
from experiments.probe.open_classes import spellings
from experiments.report.figures.figure_files import DPI
from semcal.errors import UserError
from tests.experiments.conftest import run_dict
from tests.experiments.pipeline.test_cli import semcal


@pytest.fixture
def run(tmp_path, study_dict, monkeypatch):
    monkeypatch.setattr(coarser_semantics, "FEWEST_QUESTIONS", 20)
    return run_dict(tmp_path, study_dict | {"probes": {"enabled": False, "folds": 3}})[0]


@pytest.mark.long
def test_a_run_is_read_under_many_bs_and_keeps_its_results(monkeypatch, capsys, run):
    before = {p: p.read_bytes() for p in run.folder.iterdir() if p.is_file()}
    code, said, err = semcal(monkeypatch, capsys, "score", run.folder, "--semantics", "sweep", "--width", "3")
    assert code == 0, err
    assert matplotlib.image.imread(run.folder / "looks/sweep/sweep.png").shape[1] == 3 * DPI
    assert {p: p.read_bytes() for p in run.folder.iterdir() if p.is_file()} == before
    for word in ("kind of B", "hash", "clusters of meanings", "all", "given granularity"):
        assert word in said, word
    table = pd.read_csv(run.folder / "looks/sweep/sweep.csv").set_index("b")
    assert np.isfinite(table[["gap", "excess", "smece", "marginal_gap"]]).all(axis=None)
    own = run.calibration()
    assert table.loc["class", "smece"] == pytest.approx(own["smece"])
    assert table.loc["class", "accuracy"] == pytest.approx(own["accuracy"])
    assert table.loc["hash in 2 (a)", "confidence"] >= table.loc["class", "confidence"]
    # Joining classes lowers the entropy of the classes of all questions together.
    assert (table["granularity"] <= table.loc["class", "granularity"] + 1e-9).all()
    record = json.loads((run.folder / "looks/sweep/sweep.json").read_text())
    assert record["relations"]["all"]["bs"] == len(table)
    assert set(record["constant"]) | set(record["alike"]) >= {"has a digit", "digit sum"}


@pytest.mark.long
def test_with_the_generative_rung_one_adapter_a_fold_serves_every_b(tmp_path, study_dict, monkeypatch, capsys, caplog):
    """The gap of the run's own classes is that which the study found."""
    monkeypatch.setattr(coarser_semantics, "FEWEST_QUESTIONS", 20)
    probes = {"folds": 3, "targets": ["classes"], "rungs": ["generative"], "baselines": [], "permutations": 0}
    (run,) = run_dict(tmp_path, study_dict | {"probes": probes})
    code, _, err = semcal(monkeypatch, capsys, "score", run.folder, "--semantics", "sweep")
    assert code == 0, err
    table = pd.read_csv(run.folder / "looks/sweep/sweep.csv").set_index("b")
    assert (table["rung"] == "generative").all()
    assert np.isfinite(table[["gap", "excess", "marginal_gap"]]).all(axis=None)
    assert table.loc["class", "gap"] == pytest.approx(run.probes().set_index("rung").loc["generative", "gap"], abs=1e-4)
    assert table.loc["hash in 2 (a)", "gap"] < table.loc["class", "gap"]  # less is missed where there is less to know
    cell = stored_cell(run)
    model = cell.model.model_copy(update={"path": str(run.folder / "gone")})
    assert (sweep(cell.model_copy(update={"model": model}), run).frame["rung"] != "generative").all()
    assert "gaps are not those of the generative rung, which reads the model: no folder" in caplog.text


def test_without_the_model_classes_are_known_by_their_spelling(caplog, run):
    cell, labels = stored_cell(run), ["colour", "colours", "flavour", "rome", "romeo"]
    model = cell.model.model_copy(update={"path": str(run.folder / "gone")})
    found = _features(cell.model_copy(update={"model": model}), run, labels)
    np.testing.assert_array_equal(found, spellings(labels, seed=cell.seed))
    assert "by their spelling alone: no folder" in caplog.text
    caplog.clear()
    assert len(_features(cell, run, labels)) == len(labels)
    assert "no folder" not in caplog.text
    (two, four) = _clusters(labels, dict(zip(labels, found, strict=True)), cell.seed)
    assert (two.name, four.name) == ("2 clusters", "4 clusters")
    assert two.apply("rome") == two.apply("romeo") != two.apply("colour") == two.apply("colours")


def test_too_few_questions_with_one_gold_class(monkeypatch, capsys, run):
    monkeypatch.setattr(coarser_semantics, "FEWEST_QUESTIONS", 500)
    code, _, err = semcal(monkeypatch, capsys, "score", run.folder, "--width", "3")
    assert code == 2
    assert "semcal report RUN --width" in err
    code, _, err = semcal(monkeypatch, capsys, "score", run.folder, "--semantics", "sweep")
    assert code == 2
    assert "48 questions with one gold class; a sweep over B needs 500" in err


def test_without_activations(tmp_path, study_dict):
    (bare,) = run_dict(tmp_path, study_dict | {"capture": {"positions": []}, "probes": {"enabled": False}})
    with pytest.raises(UserError, match="activations"):
        sweep(stored_cell(bare), bare)
