"""What `semcal probe` fits is what the study says."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml
from safetensors import safe_open
from safetensors.numpy import save_file

from experiments.compare.compare_runs import compare_last_layers
from experiments.compare.probe_rows import last_layer
from experiments.config.run_folder import stored_cell
from experiments.config.study import CalibrationConfig, ProbesConfig, load_study
from experiments.pipeline.looks import reading
from experiments.probe.open_classes import features_of, spellings
from experiments.probe.probe import probe
from experiments.probe.probed import Probed
from experiments.probe.with_model import question_embeddings
from experiments.sample.models import Models
from probes.activations.layers import Layers
from probes.evaluation.rungwise import Candidates
from probes.rungs.bilinear import class_axes
from probes.rungs.linear import RidgeLogitProbe
from probes.targets.open import open_target
from semcal import LanguageModel, Run, UserError
from semcal.calibration.resampling import Resampling
from semcal.semantics.class_table import ClassTable
from tests.experiments.conftest import run_dict, write_study
from tests.experiments.pipeline.test_cli import semcal
from tests.probes.tables import table_of

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
    asked = cell.model_copy(update={"probes": ProbesConfig(**given)})
    run.write_config(asked.model_dump(mode="json"))  # probes that a run does not ask for are not shown
    probe(asked, run)
    return run


def test_by_default_linear_probes_of_all_layers_are_compared_with_words_and_lengths(run):
    table = run.probes()
    assert set(table["rung"]) == {"linear", "baseline:tfidf", "baseline:marginal"}
    classes = table[table["target"] == "classes"]
    assert list(classes["layer"]) == [*run.activations("last_prompt_token").layers, "tf-idf and length", ""]
    assert last_layer(table, "classes")["layer"] == run.activations("last_prompt_token").layers[-1]
    assert (classes["ceiling_low"] <= classes["ceiling"]).all()
    scalar = table[table["target"] == "b_confidence"]
    assert scalar["ceiling"].between(0, 1).all()


@pytest.mark.long
def test_every_rung_and_target_has_its_rows(run):
    targets = ["classes", "b_confidence", "entropy", "ranked", "n_classes", "mode_correct"]
    rungs = ["linear", "ridge-logit", "low-rank", "mlp"]
    table = probed(run, targets=targets, rungs=rungs, baselines=["tfidf"]).probes()
    assert set(table["target"]) == set(targets)
    names = run.activations("last_prompt_token").layers
    for rung in rungs[1:]:
        rows = table[(table["rung"] == rung) & (table["target"] == "classes")]
        assert list(rows["layer"]) == [names[len(names) // 2], names[-1]]
        assert rows["control"].notna().all()
    assert set(table.loc[table["rung"] == "mlp", "target"]) == {"classes", "ranked", "mode_correct"}
    marginal = table[table["rung"] == "baseline:marginal"].set_index("target")
    assert set(marginal.index) == set(targets)
    assert (marginal["explained"] == 0).all()
    linear = table[(table["rung"] == "linear") & (table["target"] == "classes")]
    assert marginal.loc["classes", "gap"] - linear["gap"].iloc[0] == pytest.approx(
        linear["baseline_nats"].iloc[0] - linear["probe_nats"].iloc[0]
    )
    assert table.loc[table["target"].isin(["ranked", "mode_correct", "n_classes"]), "ceiling"].isna().all()


def test_layers_are_chosen_by_name_and_one_that_was_not_captured_is_refused(run):
    table = probed(run, targets=["classes"], rungs=["ridge-logit"], rung_layers=["blocks.0.hook_resid_pre"]).probes()
    assert list(table["layer"]) == ["blocks.0.hook_resid_pre", "tf-idf and length", ""]
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


def test_two_runs_are_compared_on_their_common_questions(tmp_path, study_dict, run):
    hot = study_dict | {"name": "hot"}
    (other,) = run_dict(tmp_path, hot, "sampling.temperature=3.0")
    found, remarks = compare_last_layers(run, other, "last_prompt_token", resampling=Resampling(bootstrap=20))
    assert set(found) == {"linear"}
    assert remarks == ""
    for side, of in (("a", run), ("b", other)):
        own = last_layer(of.probes(), "classes")
        assert own is not None
        assert getattr(found["linear"], side) == pytest.approx(own["gap"], abs=1e-5)
    (other.folder / "probe_losses.parquet").unlink()
    with pytest.raises(UserError, match=r"holds no probes.*semcal probe"):
        compare_last_layers(run, other, "last_prompt_token", resampling=Resampling(bootstrap=20, level=0.95, seed=0))


@pytest.mark.long
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


@pytest.mark.parametrize("target", ["closed", "open"])
def test_a_run_of_one_class_keeps_all_its_probes_and_has_no_gap(run, caplog, target):
    table = run.questions()
    one = ClassTable.of_arrays(np.full((len(table), 1), 8), groups=table["group"])
    run.write_classes(replace(one, questions=tuple(table["id"])))
    settings = {"targets": ["classes", "b_confidence"], "rungs": ["linear", "bilinear", "density"]}
    with caplog.at_level("WARNING"):
        found = probed(run, target=target, **settings).probes()
    assert "target classes is the same for all 48 questions" in caplog.text
    classes = found[found["target"] == "classes"]
    assert set(classes["rung"]) >= {"bilinear", "density", "baseline:tfidf", "baseline:marginal"}
    assert (classes["gap"] == 0).all()
    assert "linear" in set(found.loc[found["target"] == "b_confidence", "rung"])
    assert (run.probe_predictions()["confidence"] == 1).all()


@pytest.mark.parametrize("rung", ["linear", "bilinear", "ridge-logit"])
def test_intervals_have_the_level_and_the_resamples_of_the_study(run, rung):
    cell = stored_cell(run)
    features = {label: np.array([len(label), i]) for i, label in enumerate(open_target(run.class_table()).classes)}

    def widths(**calibration) -> np.ndarray:
        given = {"calibration": CalibrationConfig(**calibration), "probes": ProbesConfig(folds=3, permutations=0)}
        at = Probed.of(cell.model_copy(update=given), run, "last_prompt_token", features)
        layer = at.activations.layers[-1]
        if rung == "linear":
            (found,) = at.fit_linear([at.target("classes")], Layers.stored(at.activations))
        elif rung == "bilinear":
            found = at.classes.evaluation(at.by_text)
        else:
            of = Candidates(rung, [RidgeLogitProbe()], control=False)
            found = at.fit_rung("classes", of, at.activations.layer(layer), layer=layer)
        return (found.frame["gap_high"] - found.frame["gap_low"]).to_numpy()

    half, most, other = widths(level=0.5), widths(level=0.95), widths(level=0.95, bootstrap=100)
    np.testing.assert_allclose(most / half, 2.9, rtol=0.15)  # as of a normal distribution
    assert (other == most).all()  # or probes would have to be fitted again


# ---- open and closed classes ---------------------------------------------------------------------------------------


def with_classes(run: Run, rows: list[dict[str, float]]) -> ClassTable:
    """The run, its questions answered by other classes."""
    table = run.questions()
    made = replace(table_of(rows, group=list(table["group"])), questions=tuple(table["id"]))
    run.write_classes(made)
    return made


@pytest.mark.parametrize(("rare", "rung"), [(1, "linear"), (2, "bilinear")])
def test_classes_are_closed_where_at_most_5_percent_would_be_pooled_and_else_open(run, rare, rung):
    """Of 20 samples each, one is 5 %."""
    rows = [{"red": 8 + i % 4, "blue": 12 - i % 4 - rare, f"rare {i}": rare} for i in range(48)]
    with_classes(run, rows)
    found = probed(run, targets=["classes"], target="auto", max_classes=3, baselines=[]).probes()
    fitted = found[~found["rung"].str.startswith("baseline:")]
    assert set(fitted["rung"]) == {rung}
    assert fitted["pooled"].to_numpy() == pytest.approx(0.05 if rung == "linear" else 0)
    assert set(fitted["n_classes"]) == {3 if rung == "linear" else 50}


def test_classes_that_the_tokenizer_cannot_write_are_known_by_their_spelling(run, caplog):
    cell, labels = stored_cell(run), ["red", "\u13a0\u13b1"]
    with caplog.at_level("WARNING"):
        found = features_of(cell, run, labels, Models())
    assert "known to the probes by their spelling alone: the tokenizer of" in caplog.text
    np.testing.assert_array_equal(np.stack([found[label] for label in labels]), spellings(labels, seed=cell.seed))
    with_classes(run, [{"red": 8 - i % 5, "\u13a0\u13b1": i % 5} for i in range(48)])
    rows = probed(run, targets=["classes"], target="open", baselines=[]).probes()
    assert (rows.loc[rows["rung"] == "bilinear", "gap"] < 1).all()


def test_questions_are_the_mean_of_their_input_embeddings(tiny: LanguageModel):
    table = tiny.model.get_input_embeddings().weight.detach().numpy()  # pyright: ignore
    red, blue = (tiny.encode(word)[-1] for word in ("red", "blue"))
    found = question_embeddings(tiny, ["red", "blue red", "red blue"])
    np.testing.assert_allclose(found.layer(0, 3)[0], table[red], rtol=1e-6)
    np.testing.assert_allclose(found.layer(0, 3)[1], (table[red] + table[blue]) / 2, rtol=1e-6)
    np.testing.assert_allclose(found.layer(0, 3)[2], found.layer(0, 3)[1], rtol=1e-6)


@pytest.mark.parametrize(
    "labels", [["a"], [""], ["Yes", "yes"], ["a b", "a  b"], ["unparsed", "(unparsed)"], ["1", "2", "3"]]
)
def test_whatever_classes_are_called_a_probe_can_tell_them_apart(run, labels):
    cell = stored_cell(run)
    for found in (features_of(cell, run, labels, Models()), dict(zip(labels, spellings(labels, seed=0), strict=True))):
        assert list(found) == labels
        if len(labels) > 1:
            assert class_axes(np.stack(list(found.values()))).std(0).max() > 0


# ---- bad input, by the library and by the command -------------------------------------------------------------------


def refused(monkeypatch, capsys, run: Run, **probes) -> str:
    """The one line that `semcal probe RUN` ends with, the run's stored configuration asking for these probes."""
    config = yaml.safe_load((run.folder / "config.yaml").read_text())
    given = {"probes": config["probes"] | {"targets": ["classes"], "baselines": []} | probes}
    run.write_config(config | given)
    code, _, err = semcal(monkeypatch, capsys, "probe", run.folder)
    assert (code, "Traceback" in err) == (2, False), err
    return err.strip().splitlines()[-1]


def shard(run: Run) -> Path:
    return run.folder / "activations" / f"{run.shard_keys()[0]}.safetensors"


def test_constant_targets_are_warned_of_and_explain_nothing(run, caplog):
    table = run.questions()
    one = ClassTable.of_arrays(np.full((len(table), 1), 8), groups=table["group"])
    run.write_classes(replace(one, questions=tuple(table["id"])))
    targets = ["classes", "b_confidence", "entropy", "ranked", "n_classes", "mode_correct"]
    with caplog.at_level("WARNING"):
        found = probed(run, targets=targets, rungs=["linear", "ridge-logit", "mlp"], baselines=["tfidf"]).probes()
    for name in targets:
        (said,) = (r.getMessage() for r in caplog.records if f"target {name} " in r.getMessage())
        assert "is the same for all 48 questions" in said
        assert "ask other questions, draw more samples, or choose another B" in said
        assert "\n" not in said
    np.testing.assert_allclose(found[["explained", "control"]].fillna(0), 0, atol=1e-4)
    assert (found["p_value"].fillna(1) == 1).all()
    assert set(found["target"]) == set(targets)


def test_more_folds_than_groups_are_refused(run, monkeypatch, capsys):
    said = refused(monkeypatch, capsys, run, folds=49)
    assert "48 groups of questions cannot be split into 49 folds" in said
    assert "lower probes.folds" in said


def test_a_position_that_few_questions_have_is_left_out_with_a_word(tmp_path, study_dict, caplog):
    capture = {"positions": ["last_prompt_token", "after_4_tokens"]}
    (run,) = run_dict(tmp_path, study_dict | {"capture": capture, "probes": {"enabled": False}})
    there = int(run.activations("after_4_tokens").present.sum())
    with caplog.at_level("WARNING"):
        table = probed(run, folds=there + 1, targets=["b_confidence"], baselines=[], permutations=0).probes()
    assert there < 48
    assert set(table["position"]) == {"last_prompt_token"}
    (said,) = (r.getMessage() for r in caplog.records if "after_4_tokens" in r.getMessage())
    assert "not probed at the position after_4_tokens" in said
    assert f"{there} groups of questions cannot be split into {there + 1} folds" in said
    assert "lower probes.folds" in said


def test_a_layer_that_was_not_captured_is_refused_with_the_nearest(run, monkeypatch, capsys):
    said = refused(monkeypatch, capsys, run, rungs=["mlp"], rung_layers=["blocks.3.hook_resid_post"])
    assert "probes.rung_layers: there are no activations of layer 'blocks.3.hook_resid_post', did you mean" in said
    assert "captured are blocks.0.hook_resid_pre" in said


def test_a_position_that_was_not_captured_is_refused_with_the_nearest(run, monkeypatch, capsys):
    config = yaml.safe_load((run.folder / "config.yaml").read_text())
    config["capture"]["positions"] = ["last_question_token"]
    run.write_config(config)
    said = refused(monkeypatch, capsys, run)
    assert "nothing captured at position 'last_question_token', did you mean 'last_prompt_token'" in said


def test_activations_that_are_not_finite_are_refused_and_the_file_named_is_made_again(
    tmp_path, study_dict, monkeypatch, capsys
):
    (run,) = run_dict(tmp_path, study_dict)
    before = run.activations("last_prompt_token").values
    with safe_open(shard(run), framework="np") as stored:
        facts, tensors = stored.metadata(), {name: stored.get_tensor(name) for name in stored.keys()}  # noqa: SIM118
    broken = tensors["last_prompt_token"].copy()
    broken[3, 1, 0] = np.nan
    (run.folder / "digests.json").unlink()  # else it is refused as changed
    save_file(tensors | {"last_prompt_token": broken}, shard(run), metadata=facts)
    said = refused(monkeypatch, capsys, run)
    assert f"{shard(run)}: last_prompt_token holds NaN or infinity at blocks.0.hook_resid_post, row 3" in said
    assert "delete this file and `semcal run` its study again" in said
    shard(run).unlink()
    run_dict(tmp_path, study_dict)
    np.testing.assert_array_equal(run.activations("last_prompt_token").values, before)


def test_activations_of_another_run_or_tokenizer_are_refused(tmp_path, study_dict, run, monkeypatch, capsys):
    (other,) = run_dict(tmp_path, study_dict | {"name": "other", "seed": 1, "probes": {"enabled": False}})
    own = shard(run).read_bytes()
    (run.folder / "digests.json").unlink()  # else it is refused as changed
    shard(run).write_bytes(shard(other).read_bytes())
    said = refused(monkeypatch, capsys, run)
    assert f"holds shard {other.shard_keys()[0]}, so it belongs to another run; delete this file and run its" in said
    shard(run).write_bytes(own)
    run.write_manifest(run.manifest() | {"tokenizer_hash": "another"})
    said = refused(monkeypatch, capsys, run)
    assert "captured with another tokenizer than this run's, so it belongs to another run; delete this file" in said


def test_probing_runs_without_probes_is_refused(tmp_path, study_dict, monkeypatch, capsys):
    (plain,) = run_dict(tmp_path, study_dict | {"name": "plain", "probes": {"enabled": False}})
    code, _, err = semcal(monkeypatch, capsys, "probe", plain.folder)
    assert code == 2
    assert "probes.enabled is false" in err


def test_a_device_that_is_not_available_is_refused(run, monkeypatch, capsys):
    assert "device 'cuda:9'" in refused(monkeypatch, capsys, run, device="cuda:9")


def test_held_out_predictions_are_kept_by_question_and_enter_the_table_of_the_run(run):
    predicted, table = run.probe_predictions(), run.table()
    assert list(predicted) == ["question_id", "class", "confidence", "entropy", "correct", "confidence_in_mode"]
    assert list(predicted["question_id"]) == list(run.questions()["id"]) == list(table["question_id"])
    row = run.probe_confidence().set_index("source").loc["class probe"]
    assert predicted["confidence"].mean() == pytest.approx(row["confidence"])
    assert predicted["correct"].mean() == pytest.approx(row["accuracy"])
    assert list(table["probe_class"]) == list(predicted["class"])
    assert list(table["probe_entropy"]) == list(predicted["entropy"])
    assert (predicted["entropy"] > -np.log(predicted["confidence"])).all()  # the mean surprise is above the least
    run.write_probe_predictions(predicted.drop(columns="entropy"))  # as an earlier version did
    assert run.table()["probe_entropy"].isna().all()
    calibration = run.calibration()
    assert table["confidence"].mean() == pytest.approx(calibration["confidence"])
    assert table["correct"].mean() == pytest.approx(calibration["accuracy"])


def test_activations_of_another_tool_are_probed_beside_the_runs_own(run, tmp_path, monkeypatch, capsys):
    own, before = run.activations("last_prompt_token"), run.probes()
    ids = run.questions()["id"].tolist()
    file, order = tmp_path / "theirs.safetensors", np.arange(len(ids))[::-1]
    layers = {name: np.ascontiguousarray(own.layer(name)[order]) for name in own.layers}
    save_file(layers, file, metadata={"question_ids": json.dumps([ids[i] for i in order])})
    code, out, err = semcal(monkeypatch, capsys, "probe", run.folder, "--activations", file)
    assert code == 0, err
    beside = Run(next((run.folder / "looks").iterdir()))
    assert str(beside.folder) in out
    pd.testing.assert_frame_equal(beside.probes(), before)  # the same activations give the same figures
    pd.testing.assert_frame_equal(run.probes(), before)

    file.unlink()
    save_file({n: v[:40] for n, v in layers.items()}, file, metadata={"question_ids": json.dumps(ids[::-1][:40])})
    assert semcal(monkeypatch, capsys, "probe", run.folder, "--activations", file)[0] == 0
    assert set(beside.probes()["n"]) == {40}
    with_lora = stored_cell(run).model_copy(update={"probes": ProbesConfig(rungs=["linear", "lora"])})
    with pytest.raises(UserError, match=r"--activations: .*lora reads the model itself, not a file"):
        reading(with_lora, file)


def test_a_file_with_too_few_questions_is_refused_and_leaves_nothing(run, tmp_path, monkeypatch, capsys):
    ids = run.questions()["id"].tolist()
    frame = pd.DataFrame({"question_id": ids, "x": [[1.0, float(i)] for i in range(len(ids))]})
    frame[frame["question_id"].isin(ids[:2])].to_parquet(tmp_path / "few.parquet")
    code, _, err = semcal(monkeypatch, capsys, "probe", run.folder, "--activations", tmp_path / "few.parquet")
    assert code == 2
    said = err.strip().splitlines()[-1]
    assert "few.parquet: of the questions that it has, 2 groups of questions cannot be split into 3 folds; ask" in said
    assert not list((run.folder / "looks").glob("[!.]*"))


def test_a_run_without_activations_is_probed_on_a_file(tmp_path, study_dict, monkeypatch, capsys):
    bare = run_dict(tmp_path, study_dict, "capture.positions=[]", "probes.enabled=false")[0]
    ids = bare.questions()["id"].tolist()
    noise = np.random.default_rng(0).normal(size=(len(ids), 5)).astype(np.float32)
    pd.DataFrame({"question_id": ids, "their layer": list(noise)}).to_parquet(tmp_path / "a.parquet")
    code, _, err = semcal(monkeypatch, capsys, "probe", bare.folder, "--activations", tmp_path / "a.parquet")
    assert code == 0, err
    found = Run(next((bare.folder / "looks").iterdir())).probes()
    assert set(found.loc[found["rung"] == "linear", "layer"]) == {"their layer"}
    assert not (bare.folder / "probes.parquet").exists()
