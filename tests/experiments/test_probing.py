"""What `semcal probe` fits is what the study says."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from experiments.analysis import probe
from experiments.cell import stored_cell
from experiments.config import ProbesConfig
from experiments.probing import compare_probes
from experiments.reading import load_study
from experiments.report.table import last_layer
from semcal import Run, UserError
from tests.experiments.conftest import run_dict, write_study

FINISHED: dict[str, Run] = {}


@pytest.fixture
def run(tmp_path, study_dict) -> Run:
    """A copy of one finished run, for sampling it anew would take most of the time."""
    if not FINISHED:
        FINISHED["run"] = run_dict(tmp_path, study_dict)[0]
    return Run(Path(shutil.copytree(FINISHED["run"].folder, tmp_path / "copy")))


def probed(run: Run, **settings) -> Run:
    cell = stored_cell(run)
    given = {"folds": 3, "permutations": 2} | settings
    probe(cell.model_copy(update={"probes": ProbesConfig(**given)}), run)
    return run


def test_by_default_linear_probes_of_all_layers_stand_beside_words_and_lengths(run):
    table = run.probes()
    assert set(table["rung"]) == {"linear", "baseline:tfidf"}
    classes = table[table["target"] == "classes"]
    assert list(classes["layer"]) == [*run.activation_layers("last_prompt_token"), "tf-idf and length"]
    assert last_layer(table, "classes")["layer"] == run.activation_layers("last_prompt_token")[-1]
    assert (classes["ceiling_low"] <= classes["ceiling"]).all()
    scalar = table[table["target"] == "b_confidence"]
    assert scalar["ceiling"].between(0, 1).all()


def test_every_rung_and_target_has_its_rows(run):
    targets = ["classes", "b_confidence", "entropy", "ranked", "n_classes", "mode_correct"]
    rungs = ["linear", "ridge-logit", "low-rank", "mlp"]
    table = probed(run, targets=targets, rungs=rungs, baselines=["marginal", "tfidf"]).probes()
    assert set(table["target"]) == set(targets)
    names = run.activation_layers("last_prompt_token")
    for rung in rungs[1:]:
        rows = table[(table["rung"] == rung) & (table["target"] == "classes")]
        assert list(rows["layer"]) == [names[len(names) // 2], names[-1]]
        assert rows["control"].notna().all()
    assert set(table.loc[table["rung"] == "mlp", "target"]) == {"classes", "ranked", "mode_correct"}
    assert (table.loc[table["rung"] == "baseline:marginal", "explained"] == 0).all()
    assert table.loc[table["target"].isin(["ranked", "mode_correct", "n_classes"]), "ceiling"].isna().all()


def test_layers_are_chosen_by_name_and_one_that_was_not_captured_is_refused(run):
    table = probed(run, targets=["classes"], rungs=["ridge-logit"], rung_layers=["blocks.0.hook_resid_pre"]).probes()
    assert list(table["layer"]) == ["blocks.0.hook_resid_pre", "tf-idf and length"]
    assert last_layer(table, "classes") is None
    with pytest.raises(UserError, match=r"rung_layers: .*'blocks.0.resid_pre', did you mean 'blocks.0.hook_resid_pre'"):
        probed(run, rungs=["mlp"], rung_layers=["blocks.0.resid_pre"])


def test_held_out_losses_are_kept_by_question_and_give_the_table(run):
    table, losses = run.probes(), run.probe_losses()
    table = table[table["target"] == "classes"].set_index(["rung", "layer"])
    assert set(losses["question_id"]) == set(run.questions()["id"])
    for key, rows in losses.groupby(["rung", "layer"]):
        explained = 1 - rows["probe_nats"].sum() / rows["baseline_nats"].sum()
        assert explained == pytest.approx(table.loc[key, "explained"], abs=1e-5)
    run.forget_probes()
    assert run.probe_losses().empty


def test_two_runs_are_compared_on_their_common_questions(tmp_path, study_dict, run):
    hot = study_dict | {"name": "hot"}
    (other,) = run_dict(tmp_path, hot, "sampling.temperature=3.0")
    found = compare_probes(run, other, "last_prompt_token", draws=20, level=0.95, seed=0)
    assert list(found["layer"]) == [*run.activation_layers("last_prompt_token"), "tf-idf and length"]
    own = run.probes()
    own = own[own["target"] == "classes"]
    np.testing.assert_allclose(found["a"], own["of_ceiling"], atol=1e-5)
    other.forget_probes()
    with pytest.raises(UserError, match=r"holds no probes.*semcal probe"):
        compare_probes(run, other, "last_prompt_token", draws=20, level=0.95, seed=0)


def test_attention_is_fitted_where_every_token_was_kept(tmp_path, study_dict):
    capture = {"positions": ["last_prompt_token", "all_question_tokens"]}
    probes = {"folds": 3, "permutations": 0, "targets": ["classes"], "rungs": ["linear", "attention"]}
    (run,) = run_dict(tmp_path, study_dict | {"capture": capture, "probes": probes})
    table = run.probes()
    rows = table[table["rung"] == "attention"]
    assert set(rows["position"]) == {"all_question_tokens"}
    assert len(rows) == 2
    assert rows["selectivity"].notna().all()
    assert rows["p_value"].between(0.001, 1).all()
    assert set(table.loc[table["rung"] == "linear", "position"]) == {"last_prompt_token"}


@pytest.mark.parametrize(
    ("probes", "message"),
    [
        ({"rungs": ["attention"]}, "add all_question_tokens to capture.positions"),
        ({"rungs": ["mpl"]}, "mlp"),
        ({"baselines": ["tf-idf"]}, "tfidf"),
        ({"targets": ["mode-correct"]}, "mode_correct"),
    ],
)
def test_what_cannot_be_fitted_is_refused_before_anything_is_loaded(tmp_path, study_dict, probes, message):
    with pytest.raises(UserError, match=message):
        load_study(write_study(tmp_path, study_dict | {"probes": probes}))
