"""Commands on what is not there, not finished or not readable: one line, exit code 2, and nothing lost or left behind."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import yaml

from experiments.config.study import load_study
from experiments.pipeline.progress import Reporter
from experiments.pipeline.run_study import prepare_study, run_study
from tests.experiments.conftest import write_study
from tests.experiments.pipeline.test_cli import semcal

held_before = pytest.mark.held_before


@pytest.fixture(scope="module")
def finished(checkpoint, tmp_path_factory) -> Path:
    """A finished study of two runs, to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    rows = [{"id": f"q{i}", "question": f"the red {w} ?", "answers": ["red"]} for i, w in enumerate("abcdefgh")]
    (folder / "colours.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = write_study(
        folder,
        {
            "name": "small",
            "models": [{"path": str(checkpoint), "name": "llama", "device": "cpu"}],
            "datasets": [{"kind": "jsonl", "path": str(folder / "colours.jsonl")}],
            "styles": ["concise", "sentence"],
            "output": str(folder / "runs"),
            "sampling": {"m": 4, "max_new_tokens": 2},
            "prompting": {"shots": 0, "exemplars": 0},
            "calibration": {"bootstrap": 20, "null_draws": 20, "detail_draws": 10},
            "probes": {"enabled": False},
            "tracking": {"wandb": "disabled"},
        },
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.report.pages.run_figures", lambda *_: {})
        run_study(prepare_study(load_study(path)), Reporter())
    return path


@pytest.fixture
def study(finished, tmp_path) -> Path:
    shutil.copytree(finished.parent / "runs", tmp_path / "runs")
    return write_study(tmp_path, yaml.safe_load(finished.read_text()) | {"output": str(tmp_path / "runs")})


def unfinished(run: Path) -> None:
    next((run / "samples").iterdir()).unlink()


def broken(name: str, text: bytes):
    def damage(run: Path) -> None:
        (run / name).write_bytes(text)

    return damage


DAMAGE = {
    "unfinished": unfinished,
    "an empty config": broken("config.yaml", b""),
    "half a config": broken("config.yaml", b"model: {path: "),
    "a list as config": broken("config.yaml", b"- model"),
    "half a manifest": broken("manifest.json", b'{"shards": ['),
}


@pytest.mark.parametrize("where", ["study", "folder"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_score_leaves_out_a_damaged_run_and_says_why(monkeypatch, capsys, study, damage, where):
    bad, good = sorted((study.parent / "runs" / "small").glob("*__*"))
    DAMAGE[damage](bad)
    before = (good / "calibration.json").stat().st_mtime_ns
    code, out, err = semcal(monkeypatch, capsys, "score", study if where == "study" else study.parent / "runs")
    assert code == 0, err
    assert (good / "calibration.json").stat().st_mtime_ns > before
    (line,) = [line for line in out.splitlines() if line.startswith("left out:")]
    assert str(bad) in line


@pytest.mark.parametrize("name", ["samples", "questions.parquet", "aliases.json"])
def test_a_file_that_cannot_be_read_is_one_line_that_says_which(monkeypatch, capsys, study, name):
    bad, _ = sorted((study.parent / "runs" / "small").glob("*__*"))
    file = next((bad / "samples").iterdir()) if name == "samples" else bad / name
    file.write_bytes(file.read_bytes()[:40])
    code, _, err = semcal(monkeypatch, capsys, "score", bad)
    assert code == 2, err
    if name == "samples":  # it is sampled again
        assert f"{bad} is not fully sampled" in err
    else:
        assert f"{file} was changed after semcal wrote it" in err
        for path in (file, bad / "manifest.json"):
            path.unlink()  # as it says
    code, _, err = semcal(monkeypatch, capsys, "run", study)
    assert code == 0, err
    assert semcal(monkeypatch, capsys, "score", bad)[0] == 0


def test_ls_lists_what_it_can_read(monkeypatch, capsys, study):
    bad, _ = sorted((study.parent / "runs" / "small").glob("*__*"))
    (bad / "calibration.json").write_text("{")
    code, out, _ = semcal(monkeypatch, capsys, "ls", study.parent / "runs")
    assert code == 0
    assert "unreadable" in out
    assert "finished" in out
    assert f"left out: {bad / 'calibration.json'} was changed after" in out


@held_before
def test_a_damaged_run_that_was_named_is_refused(monkeypatch, capsys, study):
    bad, _ = sorted((study.parent / "runs" / "small").glob("*__*"))
    unfinished(bad)
    code, _, err = semcal(monkeypatch, capsys, "score", bad)
    assert code == 2
    assert "is not fully sampled" in err


@pytest.mark.parametrize("revision", [None, "v9"])
def test_a_model_that_is_nowhere_leaves_no_folder_and_does_not_block_others(monkeypatch, capsys, study, revision):
    wrong = yaml.safe_load(study.read_text())
    wrong["name"], wrong["models"] = "wrong", [{"path": "someone/some-model", "name": "m", "revision": revision}]
    path = write_study(study.parent, wrong)
    code, _, err = semcal(monkeypatch, capsys, "run", path)
    assert code == 2
    assert not (study.parent / "runs" / "wrong").exists()
    (line,) = [line for line in err.splitlines() if line.startswith("semcal:")]
    assert "cannot load someone/some-model" in line
    assert "check its name and the network" in line
    assert semcal(monkeypatch, capsys, "score", study.parent / "runs")[0] == 0


@pytest.mark.parametrize("page", ["results", "gallery"])
def test_pages_of_no_run_are_refused(monkeypatch, capsys, tmp_path, page):
    import experiments.report.gallery as gallery
    import experiments.report.results as results

    called = {"results": results, "gallery": gallery}[page]
    names = ["nosuch"] if page == "results" else []
    monkeypatch.setattr(sys, "argv", [page, *names, "--runs", str(tmp_path), "--into", str(tmp_path)])
    with pytest.raises(SystemExit) as ended:
        called.main()
    out, err = capsys.readouterr()
    assert (ended.value.code, out, err.count("\n")) == (2, "", 1)
    assert "semcal run" in err
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("said", [True, pytest.param(False, marks=held_before)])
def test_exemplars_without_effect_are_said(study, caplog, said):
    changed = yaml.safe_load(study.read_text())
    changed["name"], changed["prompting"] = "pool", {"shots": 2} | ({"exemplars": 3} if said else {})
    worked = {"answers": ["red"], "worked": {"cot": "Red is red. The answer is red."}}
    own = study.parent / "own.jsonl"
    own.write_text("\n".join(json.dumps({"id": f"q{i}", "question": f"the {i} ?", **worked}) for i in range(40)))
    changed["datasets"] = [{"kind": "triviaqa", "path": str(trivia(study.parent))}, {"kind": "jsonl", "path": str(own)}]
    changed["semantics"] = [{"kind": "exact"}]
    prepare_study(load_study(write_study(study.parent, changed)))
    heard = [message for message in caplog.messages if "prompting.exemplars has no effect" in message]
    assert len(heard) == said
    assert all(message.startswith("triviaqa") for message in heard)


def trivia(folder: Path) -> Path:
    """A few rows as TriviaQA has them, which come without solutions."""
    rows = [
        {"question_id": f"t{i}", "question": f"Who wrote {w}?", "answer": {"value": w, "aliases": [w]}}
        for i, w in enumerate("abcdefgh")
    ]
    path = folder / "trivia.jsonl"
    path.write_text("\n".join(map(json.dumps, rows)))
    return path
