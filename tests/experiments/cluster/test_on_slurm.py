"""Studies on a real Slurm cluster: jobs that are killed and that run into their time limit lose nothing."""

from __future__ import annotations

import io
import os
import re
import shlex
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from rich.console import Console

from experiments.cli import main
from experiments.cluster import run_on_slurm as submission
from experiments.cluster.following import follow
from experiments.cluster.run_on_slurm import run_on_slurm
from experiments.cluster.slurm import FOLDER, submitted
from experiments.cluster.study_state import log_of, study_state
from experiments.config.study import load_study
from experiments.pipeline.run_study import Prepared, prepare_study
from semcal import Run, UserError
from semcal.runs.claims import claimed, part
from tests.experiments.conftest import questions_in, run_dict, study_of, write_study

pytestmark = [pytest.mark.slurm, pytest.mark.usefixtures("cluster")]
PATIENCE_S = 300.0
ROOT = Path(__file__).parents[3]


def settings(checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Two cells in 12 shards each, which take long enough to be killed in one."""
    found = study_of(checkpoint, questions_in(folder), folder)
    found["sampling"] |= {"shard_size": 4, "m": 50}
    found["probes"]["enabled"] = False
    return found | {"styles": ["concise", "sentence"]}


@pytest.fixture(scope="module")
def alone(checkpoint, tmp_path_factory) -> list[Run]:
    """What one process makes of them."""
    folder = tmp_path_factory.mktemp("alone")
    return list(run_dict(folder, settings(checkpoint, folder)))


@pytest.fixture
def study(checkpoint, tmp_path, monkeypatch) -> Path:
    """A file that asks for the same."""
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return write_study(tmp_path, settings(checkpoint, tmp_path))


def wait_for(what: Callable[[], object], words: str):
    until = time.monotonic() + PATIENCE_S
    while not (found := what()):
        assert time.monotonic() < until, f"no {words} after {PATIENCE_S:.0f} s"
        time.sleep(0.02)
    return found


def assert_as_alone(prepared: Prepared, alone: list[Run]) -> None:
    for ours, theirs in zip(prepared.runs, alone, strict=True):
        pd.testing.assert_frame_equal(ours.samples(), theirs.samples())
        pd.testing.assert_frame_equal(ours.table(), theirs.table())
        assert ours.calibration() == theirs.calibration()
        assert ours.unchanged().changed == ()


@contextmanager
def all_claimed(run: Run, alone: Run) -> Iterator[None]:
    """Keep the jobs from all shards of a run, whose keys are those of the other."""
    with ExitStack() as held:
        for key in alone.shard_keys():
            assert held.enter_context(claimed(run.folder, part(key)))
        yield


def workers(prepared: Prepared) -> list[tuple[int, str]]:
    """Process and log of each job that is at work on a shard."""
    held = [h for cell in study_state([run.folder for run in prepared.runs]).cells for h in cell.held if h.shard]
    found = {h.by: log_of(prepared.study.folder, h.by) for h in held}
    return [(int(by.split()[1]), log.name.removesuffix("_0_log.out")) for by, log in found.items() if log]


def test_a_job_at_its_time_limit_and_a_killed_one_lose_nothing(cluster, study, alone):
    prepared, text = prepare_study(load_study(study)), io.StringIO()
    folder, raised = prepared.study.folder, list[BaseException]()

    def follow() -> None:
        console = Console(file=text, width=400)
        try:
            run_on_slurm(prepared, "partition=cpu,cpus=1,time=1", 2, console)
        except BaseException as error:
            raised.append(error)

    following = threading.Thread(target=follow)
    with all_claimed(prepared.runs[1], alone[1]):  # until then, no job can end
        following.start()
        wait_for(lambda: "was queued again" in text.getvalue(), "requeue at the time limit")
        array = wait_for(lambda: submitted(folder), "array")
        cluster.ask("scontrol", "update", f"JobId={array.array}", "TimeLimit=10")
    process, killed = wait_for(lambda: workers(prepared), "job at work")[0]
    os.kill(process, signal.SIGKILL)
    following.join(PATIENCE_S)
    said = text.getvalue()
    assert not following.is_alive()
    assert not raised, (raised, said)
    assert_as_alone(prepared, alone)
    assert f"job {killed} failed" in said
    assert str(array.log(killed)) in said
    assert re.search(r"\d of 2 cells finished · .* of 96 questions .* jobs: ", said), said
    assert submitted(folder) is None
    assert not list(folder.rglob("*.claim"))


def test_what_slurm_refuses_is_one_line(study):
    prepared, console = prepare_study(load_study(study)), Console(file=io.StringIO())
    for options, said in (
        ("partition=nowhere,time=2", "invalid partition specified: nowhere"),
        ("gpus=1,time=2", r"Invalid generic resource \(gres\)"),
    ):
        with pytest.raises(UserError, match=f"Slurm refused: .*{said}") as refused:
            run_on_slurm(prepared, options, 2, console)
        assert "\n" not in str(refused.value)
    assert submitted(prepared.study.folder) is None


def test_jobs_that_can_never_start_are_one_line(study):
    prepared, console = prepare_study(load_study(study)), Console(file=(text := io.StringIO()), width=400)
    with pytest.raises(UserError, match=r"Slurm will never start 2 of the 2 jobs of array \d+ \(PartitionTimeLimit\)"):
        run_on_slurm(prepared, "partition=short,time=100:00:00", 2, console)
    assert "jobs: 2 pending (Partition" in text.getvalue()
    wait_for(lambda: submitted(prepared.study.folder) is None, "end of the jobs")


def test_jobs_run_the_study_as_it_was_submitted(study, alone, monkeypatch, capsys):
    prepared = prepare_study(load_study(study, ["styles=[concise]"]))
    command = ["run", str(study), "--set", "styles=[concise]"]

    def after_an_edit(array: Any, *more: Any) -> None:
        other = prepare_study(load_study(study, ["styles=[concise]", "calibration.bootstrap=30"]))
        with pytest.raises(UserError, match=r"as it was submitted \(calibration.bootstrap was 20, is now 30\)"):
            run_on_slurm(other, "partition=cpu,cpus=1,time=2", 1, Console(file=io.StringIO()))
        study.write_text(study.read_text().replace("name: small", "name: other"))
        follow(array, *more)

    monkeypatch.setattr(submission, "follow", after_an_edit)
    monkeypatch.setattr("sys.argv", ["semcal", *command, "--slurm", "partition=cpu,cpus=1,time=2", "--jobs", "1"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert not ended.value.code
    out = capsys.readouterr().out
    assert "smECE" in out
    assert f"runs, figures and report.html: {prepared.study.folder}" in "".join(out.splitlines())
    assert shlex.split((prepared.study.folder / "command.txt").read_text()) == ["semcal", *command]
    assert "name: other" in study.read_text()
    assert not (prepared.study.folder.parent / "other").exists()
    assert_as_alone(prepared, alone[:1])


def test_a_node_that_does_not_see_the_folder_says_so(cluster, study):
    prepared = prepare_study(load_study(study, [f"output={cluster.apart}"]))
    console = Console(file=(text := io.StringIO()), width=400)
    with pytest.raises(
        UserError, match=r"every job has ended: job \d+ failed .* on node2: node2 does not see .*/small"
    ):
        run_on_slurm(prepared, "nodelist=node2,time=2", 1, console)
    assert "choose a folder that all machines share" in text.getvalue()


def script(docs: Path) -> str:
    """The sbatch script of a page."""
    found = re.search(r"```bash\n(#!.*?)```", docs.read_text(encoding="utf-8"), re.DOTALL)
    assert found
    return found[1]


def test_the_script_of_the_docs_goes_on_after_a_warning(cluster, study, alone, tmp_path, monkeypatch):
    prepared = prepare_study(load_study(study))
    (tmp_path / "bin").mkdir()
    semcal = tmp_path / "bin" / "semcal"
    semcal.write_text(f'#!/bin/sh\nexec {sys.executable} -m experiments.cli "$@"\n')
    semcal.chmod(0o755)
    monkeypatch.setenv("PATH", f"{semcal.parent}:{os.environ['PATH']}")
    monkeypatch.chdir(tmp_path)
    text = "".join(line for line in script(ROOT / "docs/cluster.md").splitlines(True) if "gpu" not in line)
    (tmp_path / "semcal.sbatch").write_text(text)
    with all_claimed(prepared.runs[1], alone[1]):
        said = cluster.ask("sbatch", "--array=0", "semcal.sbatch", str(study))
        array = said.split()[-1]
        wait_for(lambda: prepared.runs[0].shard_keys() and prepared.runs[0].questions_saved(), "saved shard")
        cluster.ask("scancel", "--signal=TERM", f"{array}_0")  # as Slurm does before the time limit

        def restarts() -> bool:
            found = cluster.ask(
                "squeue", "--noheader", "--array", "--states=all", f"--jobs={array}", "-O", "RestartCnt"
            )
            return found.strip() == "1"

        wait_for(restarts, "restart")

    def ended() -> bool:
        found = cluster.ask("squeue", "--noheader", "--array", "--states=all", f"--jobs={array}", "-O", "State")
        return found.strip() in ("COMPLETED", "FAILED")

    wait_for(ended, "end")
    assert_as_alone(prepared, alone)
    assert FOLDER not in os.listdir(prepared.study.folder)
