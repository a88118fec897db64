"""The command: exit code 2 and one line on stderr for errors that a user can fix; tables on stdout."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from experiments.cli import main
from experiments.train.preferences import Pair
from tests.conftest import save_checkpoint
from tests.experiments.conftest import questions_in, run_dict, study_of, write_study


def semcal(monkeypatch, capsys, *arguments, columns="200") -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["semcal", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", columns)
    with pytest.raises(SystemExit) as ended:
        main()
    out, err = capsys.readouterr()
    return int(ended.value.code or 0), out, err


def test_run_ls_score_probe(monkeypatch, capsys, tmp_path, study_dict):
    study = write_study(tmp_path, study_dict)
    code, out, err = semcal(monkeypatch, capsys, "run", study)
    assert code == 0, err
    assert "smECE" in out
    assert "colours · concise" in out
    runs = tmp_path / "runs"
    code, out, _ = semcal(monkeypatch, capsys, "ls", runs)
    assert code == 0
    assert "finished" in out
    (folder,) = (runs / "small").glob("*__*")
    for command in ("score", "probe"):
        for target in (folder, study):
            code, out, err = semcal(monkeypatch, capsys, command, target)
            assert code == 0, err
            assert "smECE" in out


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"sampling": {"temprature": 2}}, "did you mean 'temperature'"),
        ({"models": [{"path": "/nowhere/at/all"}]}, "no folder /nowhere/at/all"),
        ({"models": [{"path": "atlas:bse"}]}, "did you mean 'base'"),
        ({"datasets": [{"kind": "jsonl", "path": "/nowhere.jsonl"}]}, "no file /nowhere.jsonl"),
        ({"models": [{"path": "someone/some-model", "device": "cpu"}]}, "cannot load someone/some-model"),
        ({"models": [{"path": "someone/some-model", "revision": "v9", "device": "cpu"}]}, "at revision 'v9'"),
    ],
)
def test_one_line_and_exit_2(monkeypatch, capsys, tmp_path, study_dict, change, message):
    code, _, err = semcal(monkeypatch, capsys, "run", write_study(tmp_path, study_dict | change))
    assert code == 2
    line = err.strip().splitlines()[-1]
    assert line.startswith("semcal: ")
    assert message in line
    assert "Traceback" not in err


def test_a_table_that_is_not_there_is_called_a_missing_file(monkeypatch, capsys, tmp_path):
    (tmp_path / "questions.csv").write_text("question,answer\nA?,b\n")
    monkeypatch.chdir(tmp_path)
    code, _, err = semcal(monkeypatch, capsys, "run", "question.csv", "--model", "atlas:base")
    assert (code, err.strip()) == (2, "semcal: no file question.csv, did you mean 'questions.csv'?")


def test_folders_that_are_not_models(monkeypatch, capsys, tmp_path, study_dict):
    (tmp_path / "empty").mkdir()
    pickled = save_checkpoint(tmp_path / "pickled")
    (pickled / "model.safetensors").rename(pickled / "pytorch_model.bin")
    local = save_checkpoint(tmp_path / "local")
    study = study_dict | {"models": [{"path": str(local), "revision": "v2", "device": "cpu"}]}
    code, _, err = semcal(monkeypatch, capsys, "run", write_study(tmp_path, study))
    assert (code, "has no revision 'v2'" in err) == (2, True)
    for path, message in (
        (tmp_path / "empty", "is not a model folder: it has no config.json"),
        (pickled, "weights only as pickles (pytorch_model.bin)"),
    ):
        study = study_dict | {"models": [{"path": str(path), "device": "cpu"}]}
        code, _, err = semcal(monkeypatch, capsys, "run", write_study(tmp_path, study))
        assert code == 2
        assert message in err.replace("\n", "")


def test_score_and_ls_without_runs(monkeypatch, capsys, tmp_path, study_dict):
    code, _, err = semcal(monkeypatch, capsys, "ls", tmp_path / "none")
    assert (code, "no run at or below" in err) == (2, True)
    code, _, err = semcal(monkeypatch, capsys, "score", write_study(tmp_path, study_dict))
    assert (code, "has not been run yet" in err) == (2, True)
    code, _, err = semcal(monkeypatch, capsys, "train", "atlass")
    assert (code, "did you mean 'atlas'" in err) == (2, True)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--stage", "dpp"], "unknown stage 'dpp', did you mean 'dpo'"),
        (["--stage", "sft", "--set", "beta=1"], "stage sft has no setting 'beta'"),
        (["--stage", "grpo", "--set", "families=[fact]"], "families: unknown name 'fact', did you mean 'facts'"),
        (["--stage", "grpo", "--set", "reward=brie"], "unknown reward 'brie', did you mean 'brier'"),
        (["--stage", "grpo", "--set", "steps=many"], "steps is 'many'; expected a value such as 80"),
        (["--stage", "dpo", "--from", "/nowhere/at/all"], "no folder /nowhere/at/all"),
    ],
)
def test_impossible_trainings_are_refused(monkeypatch, capsys, tmp_path, arguments, message):
    code, _, err = semcal(monkeypatch, capsys, "train", "atlas", "--out", tmp_path / "out", *arguments)
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert message in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "--from is missing: expected a model, or the organism atlas"),
        (["--from", "x"], "--stage is missing: expected sft, dpo or grpo"),
        (["--from", "x", "--stage", "sft"], "--dataset is missing: expected a named dataset or a table"),
        (["--from", "x", "--stage", "base", "--dataset", "triviaqa"], "unknown stage 'base'; expected one of sft, dpo"),
        (["--from", "x", "--stage", "sft", "--dataset", "trivaqa"], "no dataset 'trivaqa', did you mean 'triviaqa'"),
        (["--from", "x", "--stage", "dpo", "--dataset", "popqa", "--set", "samples=one"], "samples is 'one'; expected"),
        (["--from", "x", "--stage", "dpo", "--dataset", "popqa", "--set", "rank"], "--set rank: expected key=value"),
        (["atlas", "--dataset", "popqa"], "atlas is trained on its own questions; leave --dataset out"),
    ],
)
def test_trainings_of_any_model_that_say_too_little(monkeypatch, capsys, tmp_path, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, _, err = semcal(monkeypatch, capsys, "train", *arguments)
    assert (code, len(err.strip().splitlines())) == (2, 1)
    assert message in err
    assert not list(tmp_path.iterdir())


def test_a_lineage_is_trained_and_said_where(monkeypatch, capsys, caplog, tmp_path, checkpoint, questions_file):
    few = ["--set", "steps=1", "--set", "batch_size=2", "--set", "checkpoints=0", "--set", "rank=1"]
    monkeypatch.chdir(tmp_path)
    arguments = ["train", "--from", checkpoint, "--stage", "sft", "--dataset", questions_file, *few]
    code, out, err = semcal(monkeypatch, capsys, *arguments)
    assert code == 0, err
    assert "1 of 1 · loss" in out  # stdout is no terminal here
    assert "has no chat template; the default one is used" in caplog.text
    assert "name runs/llama/sft/trained.jsonl as exclude" in out
    arguments = ["train", "--from", "runs/llama/sft", "--stage", "grpo", "--dataset", questions_file, *few]
    arguments += ["--set", "at_once=8", "--set", "longest=2"]
    code, out, err = semcal(monkeypatch, capsys, *arguments)  # a tiny model is never right
    assert code == 2
    assert "only 0 of" in err.splitlines()[-1]
    assert "raise questions (1000)" in err.splitlines()[-1]
    mixed = lambda _, __, turns, *___: [Pair(turn, "red", "blue") for turn in turns]  # noqa: E731
    monkeypatch.setattr("experiments.train.train_from.own_pairs", mixed)
    code, out, err = semcal(monkeypatch, capsys, *arguments)
    assert code == 0, err
    assert (tmp_path / "runs" / "llama" / "grpo" / "training.json").is_file()  # next to the stage before


# ---- what all commands share -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def finished(checkpoint, tmp_path_factory) -> Path:
    """A finished study of two styles, to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    study = study_of(checkpoint, questions_in(folder), folder) | {"styles": ["concise", "sentence"]}
    run_dict(folder, study)
    return folder


@pytest.fixture
def study(finished, tmp_path) -> Path:
    shutil.copytree(finished / "runs", tmp_path / "runs")
    return write_study(
        tmp_path, yaml.safe_load((finished / "study.yaml").read_text()) | {"output": str(tmp_path / "runs")}
    )


@pytest.mark.parametrize(
    ("arguments", "keys"),
    [
        (["run", "study.yaml"], {"studies"}),
        (["run", "study.yaml", "--dry-run"], {"study", "cells", "totals", "notes"}),
        (["prompts", "study.yaml", "-n", "1"], {"prompts"}),
        (["score", "runs/small"], {"runs"}),
        (["score", "runs/small", "--semantics", "exact,numeric"], {"runs", "written"}),
        (["gate", "runs/small"], {"runs", "written"}),
        (["compare", "runs/small/*"], {"comparisons"}),
        (["transfer", "runs/small", "--out", "here"], {"transfer", "written"}),
        (["verdict", "study.yaml"], {"verdicts", "written"}),
        (["report", "runs/small"], {"written"}),
        (["ls"], {"runs"}),
        (["init", "mine"], {"written"}),
        (["init", "--schema"], None),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_json_is_one_document_on_stdout_and_nothing_else(monkeypatch, capsys, study, arguments, keys):
    monkeypatch.chdir(study.parent)
    code, out, err = semcal(monkeypatch, capsys, *arguments, "--json")
    if code == 2:  # the model of these tests knows too little for a guarantee or a verdict
        assert (out, len(err.strip().splitlines()[-1:])) == ("", 1)
        pytest.skip(err)
    assert code == 0, err
    document = json.loads(out)
    assert keys is None or document.keys() - {"left_out"} == keys


def test_the_figures_of_json_are_numbers(monkeypatch, capsys, study):
    code, out, _ = semcal(monkeypatch, capsys, "ls", study.parent / "runs", "--json")
    assert code == 0
    runs = json.loads(out)["runs"]
    assert [run["state"] for run in runs] == ["finished", "finished"]
    assert all(isinstance(run["smece"], float) and run["n"] == 48 for run in runs)
    code, out, _ = semcal(monkeypatch, capsys, "compare", study.parent / "runs", "--json")
    (pair,) = json.loads(out)["comparisons"]
    assert pair["differ_in"] == ["style"]
    assert 0 <= pair["figures"]["smece"]["holm"] <= 1


def test_quiet_shows_results_alone_and_contradicts_verbose(monkeypatch, capsys, study):
    code, out, err = semcal(monkeypatch, capsys, "score", study, "--quiet")
    assert (code, err) == (0, "")
    assert "smECE" in out
    assert "bootstrap intervals" not in out
    code, _, err = semcal(monkeypatch, capsys, "ls", study.parent / "runs", "-q", "-v")
    assert (code, "--quiet and --verbose contradict each other" in err) == (2, True)


def test_verbose_shows_where_an_error_comes_from(monkeypatch, capsys, study):
    next((study.parent / "runs" / "small").glob("*__*")).joinpath("config.yaml").write_text("- no mapping")
    code, _, err = semcal(monkeypatch, capsys, "score", study.parent / "runs" / "small", "--verbose", "--set", "seed=1")
    assert code == 2
    assert "Traceback" in err
    assert err.strip().splitlines()[-1].startswith("semcal: --set needs a study file")


def test_without_a_terminal_there_is_a_line_for_each_stage_of_each_cell(monkeypatch, capsys, study):
    code, _, err = semcal(monkeypatch, capsys, "score", study)
    assert code == 0, err
    lines = [line for line in err.splitlines() if line.startswith("cell ")]
    for cell in ("cell 1/2 · llama · colours · concise", "cell 2/2 · llama · colours · sentence"):
        own = [line.removeprefix(cell) for line in lines if line.startswith(cell)]
        assert own[0] == ": scoring"
        assert own[-1].startswith(": finished after 0:")
        assert len(own) == len({line.partition(",")[0] for line in own})


# ---- several runs, and globs -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", ["compare", "score", "ls", "gate", "report"])
def test_a_glob_skips_what_is_no_run_and_says_so(monkeypatch, capsys, study, command):
    runs = study.parent / "runs" / "small"
    (runs / "report.html").touch()
    (runs / "figures").mkdir(exist_ok=True)
    code, out, err = semcal(monkeypatch, capsys, command, f"{runs}/*")  # as where a shell expands nothing
    if command == "gate" and code:
        assert "no run" not in err
        return
    assert code == 0, err
    (line,) = [line for line in out.splitlines() if line.startswith("left out: no run in")]
    assert str(runs / "report.html") in line
    assert str(runs / "figures") in line


@pytest.mark.long
def test_several_runs_are_intervened_on_and_those_that_allow_it_not_are_left_out(monkeypatch, capsys, study):
    runs = study.parent / "runs" / "small"
    bad, good = sorted(runs.glob("*__*"))
    shutil.rmtree(bad / "activations")
    (runs / "notes.txt").touch()
    few = ["--rank", "1", "--random", "1", "-n", "8"]
    code, out, err = semcal(monkeypatch, capsys, "intervene", f"{runs}/*", *few)
    assert code == 0, err
    assert f"written: {good / 'report.html'}" in out
    left_out = [line for line in out.splitlines() if line.startswith("left out:")]
    assert any(str(bad) in line for line in left_out)
    assert any("notes.txt" in line for line in left_out)
    code, _, err = semcal(monkeypatch, capsys, "intervene", bad, *few)
    assert (code, str(bad) in err) == (2, True)


def test_a_hint_names_the_users_own_paths(monkeypatch, capsys, study):
    own = study.rename(study.parent / "my study.yaml")
    code, _, err = semcal(monkeypatch, capsys, "run", own)
    assert code == 0, err
    hints = [shlex.split(line.removeprefix("next: ")) for line in err.splitlines() if line.startswith("next: ")]
    assert ["semcal", "compare", str(study.parent / "runs" / "small")] in hints
    for hint in hints:
        assert semcal(monkeypatch, capsys, *hint[1:])[0] == 0


# ---- terminals of all kinds ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "environment", [{"COLUMNS": "40"}, {"COLUMNS": "80"}, {"COLUMNS": "40", "NO_COLOR": "1"}, {"TERM": "dumb"}], ids=str
)
@pytest.mark.parametrize("command", ["ls", "compare", "run"])
def test_tables_fit_and_no_name_vanishes(monkeypatch, capsys, study, command, environment):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    code, out, err = semcal(monkeypatch, capsys, command, study, columns=environment.get("COLUMNS", "80"))
    assert code == 0, err
    table = [line for line in out.splitlines() if line.startswith(" ")]
    assert table
    assert max(map(len, table)) <= int(environment.get("COLUMNS", 80))
    whole = "".join(out.split())
    for style in ("concise", "sentence"):
        assert style in whole
    assert "\x1b" not in out


@pytest.mark.parametrize("arguments", [["ls"], ["ls", "--json"], ["--help"]])
def test_a_reader_that_has_gone_is_no_traceback(study, arguments):
    named = [] if arguments == ["--help"] else [str(study.parent / "runs")]
    command = [sys.executable, "-m", "experiments.cli", *arguments, *named]
    process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.close()
    err = process.stderr.read()
    process.wait()
    assert "Traceback" not in err
    assert "BrokenPipe" not in err


def test_a_full_disk_behind_stdout_is_one_line(study):
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "experiments.cli", "ls", str(study.parent / "runs")]
        found = subprocess.run(command, stdout=full, stderr=subprocess.PIPE, text=True, check=False)
    assert (found.returncode, found.stderr.count("\n")) == (2, 1)
    assert "stdout cannot be written" in found.stderr


# ---- init ------------------------------------------------------------------------------------------------------------


def test_init_writes_a_study_that_can_be_looked_at_as_it_is_and_overwrites_nothing(monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    code, out, err = semcal(monkeypatch, capsys, "init", "mine")
    assert code == 0, err
    assert out.splitlines() == ["written: mine.yaml", "written: study.schema.json"]
    for line in [line for line in err.splitlines() if line.startswith("next: ") and "--dry-run" in line]:
        code, out, err = semcal(monkeypatch, capsys, *shlex.split(line)[2:])
        assert code == 0, err
        assert "atlas-facts" in out
    (tmp_path / "mine.yaml").write_text("my own")
    code, _, err = semcal(monkeypatch, capsys, "init", "mine")
    assert (code, len(err.splitlines())) == (2, 1)
    assert "mine.yaml is there already" in err
    assert (tmp_path / "mine.yaml").read_text() == "my own"
