"""Bs in a study: the default of a dataset, what is refused before a model loads, comparison on the same samples."""

from __future__ import annotations

import json

import pytest

from experiments.config.collapsing_functions import collapse_of
from experiments.config.study import load_study, named_semantics
from semcal import Run, UserError
from semcal.semantics.collapsing.collapse import UNPARSED
from semcal.semantics.collapsing.numeric import Numeric
from tests.experiments.conftest import run_dict, write_study
from tests.experiments.pipeline.test_cli import semcal
from tests.semantics.test_judge import judge_server


def cells(tmp_path, study):
    return load_study(write_study(tmp_path, study)).cells()


def test_a_dataset_has_a_b_of_its_own_unless_the_study_names_one(tmp_path, study_dict):
    named = [
        {"kind": "gsm8k", "path": "g"},
        {"kind": "truthfulqa-mc"},
        {"kind": "popqa", "split": "test[:10]"},
        {"kind": "csv", "path": "x.csv"},
    ]
    assert [c.semantics.label for c in cells(tmp_path, study_dict | {"datasets": named})] == [
        "numeric", "choice", "exact", "exact",
    ]  # fmt: skip
    chosen = study_dict | {
        "datasets": named[:1],
        "semantics": [{"kind": "exact"}, {"kind": "judge", "url": "u", "model": "a/b"}],
    }
    assert [c.semantics.label for c in cells(tmp_path, chosen)] == ["exact", "judge-b"]


def test_names_on_the_command_line():
    chosen = named_semantics(
        "exact, numeric,word3,entailment:cross/nli,embedding:./e,judge:org/m@http://h:1/v1,custom:a.b:c"
    )
    assert [c.label for c in chosen] == [
        "exact",
        "numeric",
        "word3",
        "entailment-nli",
        "embedding-e",
        "judge-m",
        "custom-c",
    ]
    assert (chosen[5].model, chosen[5].url) == ("org/m", "http://h:1/v1")
    assert chosen[6].path == "a.b:c"
    with pytest.raises(UserError, match="did you mean 'exact'"):
        named_semantics("exakt")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"semantics": [{"kind": "choice"}]}, "semantics choice needs questions with choices"),
        ({"semantics": [{"kind": "custom", "path": "nowhere:b"}]}, "cannot import 'nowhere:b'"),
        ({"semantics": [{"kind": "embeding", "path": "x"}]}, "did you mean 'embedding'"),
        ({"semantics": [{"kind": "entailment", "path": "x", "threshold": 1.5}]}, "semantics.0.threshold"),
        (
            {"datasets": [{"kind": "gsm8k", "path": "x", "split": "train"}]},
            "so split and revision, which choose a version on the Hub",
        ),
        ({"prompting": {"shots": 2, "exemplars": 500}}, "exemplars is 500, but there are only"),
    ],
)
def test_one_line_before_a_model_loads(monkeypatch, capsys, tmp_path, study_dict, change, message):
    study = study_dict | change | {"models": [{"path": "someone/never-loaded"}]}
    code, _, err = semcal(monkeypatch, capsys, "run", write_study(tmp_path, study))
    assert code == 2
    assert message in err.strip().splitlines()[-1]
    assert "Traceback" not in err


def test_gold_that_b_cannot_read_is_named(monkeypatch, capsys, tmp_path, study_dict):
    (tmp_path / "mine.py").write_text(
        "def b(question, text, style):\n    return None if 'red' in text else text[:1] or None\n"
    )
    monkeypatch.chdir(tmp_path)
    study = study_dict | {"semantics": [{"kind": "custom", "path": "mine:b"}]}
    code, _, err = semcal(monkeypatch, capsys, "run", write_study(tmp_path, study))
    line = err.strip().splitlines()[-1]
    assert code == 2
    assert "cannot read the gold answers of" in line


def test_bs_compared_on_the_same_samples_leave_the_run_as_it_is(monkeypatch, capsys, tmp_path, study_dict):
    (run,) = run_dict(tmp_path, study_dict)
    before = run.calibration()
    code, out, err = semcal(monkeypatch, capsys, "score", run.folder, "--semantics", "exact,word1,numeric")
    assert code == 0, err
    assert "adjusted Rand" in out
    found = json.loads((run.folder / "agreement.json").read_text())
    assert set(found["calibration"]) == {"exact", "word1", "numeric"}
    assert found["calibration"]["exact"]["smece"] == pytest.approx(before["smece"])
    for pair in found["pairs"]:
        assert -1 <= pair["rand"] <= 1
        change = found["calibration"][pair["b"]]["smece"] - found["calibration"][pair["a"]]["smece"]
        assert pair["smece_change"] == pytest.approx(change)
    assert Run(run.folder).calibration() == before
    code, _, err = semcal(monkeypatch, capsys, "score", run.folder, "--semantics", "exact")
    assert code == 2
    assert "at least two" in err


def test_a_run_of_the_version_before_is_refused_with_the_command_that_scores_it(
    monkeypatch, capsys, tmp_path, study_dict
):
    (run,) = run_dict(tmp_path, study_dict | {"probes": {"enabled": False}})
    before, table = run.calibration(), run.classes()
    table.drop(columns=["group", "seen_mass", "unparsed"]).to_parquet(run.folder / "classes.parquet")
    run.write_manifest({key: value for key, value in run.manifest().items() if key != "analysed"})
    code, _, err = semcal(monkeypatch, capsys, "report", run.folder)
    assert (code, f"an earlier version of semcal; run `semcal score {run.folder}`" in err.replace("\n", "")) == (
        2,
        True,
    )
    code, _, err = semcal(monkeypatch, capsys, "score", run.folder)
    assert code == 0, err
    assert run.calibration() == before
    assert run.classes().equals(table)


def test_a_run_scored_by_a_judge_counts_its_failures(tmp_path, study_dict):
    with judge_server(lambda prompt: "no json" if "First" in prompt else '{"answer": "red"}') as (url, prompts):
        b = {"kind": "judge", "url": url, "model": "wise", "cache": str(tmp_path / "judge.jsonl")}
        (run,) = run_dict(tmp_path, study_dict | {"semantics": [b]})
        assert prompts
    calibration = run.calibration()
    assert calibration["semantics"] == "judge(wise, prompts 1, complete)/1"
    assert calibration["judge_failed_to_shorten"] == 0
    assert set(run.classes()["class"]) <= {"red", UNPARSED, *run.classes()["class"]}
    assert "red" in set(run.classes()["class"])


def test_prompts_show_what_the_model_will_read(monkeypatch, capsys, tmp_path, study_dict):
    study = study_dict | {"styles": ["concise", "cot"]}
    code, out, err = semcal(monkeypatch, capsys, "prompts", write_study(tmp_path, study), "-n", "1")
    assert code == 0, err
    assert out.count("tokens of") == 2
    assert "Question:" in out
    assert "where activations are captured" in out
    assert not (tmp_path / "runs").exists()


def test_the_factory_makes_what_it_says():
    (config,) = named_semantics("numeric")
    assert isinstance(collapse_of(config, {}), Numeric)
