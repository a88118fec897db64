"""The command: exit code 2 and one line on stderr for errors that a user can fix; tables on stdout."""

from __future__ import annotations

import subprocess
import sys

import pytest

from experiments.cli import main
from tests.conftest import save_checkpoint
from tests.experiments.conftest import write_study


def semcal(monkeypatch, capsys, *arguments) -> tuple[int, str, str]:
    monkeypatch.setattr(sys, "argv", ["semcal", *map(str, arguments)])
    monkeypatch.setenv("COLUMNS", "200")
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
    code, out, err = semcal(monkeypatch, capsys, *arguments, "--set", "at_once=8", "--set", "longest=2")
    assert code == 0, err
    assert (tmp_path / "runs" / "llama" / "grpo" / "training.json").is_file()  # next to the stage before


def test_importing_the_command_is_quick_to_say_no():
    """A typing mistake is answered before torch is imported."""
    code = "import sys, experiments.cli; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
