"""What `semcal ls` says of a run, read without pandas, is what everything else reads."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
from pathlib import Path

import pytest

from experiments.report.summary_table import headline
from experiments.terminal.run_list import KEPT, at_work, listed, run_folders
from semcal import Run
from semcal.runs.claims import CLAIMS, claimed, holder, part
from semcal.runs.digests import DIGESTS
from semcal.runs.failure import clear_failure, write_failure
from tests.experiments.conftest import questions_in, run_dict, study_of

EVIDENCE = Path(__file__).parents[3] / "docs" / "results" / "evidence"


@pytest.fixture(scope="module")
def finished(checkpoint, tmp_path_factory) -> Path:
    """A finished run, to be copied."""
    folder = tmp_path_factory.mktemp("finished")
    return run_dict(folder, study_of(checkpoint, questions_in(folder), folder))[0].folder


@pytest.fixture
def run(finished, tmp_path) -> Path:
    return Path(shutil.copytree(finished, tmp_path / "runs" / "small" / finished.name))


def edit(run: Path, **changes) -> None:
    """Change the manifest of a run; None removes a key."""
    manifest = json.loads((run / "manifest.json").read_text()) | changes
    (run / "manifest.json").write_text(json.dumps({k: v for k, v in manifest.items() if v is not None}))
    (run / DIGESTS).unlink(missing_ok=True)


@pytest.mark.parametrize("told_by", ["the manifest", "the table of probes"])
def test_figures_are_those_of_the_summary(run, told_by):
    if told_by == "the table of probes":
        edit(run, kl_gap=None)
    found, expected = listed(run).figures, headline(Run(run))
    assert expected["kl_gap"] is not None
    for name in ("n", "smece", "smece_low", "smece_high", "excess", "kl_gap", "kl_gap_low", "kl_gap_high"):
        assert found[name] == pytest.approx(expected[name]), name


def test_probes_that_the_configuration_hides_are_not_shown(run):
    config = Run(run).config()
    config["probes"]["enabled"] = False
    Run(run).write_config(config)
    edit(run, kl_gap=None)
    assert headline(Run(run))["kl_gap"] is None
    assert listed(run).figures["kl_gap"] is None


def lock(run: Path, process: int) -> None:
    (run / ".lock").write_text(f"filelock/2\npid={process}\nhost={socket.gethostname()}\nmode=lease\n")


def test_a_finished_run(run):
    assert listed(run).state == "finished"
    lock(run, 2**22 + 1)  # of a process that was killed
    assert listed(run).state == "finished"


def test_a_run_that_lacks_samples_is_sampling_or_was_stopped(run):
    shard = sorted((run / "samples").glob("*.parquet"))[0]
    shard.unlink()  # 8 of 48 questions
    assert listed(run).state == "stopped at 83%"
    lock(run, os.getpid())
    assert listed(run).state == "sampling 83%"


def test_what_is_left_to_be_done_is_told(run):
    (run / "report.html").unlink()
    assert listed(run).state == "probed"
    (run / "probes.parquet").unlink()
    edit(run, analysed={}, kl_gap=None)
    assert listed(run).state == "scored"
    (run / "calibration.json").unlink()
    assert listed(run).state == "sampled"
    lock(run, os.getpid())
    assert listed(run).state == "scoring"
    (run / ".lock").unlink()
    (run / "manifest.json").unlink()
    assert listed(run).state == "started"
    assert listed(run.parent / "not-there").state == "not run"


def test_a_failed_check_is_told(run):
    edit(run, checks=[{"name": "a", "outcome": "failed", "figure": 1, "limit": 0, "why": ""}])
    assert listed(run).state == "finished, CHECK FAILED"


def test_who_is_at_work_who_died_and_what_failed_is_told(run, tmp_path):
    shards = sorted(path.stem for path in (run / "samples").glob("*.parquet"))
    write_failure(run, "out of\n  memory")
    found = listed(run)
    assert re.search(r"^process \d+ on .*, \d{4}-\d\d-\d\d \d\d:\d\d: out of memory$", found.failed)
    assert list(at_work([found])) == [f"{run} failed: {found.failed}"]
    with claimed(run, part(shards[1])), claimed(run):
        here = holder(run)
        assert list(at_work([listed(run)])) == [f"{here}: {run} analysis, {run} shard 00001"]
    clear_failure(run)
    (run / CLAIMS).mkdir(exist_ok=True)
    (run / part(shards[2])).write_text(f"filelock/2\npid={2**22 + 1}\nhost={socket.gethostname()}\n")
    (log := tmp_path / "job.log").write_text("Killed\n")
    (run.parent / "workers").mkdir()
    (run.parent / "workers" / f"process {2**22 + 1} on {socket.gethostname()}").write_text(str(log))
    (line,) = at_work([listed(run)])
    assert f"process {2**22 + 1} on {socket.gethostname()} died over shard 00002" in line
    assert line.endswith(f"its log: {log}: Killed")


def test_a_changed_file_is_told(run):
    (run / "calibration.json").write_text("{}")
    assert listed(run).state == "unreadable"
    assert "was changed after semcal wrote it" in listed(run).problem


def test_runs_that_were_kept_without_texts_are_told_as_such():
    folders = run_folders(EVIDENCE)
    assert folders
    assert {listed(folder).state for folder in folders} == {KEPT}
    for folder in folders:
        assert listed(folder).figures["smece"] == Run(folder).calibration()["smece"]


def test_looks_and_hidden_folders_are_no_runs(run):
    for inside in ("looks/1234", ".new", "wandb"):
        shutil.copytree(run, run / inside, ignore=shutil.ignore_patterns("looks", ".new", "wandb"))
    assert run_folders(run.parent.parent) == [run]
