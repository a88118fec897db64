"""The analysis replaces a result by a new one only, when it is complete; what is set for a look goes beside it."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import re
import shutil
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from experiments.config.study import load_study
from experiments.pipeline.progress import Reporter
from experiments.pipeline.run_study import analyse, prepare_study, run_study
from experiments.report.summary_table import headline
from semcal import Run, UserError
from tests.experiments.conftest import write_study
from tests.experiments.pipeline.test_cli import semcal

Bytes = dict[str, bytes]


def held(case: Any) -> Any:
    return pytest.param(case, marks=pytest.mark.held_before)


@pytest.fixture(scope="module")
def finished(checkpoint, tmp_path_factory) -> Path:
    """A finished study of one run, to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    colours = ["red", "blue", "green"]
    rows = [
        {"id": f"q{i}", "question": f"the {colours[i % 3]} {colours[i // 3 % 3]} ?", "answers": [colours[i % 2]]}
        for i in range(16)
    ]
    (folder / "colours.jsonl").write_text("\n".join(map(json.dumps, rows)))
    path = write_study(
        folder,
        {
            "name": "small",
            "models": [{"path": str(checkpoint), "name": "llama", "device": "cpu"}],
            "datasets": [{"kind": "jsonl", "path": str(folder / "colours.jsonl"), "n": 12}],
            "styles": ["concise"],
            "output": str(folder / "runs"),
            "sampling": {"m": 8, "max_new_tokens": 4},
            "prompting": {"shots": 2, "exemplars": 4},
            "calibration": {"bootstrap": 20, "null_draws": 20, "detail_draws": 10},
            "probes": {"permutations": 0, "folds": 3, "targets": ["classes"], "baselines": []},
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


def run_of(study: Path) -> Run:
    (folder,) = (study.parent / "runs" / "small").glob("*__*")
    return Run.open(folder)


def files(study: Path) -> Bytes:
    """Everything in the folder of the study but looks."""
    top = study.parent / "runs" / "small"
    found = [p for p in top.rglob("*") if p.is_file() and "looks" not in p.relative_to(top).parts]
    return {str(p.relative_to(top)): p.read_bytes() for p in found if p.name != "agreement.json"}


# What replaces the results of a run, and the exit code where only a look was asked for: the results must stay.
LOOKS = [
    held((0, "score", "--semantics", "exact,numeric")),
    (0, "score", "--semantics", "exact,numeric", "--set", "calibration.bootstrap=40"),
    (2, "score", "--semantics", "exact", "--set", "calibration.bootstrap=40"),
    (0, "score", "--set", "calibration.bootstrap=40"),
    held((2, "score", "--set", "semantics=[{kind: numeric}]")),
    (0, "probe", "--set", "probes.permutations=3"),
    (2, "probe", "--set", "probes.enabled=false"),
    (2, "report", "--set", "calibration.level=0.8"),
    held((2, "compare", "--set", "calibration.level=0.8")),
]


@pytest.mark.long
@pytest.mark.parametrize("command", LOOKS, ids=str)
def test_a_look_leaves_every_byte(monkeypatch, capsys, study, command):
    before = files(study)
    expected, name, *options = command
    code, _, err = semcal(monkeypatch, capsys, name, study, *options)
    assert code == expected, err
    assert "Traceback" not in err
    assert files(study) == before


def test_what_a_look_computes_is_complete_and_its_place_is_printed(monkeypatch, capsys, study):
    code, out, err = semcal(monkeypatch, capsys, "score", study, "--set", "calibration.bootstrap=40")
    assert code == 0, err
    (folder,) = (run_of(study).folder / "looks").iterdir()
    assert f"written: {folder}" in out
    look, own = Run.open(folder), run_of(study)
    assert look.calibration()["smece"] == own.calibration()["smece"]
    assert look.calibration()["smece_low"] != own.calibration()["smece_low"]
    assert look.config()["calibration"]["bootstrap"] == 40
    assert (folder / "report.html").is_file()
    pd.testing.assert_frame_equal(look.probes(), own.probes())
    code, out, _ = semcal(monkeypatch, capsys, "ls", study.parent / "runs")
    assert out.count("finished") == 1  # a look is no run of the study
    code, _, err = semcal(monkeypatch, capsys, "report", folder)
    assert code == 0, err


@pytest.mark.held_before
def test_the_same_settings_replace_in_place(monkeypatch, capsys, study):
    code, _, err = semcal(monkeypatch, capsys, "score", study, "--set", "calibration.bootstrap=20")
    assert code == 0, err
    assert not (run_of(study).folder / "looks").exists()


def test_the_verdict_of_some_runs_goes_beside_that_of_all(monkeypatch, capsys, study):
    monkeypatch.setattr("experiments.verdict.measured_run.NULL_DRAWS", 20)
    for rules in ("calibration_claims", "study_verdict"):
        monkeypatch.setattr(f"experiments.verdict.{rules}.MOST_UNPARSED", 1.0)
    code, _, err = semcal(monkeypatch, capsys, "verdict", study)
    assert code == 0, err
    before = files(study)
    assert "verdict.json" in before
    code, out, err = semcal(monkeypatch, capsys, "verdict", study, "--set", "calibration.delta=0.2")
    assert code == 0, err
    assert files(study) == before
    (beside,) = (study.parent / "runs" / "small" / "looks").iterdir()
    assert str(beside / "verdict.json") in out
    assert json.loads((beside / "verdict.json").read_text())["delta"] == 0.2


# ---- failures at every write ---------------------------------------------------------------------------------------


@contextlib.contextmanager
def failing_at(nth: int, fail: Callable[[], None]) -> Iterator[list[str]]:
    """Let the nth replacement or renaming of a file or folder fail; yields what was asked for."""
    asked: list[str] = []
    real = {"replace": os.replace, "rename": os.rename}

    def broken(name: str):
        def move(source, target, **how):
            asked.append(str(target))
            if len(asked) == nth:
                fail()
            return real[name](source, target, **how)

        return move

    with pytest.MonkeyPatch.context() as patch:
        for name in real:
            patch.setattr(os, name, broken(name))
        yield asked


def full() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def interrupted() -> None:
    raise KeyboardInterrupt


def again(study: Path, *overrides: str) -> Run:
    prepared = prepare_study(load_study(study, overrides))
    analyse(prepared.cells[0], prepared.runs[0])
    return prepared.runs[0]


def belong_together(run: Run, bootstraps: dict[int, dict]) -> int:
    """Whether calibration, classes and settings are those of one of these analyses, whole; returns which."""
    found = run.calibration()
    made_with = next(b for b, known in bootstraps.items() if found == known["calibration"])
    key = bootstraps[made_with]
    pd.testing.assert_frame_equal(run.classes(), key["classes"])
    assert run.config()["calibration"]["bootstrap"] == made_with
    assert run.manifest()["analysed"]["score"] == key["analysed"]
    return made_with


def state(run: Run) -> dict:
    return {
        "calibration": run.calibration(),
        "classes": run.classes(),
        "analysed": run.manifest()["analysed"]["score"],
    }


@pytest.mark.long
@pytest.mark.parametrize("fail", [full, interrupted], ids=["full disk", "Ctrl-C"])
def test_a_failure_at_any_write_leaves_one_whole_result(study, fail):
    run = run_of(study)
    old = shutil.copytree(run.folder, study.parent / "old")
    known = {20: state(run)}
    known[30] = state(again(study, "calibration.bootstrap=30"))
    assert known[20]["calibration"] != known[30]["calibration"]
    seen: list[int] = []
    while True:
        shutil.rmtree(run.folder)
        shutil.copytree(old, run.folder)
        with failing_at(len(seen) + 1, fail) as asked, contextlib.suppress(UserError, KeyboardInterrupt, OSError):
            again(study, "calibration.bootstrap=30")
        if len(asked) <= len(seen):  # nothing failed any more
            break
        seen.append(belong_together(run_of(study), known))
        assert re.search("</html>\\s*$", (run.folder / "report.html").read_text())
    assert seen == sorted(seen)
    assert set(seen) == {20, 30}
    assert not [p for p in run.folder.iterdir() if p.name.startswith(".")]


@pytest.mark.parametrize("nth", [held(6), held(7), 8, 9, 10, 11])
def test_a_full_disk_while_results_move_into_place_is_one_line(monkeypatch, capsys, study, nth):
    with failing_at(nth, full) as asked:
        code, _, err = semcal(monkeypatch, capsys, "score", study)
    assert len(asked) >= nth, "nothing failed"
    assert code == 2
    assert "disk full" in err.strip().splitlines()[-1]
    assert "Traceback" not in err


def test_a_full_disk_while_a_look_copies_its_run_is_one_line(monkeypatch, capsys, study):
    def no_link(*_, **__):
        raise OSError(errno.EXDEV, "the file system has no hard links")

    before = files(study)
    monkeypatch.setattr(os, "link", no_link)
    monkeypatch.setattr(Path, "write_bytes", lambda *_: full())
    code, _, err = semcal(monkeypatch, capsys, "score", study, "--set", "calibration.bootstrap=40")
    assert code == 2
    assert "disk full" in err.strip().splitlines()[-1]
    assert files(study) == before


def test_a_look_of_a_run_that_was_killed_while_results_moved_holds_the_new_ones(monkeypatch, capsys, study):
    run = run_of(study)
    old = (run.folder / "calibration.json").read_bytes()
    again(study, "calibration.bootstrap=30")
    new = (run.folder / "calibration.json").read_bytes()
    (run.folder / ".complete").mkdir()  # a complete set, of which one file is still to be moved
    (run.folder / ".complete" / "calibration.json").write_bytes(new)
    (run.folder / "calibration.json").write_bytes(old)
    options = ("--set", "calibration.bootstrap=30", "--set", "probes.permutations=3")
    code, _, err = semcal(monkeypatch, capsys, "probe", study, *options)
    assert code == 0, err
    (folder,) = (run.folder / "looks").iterdir()
    assert (folder / "calibration.json").read_bytes() == new


@pytest.mark.parametrize("nth", [4, held(8)])
def test_kill_9_leaves_one_whole_result(study, nth):
    known = {20: state(run_of(study))}
    known[30] = state(again(study, "calibration.bootstrap=30"))
    again(study)
    child = os.fork()
    if child == 0:
        try:
            with failing_at(nth, lambda: os.kill(os.getpid(), signal.SIGKILL)):
                again(study, "calibration.bootstrap=30")
        finally:
            os._exit(0)
    os.waitpid(child, 0)
    belong_together(run_of(study), known)
    again(study, "calibration.bootstrap=30")
    assert belong_together(run_of(study), known) == 30


def test_a_page_that_was_not_drawn_is_drawn_by_the_next_run(study):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.pipeline.run_study.write_report", lambda *_: interrupted())
        with pytest.raises(KeyboardInterrupt):
            again(study, "calibration.bootstrap=30")
    before = (run_of(study).folder / "report.html").read_bytes()
    again(study, "calibration.bootstrap=30")
    assert (run_of(study).folder / "report.html").read_bytes() != before


def test_the_configuration_is_that_of_the_results(study):
    def down(*_, **__):
        raise UserError("the judge is down")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.pipeline.run_study.score", down)
        with pytest.raises(UserError, match="judge is down"):
            again(study, "calibration.bootstrap=30")
    assert yaml.safe_load((run_of(study).folder / "config.yaml").read_text())["calibration"]["bootstrap"] == 20


# ---- what is not asked for is not shown ------------------------------------------------------------------------------


def test_probes_that_are_no_longer_asked_for_are_kept_and_not_shown(study, monkeypatch):
    """They stayed in tables, pages and comparisons, also where classes were by then those of another B."""
    run = run_of(study)
    kept = {p.name: p.read_bytes() for p in run.folder.glob("probe*.parquet")}
    layer = run.probes()["layer"].iloc[0]
    assert layer
    assert len(kept) >= 3

    run_study(prepare_study(load_study(study, ["probes.enabled=false"])), Reporter())
    assert {p.name: p.read_bytes() for p in run.folder.glob("probe*.parquet")} == kept
    shown = (run.probes(), run.probe_losses(), run.probe_confidence(), run.probe_predictions())
    assert all(table.empty for table in shown)
    assert run.table()["probe_class"].isna().all()
    assert layer not in (run.folder / "report.html").read_text()
    assert headline(run)["kl_gap"] is None

    monkeypatch.setattr("experiments.pipeline.run_study.probe", None)  # it need not be done again
    run_study(prepare_study(load_study(study)), Reporter())
    assert headline(run)["kl_gap"] is not None
    assert layer in (run.folder / "report.html").read_text()
