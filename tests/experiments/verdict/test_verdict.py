"""`semcal verdict` from end to end: what it says of small runs, what it writes, what it names, what it refuses."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from experiments.compare.pairs import sensible_pairs
from experiments.config.run_folder import differing
from experiments.config.study import Cell, load_study
from experiments.pipeline.run_study import prepare_study
from experiments.pipeline.targets import scored_runs
from semcal.calibration.estimators.finite_m import thin
from semcal.runs.run import Run
from semcal.semantics.collapsing.alias_table import Aliases
from tests.conftest import save_checkpoint
from tests.experiments.conftest import questions_in, run_dict, study_of, write_study
from tests.experiments.pipeline.test_cli import semcal


@pytest.fixture(autouse=True)
def _few_draws(monkeypatch):
    monkeypatch.setattr("experiments.verdict.measured_run.NULL_DRAWS", 20)
    for rules in ("calibration_claims", "study_verdict"):  # random models write much that cannot be parsed
        monkeypatch.setattr(f"experiments.verdict.{rules}.MOST_UNPARSED", 1.0)
    monkeypatch.setattr(
        "experiments.pipeline.run_study.write_report", lambda *_: None
    )  # pictures of runs are not what is tested


@pytest.fixture(scope="module")
def finished(checkpoint, tmp_path_factory):
    """A finished study of three random models, which stand in for a base and what was made of it; not to be changed."""
    folder = tmp_path_factory.mktemp("finished")
    study = study_of(checkpoint, questions_in(folder), folder)
    base = study["models"][0] | {"name": "base", "stage": "base"}
    models = [base]
    for seed, stage in ((1, "sft"), (2, "dpo")):
        path = str(save_checkpoint(folder / stage, seed=seed, scale=2.0))
        models.append(base | {"path": path, "name": stage, "stage": stage})
    fast = {"targets": ["classes"], "permutations": 0, "folds": 3, "baselines": []}
    study |= {"models": models, "styles": ["concise", "sentence", "cot"], "probes": fast}
    run_dict(folder, study)
    return study


@pytest.fixture
def lineage(finished, tmp_path):
    """The same in a folder of its own."""
    shutil.copytree(finished["output"], tmp_path / "runs")
    return finished | {"output": str(tmp_path / "runs")}


def asked(tmp_path: Path, study) -> list[Run]:
    """The runs of a study, all of which are finished."""
    return prepare_study(load_study(write_study(tmp_path, study))).runs


def verdict(monkeypatch, capsys, tmp_path: Path, *sets: str):
    return semcal(monkeypatch, capsys, "verdict", tmp_path / "study.yaml", *[x for s in sets for x in ("--set", s)])


def test_every_hypothesis_has_a_row_and_rows_behind_it(monkeypatch, capsys, tmp_path, lineage):
    asked(tmp_path, lineage)
    code, out, err = verdict(monkeypatch, capsys, tmp_path)
    assert code == 0, err
    for said in (
        "H1",
        "H2 same prompt",
        "H6",
        "not tested: no base model of arm direct",
        "would find",
        "dpo · colours",
    ):
        assert said in out, said
    folder = tmp_path / "runs" / "small"
    found = json.loads((folder / "verdict.json").read_text())
    by_key = {h["key"]: h for h in found["hypotheses"]}
    assert (found["runs"], found["missing"], found["confidence"]) == (9, [], "by mass")
    assert by_key["H2"]["decision"] == "not tested"  # nobody was asked under chat
    assert by_key["H2 same prompt"]["decision"] in ("holds", "fails", "undecided")
    assert len(by_key["H2 same prompt"]["parts"]) == 4
    assert by_key["H5"]["reason"].startswith("no base model of arm direct in cot")
    text = (folder / "verdict.md").read_text()
    assert text.count("\n## ") == 7
    assert (folder / "figures" / "verdict.png").stat().st_size > 10_000


def test_what_is_missing_is_named_and_nothing_holds_without_runs(monkeypatch, capsys, tmp_path, lineage):
    runs = asked(tmp_path, lineage)
    for run in runs:
        (run.folder / "probes.parquet").unlink()
    for run in runs[1:]:
        (run.folder / "calibration.json").unlink()
    code, out, err = verdict(monkeypatch, capsys, tmp_path)
    assert code == 0, err
    assert "sft · colours · cot: not finished" in out
    assert out.count("not finished") == 8
    found = json.loads((tmp_path / "runs" / "small" / "verdict.json").read_text())
    decisions = {h["key"]: h["decision"] for h in found["hypotheses"]}
    assert set(decisions.values()) <= {"not tested", "undecided", "fails"}
    assert all(decisions[key] == "not tested" for key in ("H2", "H2 same prompt", "H3", "H4", "H5", "H6"))
    (runs[0].folder / "calibration.json").unlink()
    code, _, err = verdict(monkeypatch, capsys, tmp_path)
    assert (code, "is scored; `semcal run` the study first" in err) == (2, True)


def test_a_study_of_unparsed_answers_is_refused_before_it_is_read(monkeypatch, capsys, tmp_path, lineage):
    asked(tmp_path, lineage | {"models": lineage["models"][:1], "styles": ["concise"]})
    monkeypatch.setattr("experiments.verdict.study_verdict.MOST_UNPARSED", 0.05)
    code, _, err = verdict(monkeypatch, capsys, tmp_path)
    assert (code, "no hypothesis can be decided" in err, "use another B" in err) == (2, True, True)


def change_config(run: Run, change) -> None:
    run.write_config(change(run.config()))


def test_runs_that_differ_in_what_no_hypothesis_is_about_are_refused(monkeypatch, capsys, tmp_path, lineage):
    _, second = asked(tmp_path, lineage | {"models": lineage["models"][:2], "styles": ["concise"]})

    def refused(*parts: str) -> None:
        code, _, err = verdict(monkeypatch, capsys, tmp_path)
        assert code == 2
        assert all(part in err for part in ("small/base__", "small/sft__", *parts)), err
        assert err.count("semcal:") == 1
        assert "\n" not in err[err.index("semcal:") :].strip()

    calibration, classes, questions = second.calibration(), second.class_table(), second.questions()
    fewer = thin(classes.sampled_counts, 5, rng=np.random.default_rng(0), repeats=1)[0]
    second.write_classes(replace(classes, counts=fewer))
    refused("differ in M (8 and 5)")
    second.write_classes(classes)
    second.write_calibration(calibration | {"semantics": "exact/0"})
    refused("differ in B", "exact/0")
    second.write_calibration(calibration)
    kept = list(questions["id"])[:40]
    second.write_classes(classes.select(range(len(kept))))
    refused("differ in n (48 and 40)")
    (second.folder / "digests.json").unlink()
    classes.to_frame().drop(columns="mass").to_parquet(second.folder / "classes.parquet")
    code, _, err = verdict(monkeypatch, capsys, tmp_path)
    assert code == 2
    assert "earlier version of semcal; run its study again with `semcal run`" in err.replace("\n", "")
    second.write_classes(classes)
    second.write_questions(questions.assign(text="who?"), Aliases())
    refused("has another text")


def test_two_bases_of_one_lineage_are_refused(monkeypatch, capsys, tmp_path, lineage):
    asked(tmp_path, lineage | {"styles": ["concise"]})
    code, _, err = verdict(monkeypatch, capsys, tmp_path, "models.1.stage=base")
    assert (code, "has 2 base models (base, sft)" in err) == (2, True)
    code, _, err = verdict(monkeypatch, capsys, tmp_path, "models.1.stage=bass")
    assert (code, "did you mean 'base'?" in err) == (2, True)


def test_what_a_model_is_called_changes_no_sample_and_is_no_difference(tmp_path, lineage):
    plain = lineage | {"styles": ["concise"]}
    base = plain["models"][0]
    (run,) = asked(tmp_path, plain | {"models": [base]})
    before = run.calibration()
    again = base | {"stage": None, "lineage": "colours", "step": 7}
    (run,) = run_dict(tmp_path, plain | {"models": [again]})  # refused if it were another configuration
    assert run.calibration() == before
    assert run.config()["model"]["step"] == 7
    old = Cell.model_validate(run.config())
    assert not differing(old, old.model_copy(update={"model": old.model.model_copy(update={"stage": "sft"})}))
    twice = [base, base | {"name": "again", "step": 3}]
    run_dict(tmp_path, plain | {"models": twice, "styles": ["concise", "sentence"]})
    read, _, _ = scored_runs(
        [str(write_study(tmp_path, plain | {"models": twice, "styles": ["concise", "sentence"]}))], []
    )
    assert {tuple(differing(a.cell, b.cell)) for a, b in sensible_pairs(read)} == {("style",)}
