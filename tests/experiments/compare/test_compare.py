"""`semcal compare`: which runs are paired, what is made equal, what is refused, what the tables say."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import yaml

from experiments.compare.compare_runs import adjusted, compare, compare_all, equalised
from experiments.compare.pairs import by_temperature, check_comparable, sensible_pairs
from experiments.compare.probe_rows import last_layer
from experiments.config.run_folder import differing
from experiments.pipeline.targets import scored_runs
from semcal import UserError
from semcal.calibration.estimators.finite_m import thin
from semcal.calibration.inference.paired import holm as holm_of
from semcal.calibration.measures.smece import smece
from semcal.semantics.class_table import ClassTable
from semcal.semantics.confidence import confidences
from tests.conftest import save_checkpoint
from tests.experiments.conftest import run_dict
from tests.experiments.pipeline.test_cli import semcal


@pytest.fixture
def plain(study_dict):
    """Without activations and probes, which comparing does not read."""
    return study_dict | {"capture": {"positions": []}, "probes": {"enabled": False}}


def scored(*folders: Path):
    runs, _, _ = scored_runs([str(f) for f in folders], [])
    return runs


def test_two_models_side_by_side(monkeypatch, capsys, tmp_path, plain):
    other = save_checkpoint(tmp_path / "other", seed=1, scale=2.0)
    models = [*plain["models"], {"path": str(other), "name": "other", "device": "cpu"}]
    first, second = run_dict(tmp_path, plain | {"models": models})
    code, out, err = semcal(monkeypatch, capsys, "compare", first.folder, second.folder)
    assert code == 0, err
    for said in ("llama", "other", "they differ in model · 48 questions, M = 8", "smECE", "Holm", "tests shown"):
        assert said in out, said
    (found,) = compare_all(scored(first.folder, second.folder), named=True)
    assert found.differences["smece"].a == pytest.approx(first.calibration()["smece"])
    assert found.differences["accuracy"].b == pytest.approx(second.calibration()["accuracy"])
    assert found.differences["excess"].b == pytest.approx(second.calibration()["excess"])
    (holm,) = adjusted([found])
    assert all(holm[name] >= d.p_value for name, d in found.differences.items() if np.isfinite(d.p_value))


def test_a_study_is_compared_in_pairs_that_differ_in_one_thing(monkeypatch, capsys, tmp_path, plain):
    grid = plain | {"styles": ["concise", "sentence"], "semantics": [{"kind": "exact"}, {"kind": "kth-word", "k": 1}]}
    runs = run_dict(tmp_path, grid)
    read, named, left_out = scored_runs([str(tmp_path / "study.yaml")], [])
    pairs = sensible_pairs(read)
    assert not named
    assert not left_out
    assert [differing(a.cell, b.cell) for a, b in pairs] == [["style"], ["style"], ["B"], ["B"]]
    (runs[3].folder / "calibration.json").unlink()
    code, out, err = semcal(monkeypatch, capsys, "compare", tmp_path / "runs" / "small")
    assert code == 0, err
    assert out.count("they differ in") == 2
    assert "all 13 tests" in out  # two pairs of seven figures, but one AUROC is undefined: its model is never right
    assert ": not scored" in out


def test_unequal_runs_are_made_equal(tmp_path, plain):
    (large,) = run_dict(tmp_path, plain)
    small_data = [plain["datasets"][0] | {"n": 40, "seed": 1}]
    (small,) = run_dict(tmp_path, plain | {"name": "less", "datasets": small_data}, "sampling.m=5")
    one, two = scored(large.folder, small.folder)
    common = [q for q in large.questions()["id"] if q in set(small.questions()["id"])]
    assert 0 < len(common) < 48
    matched = equalised([one, two])
    assert matched.m == 5
    assert matched.note == (
        f"{len(common)} questions, M = 5; common to runs of 48, 40 questions; of M = 8, 5 samples each, 5 are kept at "
        "random"
    )
    kept = matched.runs[0].found.plug_in * 5
    np.testing.assert_allclose(kept, np.round(kept), atol=1e-9)
    rows = two.questions.index.get_indexer(pd.Index(common))
    assert two.table.counts is not None
    untouched = confidences(two.table.counts[rows], two.table.gold[rows], two.table.unparsed[rows])
    np.testing.assert_array_equal(matched.runs[1].found.plug_in, untouched.plug_in)
    again = equalised([one, two])
    np.testing.assert_array_equal(again.runs[0].found.plug_in, matched.runs[0].found.plug_in)
    assert compare(one, two).differences["smece"].b == pytest.approx(smece(untouched.plug_in, untouched.correct))


@pytest.mark.long
def test_probed_runs_are_compared_in_predictability_too(monkeypatch, capsys, tmp_path, study_dict):
    probes = study_dict["probes"] | {"rungs": ["linear", "ridge-logit"], "targets": ["classes"], "permutations": 0}
    hotter = save_checkpoint(tmp_path / "other", seed=1, scale=4.0)
    models = [*study_dict["models"], {"path": str(hotter), "name": "other", "device": "cpu"}]
    first, second = run_dict(tmp_path, study_dict | {"models": models, "probes": probes})
    code, out, err = semcal(monkeypatch, capsys, "compare", first.folder, second.folder)
    assert code == 0, err
    for said in (
        "KL gap, linear",
        "KL gap, ridge-logit",
        "separately for the 2 of the KL gap",
    ):
        assert said in " ".join(out.split()), said
    (found,) = compare_all(scored(first.folder, second.folder), named=True)
    assert not found.note
    assert list(found.predictability) == ["linear", "ridge-logit"]  # no baselines
    for run, side in ((first, "a"), (second, "b")):
        last = last_layer(run.probes(), "classes")
        assert last is not None
        assert getattr(found.predictability["linear"], side) == pytest.approx(last["gap"], abs=1e-5)
    (holm,) = adjusted([found])
    p = [d.p_value for d in found.predictability.values()]
    assert [holm[rung] for rung in found.predictability] == pytest.approx(holm_of(p))  # a family of their own


@pytest.mark.long
def test_two_styles_are_compared_in_quarters_of_the_questions_too(monkeypatch, capsys, tmp_path, study_dict):
    monkeypatch.setattr("experiments.compare.by_gap.FEWEST", 4)
    probes = study_dict["probes"] | {"targets": ["classes"], "permutations": 0}
    first, second = run_dict(tmp_path, study_dict | {"styles": ["concise", "sentence"], "probes": probes})
    code, out, err = semcal(monkeypatch, capsys, "compare", "--json", first.folder, second.folder)
    assert code == 0, err
    (found,) = json.loads(out)["comparisons"]
    assert [q["n"] for q in found["by_gap"]["quarters"]] == [12] * 4
    code, out, _ = semcal(monkeypatch, capsys, "compare", first.folder, second.folder)
    said = " ".join(out.split())
    assert "the same questions, in quarters by the KL gap (linear) of the" in said
    assert "in the first quarter to " in said
    assert np.isfinite(found["by_gap"]["trend"]["estimate"])


def thinned(frame: pd.DataFrame) -> pd.DataFrame:
    table = ClassTable.from_frame(frame)
    (counts,) = thin(table.sampled_counts, 5, rng=np.random.default_rng(0), repeats=1)
    return replace(table, counts=counts).to_frame()


def without_gaps(losses: pd.DataFrame) -> pd.DataFrame:
    return losses.drop(columns=["gap_nats", "gap_top_nats"])


def open_classes(probes: pd.DataFrame) -> pd.DataFrame:
    return probes.assign(rung=probes["rung"].replace("linear", "bilinear"))


def test_why_predictability_is_not_compared_is_one_line(monkeypatch, capsys, tmp_path, study_dict):
    (run,) = run_dict(tmp_path, study_dict, "probes.targets=[classes]", "probes.permutations=0")
    other = Path(shutil.copytree(run.folder, tmp_path / "copy"))
    losses = "holds no probes of the class distribution at last_prompt_token; `semcal probe` it"
    for name, change, why in (
        ("classes.parquet", thinned, "not compared: M is 8 and 5"),
        ("config.yaml", lambda c: c | {"probes": c["probes"] | {"folds": 4}}, "not compared: probes.folds is 3 and 4"),
        ("probe_losses.parquet", lambda t: t.assign(position="question_mean"), f"not compared: {other} {losses}"),
        ("probe_losses.parquet", without_gaps, f"not compared: the probes of {other} are of an earlier version"),
        ("probes.parquet", open_classes, "not compared: the targets are of different kind: "),
    ):
        before = (other / name).read_bytes()
        edit(other, name, change)
        code, out, err = semcal(monkeypatch, capsys, "compare", run.folder, other)
        assert code == 0, err
        assert f"KL gap: {why}" in out
        assert "KL gap, linear" not in out
        assert "all 7 tests shown" in out
        (other / name).write_bytes(before)


def test_temperatures_stand_in_a_table_of_their_own(monkeypatch, capsys, tmp_path, plain):
    folders = []
    for name, temperature in (("warm", 1.0), ("cold", 0.3), ("mild", 0.7)):
        (run,) = run_dict(tmp_path, plain, f"name={name}", f"sampling.temperature={temperature}")
        folders.append(run.folder)
    ((cold, mild, warm),) = by_temperature(scored(*folders))
    assert [r.cell.sampling.temperature for r in (cold, mild, warm)] == [0.3, 0.7, 1.0]
    code, out, err = semcal(monkeypatch, capsys, "compare", *folders)
    assert code == 0, err
    assert out.count("they differ in temperature") == 2  # all against the first
    table = out[out.index("by temperature") :]
    assert "null mean" in table
    assert [line.split()[0] for line in table.splitlines() if line.strip()[:2] in ("0.", "1 ")] == ["0.3", "0.7", "1"]


def test_enumerated_runs_compare_with_each_other_only(tmp_path, plain):
    (sampled,) = run_dict(tmp_path, plain)
    exact = {"exact": {"epsilon": 0.2, "row_budget": 50}, "max_new_tokens": 2}
    (one,) = run_dict(tmp_path, plain | {"name": "one", "sampling": plain["sampling"] | exact})
    (two,) = run_dict(tmp_path, plain | {"name": "two", "sampling": plain["sampling"] | exact | {"temperature": 0.5}})
    found = compare(*scored(one.folder, two.folder))
    assert found.matched.m is None
    assert found.differences["confidence"].a == pytest.approx(one.calibration()["confidence"])
    assert found.differences["excess"].a == pytest.approx(one.calibration()["excess"])
    with pytest.raises(UserError, match="one was enumerated and the other sampled"):
        check_comparable(*scored(sampled.folder, one.folder))


def edit(folder: Path, name: str, change) -> None:
    path = folder / name
    (folder / "digests.json").unlink(missing_ok=True)
    if path.suffix == ".parquet":
        change(pd.read_parquet(path)).to_parquet(path, index=False)
    elif path.suffix == ".json":
        path.write_text(json.dumps(change(json.loads(path.read_text()))))
    else:
        path.write_text(yaml.safe_dump(change(yaml.safe_load(path.read_text()))))


def test_what_does_not_compare_is_refused_in_one_line(monkeypatch, capsys, tmp_path, plain):
    (run,) = run_dict(tmp_path, plain)
    version = run.calibration()["semantics"]
    refusals = [
        (
            "config.yaml",
            lambda c: c | {"dataset": c["dataset"] | {"name": "other"}},
            "different datasets (colours, oth",
        ),
        (
            "calibration.json",
            lambda c: c | {"semantics": "exact/0"},
            f"different Bs ({version}, exact/0); `semcal score`",
        ),
        ("questions.parquet", lambda q: q.assign(text="who?"), "has another text in the second"),
        ("questions.parquet", lambda q: q.assign(answers=[["x"]] * len(q)), "has other gold answers in the second"),
    ]
    for name, change, message in refusals:
        other = shutil.copytree(run.folder, tmp_path / "copy")
        edit(other, name, change)
        code, _, err = semcal(monkeypatch, capsys, "compare", run.folder, other)
        assert code == 2
        assert message in err, err
        assert "Traceback" not in err
        shutil.rmtree(other)

    other = shutil.copytree(run.folder, tmp_path / "copy")
    edit(other, "config.yaml", lambda c: c | {"semantics": {"kind": "kth-word", "k": 1}, "style": "sentence"})
    edit(other, "calibration.json", lambda c: c | {"semantics": "kth-word(1)/2"})
    code, _, err = semcal(monkeypatch, capsys, "compare", run.folder, other)
    assert (code, "and differ in style too" in err) == (2, True)
    for name, column in (("questions.parquet", "id"), ("classes.parquet", "question_id")):
        edit(other, name, lambda table, column=column: table.assign(**{column: "z" + table[column]}))
    code, _, err = semcal(monkeypatch, capsys, "compare", run.folder, other)
    assert (code, "no question in common" in err) == (2, True)
    (other / "calibration.json").unlink()
    for arguments, message in (
        ([run.folder, other], "has not been scored"),
        ([run.folder, run.folder], "is named twice"),
        ([run.folder], "needs two scored runs, found 1"),
        ([run.folder, tmp_path / "nowhere"], "no run at or below"),
        ([run.folder, "--set", "seed=1"], "--set needs a study file"),
    ):
        code, _, err = semcal(monkeypatch, capsys, "compare", *arguments)
        assert (code, message in err) == (2, True), err
