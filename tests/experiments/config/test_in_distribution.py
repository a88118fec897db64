"""Whether a dataset is in distribution: a default by dataset, a study's own word, and no part of what was sampled."""

from __future__ import annotations

import pytest

from experiments.config.run_folder import stored_cell
from experiments.config.study import load_study
from experiments.verdict.study_verdict import judge_study
from semcal import UserError
from semcal.questions.named.named_datasets import NAMED
from tests.experiments.conftest import run_dict, write_study


def datasets(folder, *configs, overrides=()):
    study = {"name": "s", "models": [{"path": "m"}], "styles": ["concise"], "datasets": list(configs)}
    study |= {"semantics": [{"kind": "numeric"}]}
    return load_study(write_study(folder, study), overrides).datasets


def test_only_datasets_whose_common_answers_are_wrong_are_not_by_default(tmp_path):
    named = [{"kind": kind, "path": "x"} for kind in NAMED]
    atlas = [{"kind": "atlas", "family": family} for family in ("facts", "routes", "myths")]
    own = {"kind": "jsonl", "path": "mine.jsonl"}
    found = {d.name for d in datasets(tmp_path, *named, *atlas, own) if not d.in_distribution}
    assert found == {"truthfulqa", "truthfulqa-mc", "atlas-myths"}


def test_a_study_may_say_otherwise(tmp_path):
    own, myths = {"kind": "jsonl", "path": "x.jsonl"}, {"kind": "atlas", "family": "myths"}
    said = datasets(tmp_path, own | {"in_distribution": False}, myths | {"in_distribution": True})
    assert [d.in_distribution for d in said] == [False, True]
    changed = datasets(tmp_path, own, myths, overrides=["datasets.0.in_distribution=false"])
    assert [d.in_distribution for d in changed] == [False, False]
    with pytest.raises(UserError, match="in_distribution"):
        datasets(tmp_path, own | {"in_distribution": "perhaps"})


def test_it_is_stored_and_a_change_samples_nothing_anew_and_reaches_the_verdict(monkeypatch, tmp_path, study_dict):
    monkeypatch.setattr("experiments.verdict.measured_run.NULL_DRAWS", 20)
    monkeypatch.setattr("experiments.verdict.study_verdict.MOST_UNPARSED", 1.0)  # a random model writes much of that
    off = {"capture": {"positions": []}, "probes": {"enabled": False}, "semantics": [{"kind": "kth-word", "k": 1}]}
    study = study_dict | off
    study["models"][0]["stage"] = "base"
    (run,) = run_dict(tmp_path, study)
    before = run.calibration(), run.manifest()["sampling_work"]
    assert stored_cell(run).dataset.in_distribution is True
    study["datasets"][0]["in_distribution"] = False
    h1 = {v.finding.key: v for v in judge_study(load_study(write_study(tmp_path, study))).verdicts}["H1"]
    assert h1.decision == "not tested"  # by the study's word, although the run was stored with another
    assert [part.what.split(":")[0] for part in h1.finding.context] == ["not in distribution"]
    (again,) = run_dict(tmp_path, study)  # refused if the samples depended on it
    assert (again.calibration(), again.manifest()["sampling_work"]) == before
    assert stored_cell(again).dataset.in_distribution is False
