"""Bs in a study: the default of a dataset, what is refused before a model loads, comparison on the same samples."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest

from experiments.config.collapsing_functions import collapse_of
from experiments.config.run_folder import stored_cell
from experiments.config.study import load_study, named_semantics
from experiments.report.summary_table import remarks
from experiments.score.score import score
from semcal import Run, UserError
from semcal.semantics.collapsing.alias_table import Aliases
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
        ({"datasets": [{"kind": "truthfulqa"}]}, "e.g. semantics: [{kind: entailment, path: "),
        (
            {"datasets": [{"kind": "truthfulqa"}], "semantics": [{"kind": "exact"}]},
            "truthfulqa is not read by exact, since its answers are whole sentences",
        ),
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
    (written,) = (run.folder / "looks").iterdir()
    assert f"written: {written}" in out
    found = json.loads(written.read_text())
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
    (run.folder / "digests.json").unlink()
    table.drop(columns=["group", "seen_mass", "unparsed"]).to_parquet(run.folder / "classes.parquet")
    run.write_manifest({key: value for key, value in run.manifest().items() if key != "analysed"})
    code, _, err = semcal(monkeypatch, capsys, "report", run.folder)
    assert code == 2
    assert "an earlier version of semcal; run its study again with `semcal run`" in err.replace("\n", "")
    code, _, err = semcal(monkeypatch, capsys, "score", run.folder)
    assert code == 0, err
    assert run.calibration() == before
    assert run.classes().equals(table)


@pytest.mark.long
def test_a_run_scored_by_a_judge_counts_its_failures(tmp_path, study_dict):
    with judge_server(lambda prompt: "no json" if "First" in prompt else '{"answer": "red"}') as (url, prompts):
        b = {"kind": "judge", "url": url, "model": "wise", "cache": str(tmp_path / "judge.jsonl")}
        (run,) = run_dict(tmp_path, study_dict | {"semantics": [b]})
        assert prompts
    calibration = run.calibration()
    assert calibration["semantics"] == "judge(wise, prompts 1, complete)/3"
    assert calibration["judge_failed_to_shorten"] == 0
    read = run.classes()[lambda table: ~table["unparsed"]]
    assert read["gold"].all()  # all that was said comes to "red", as gold does
    assert read["question_id"].is_unique


def test_a_b_with_a_threshold_is_shown_at_three(monkeypatch, tmp_path, study_dict):
    asked = []

    class Coarse:  # to it red is nearly green
        name = "coarse@1"

        @classmethod
        def load(cls, *_, **__):
            return cls()

        def probability(self, pairs, _progress):
            asked.extend(pairs)
            last = [" ".join(text.split()[-1].strip(".").lower() for text in pair) for pair in pairs]
            return np.array([0.4 if words in ("red green", "green red") else 0.1 for words in last])

    monkeypatch.setattr("semcal.models.text_models.EntailmentModel", Coarse)
    b = {"kind": "entailment", "path": "coarse"}
    off = {"capture": {"positions": []}, "probes": {"enabled": False}}
    (run,) = run_dict(tmp_path, study_dict | off | {"semantics": [b]}, drawn=True)
    rows, headline = run.calibration()["thresholds"], run.calibration()
    assert [row["threshold"] for row in rows] == [0.333, 0.5, 0.667]
    assert rows[0]["classes_per_question"] <= rows[1]["classes_per_question"] == rows[2]["classes_per_question"]
    for name in ("confidence", "accuracy", "smece", "null_mean", "excess"):
        assert rows[1][name] == headline[name]
    assert len(asked) == len(set(asked))  # each pair once, at all three thresholds
    assert "Threshold of B" in (run.folder / "report.html").read_text()


def test_a_b_without_a_threshold_has_no_such_section(tmp_path, study_dict):
    off = {"capture": {"positions": []}, "probes": {"enabled": False}}
    (run,) = run_dict(tmp_path, study_dict | off)
    assert run.calibration()["thresholds"] is None
    assert run.calibration()["gold_in_several_classes"] == 0


def test_unparsed_answers_have_a_range_on_the_page_and_in_the_study(tmp_path, study_dict):
    off = {"capture": {"positions": []}, "probes": {"enabled": False}, "styles": ["cot"]}
    (run,) = run_dict(tmp_path, study_dict | off, drawn=True)
    headline = run.calibration()
    found = headline["unparsed"]  # a random model seldom writes an answering phrase
    assert found["share"] == pytest.approx(headline["unparsed_share"])
    assert found["share"] > 0.05
    assert found["least_smece"] <= headline["smece"] + 1e-12
    assert headline["smece"] <= found["most_smece"] + 1e-12  # unparsed as one wrong answer is one of the readings
    parsed = run.classes()[lambda table: (table["count"] > 0) & ~table["unparsed"]]
    assert found["left_out"] == 48 - parsed["question_id"].nunique()
    (said,) = (remark for remark in remarks(stored_cell(run), run) if "class unparsed" in remark)
    assert f"between {found['least_smece']:.3f} and {found['most_smece']:.3f}" in said
    assert "Above 5%, no hypothesis is decided" in said
    page, study = (folder / "report.html" for folder in (run.folder, run.folder.parent))
    assert re.search(r"<h2[^>]*>Unparsed answers", page.read_text())
    assert all("Over four readings of them" in path.read_text() for path in (page, study))


def test_without_unparsed_answers_there_is_no_range(monkeypatch, tmp_path, study_dict):
    off = {
        "capture": {"positions": []},
        "probes": {"enabled": False},
        "semantics": [{"kind": "custom", "path": "all:b"}],
    }
    (tmp_path / "all.py").write_text("def b(question, text, style):\n    return text.strip() or 'nothing'\n")
    monkeypatch.chdir(tmp_path)
    (run,) = run_dict(tmp_path, study_dict | off)
    assert run.calibration()["unparsed_share"] == 0
    assert run.calibration()["unparsed"] is None
    assert not any("unparsed" in remark for remark in remarks(stored_cell(run), run))


def test_aliases_of_all_questions_and_of_the_users_file_are_kept_with_the_run(tmp_path, study_dict):
    (tmp_path / "more.json").write_text('[["red", "crimson"], ["violet", "purple"]]')
    off = {"capture": {"positions": []}, "probes": {"enabled": False}}
    study_dict["datasets"][0] |= {"aliases": str(tmp_path / "more.json"), "n": 8}
    (run,) = run_dict(tmp_path, study_dict | off)
    known = run.aliases()
    assert known.closed == {}
    assert {"crimson": "red", "purple": "violet", "one": "one"}.items() <= known.pooled.items()
    (tmp_path / "more.json").unlink()
    score(stored_cell(run), run)  # needs neither file
    study_dict["datasets"][0]["aliases"] = str(tmp_path / "nowhere.json")
    with pytest.raises(UserError, match=r"nowhere\.json"):
        run_dict(tmp_path, study_dict | off)


def test_a_run_whose_b_knew_golds_own_aliases_is_taken_over_by_running_its_study_again(tmp_path, study_dict):
    off = {"capture": {"positions": []}, "probes": {"enabled": False}}
    (run,) = run_dict(tmp_path, study_dict | off)
    samples, before, known = run.samples(), run.calibration(), run.aliases()
    run.change_manifest(lambda manifest: {key: value for key, value in manifest.items() if key != "gold_key"})
    (run.folder / "digests.json").unlink()
    (run.folder / "aliases.json").write_text("{}")
    with pytest.raises(UserError, match="`semcal run` its study again, which takes them over and keeps the samples"):
        score(stored_cell(run), run)
    (again,) = run_dict(tmp_path, study_dict | off)
    assert again.aliases() == known
    assert again.samples().equals(samples)
    assert again.calibration() == before


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
    assert isinstance(collapse_of(config, Aliases()), Numeric)
