"""What a person sees of a study that jobs work on."""

from __future__ import annotations

import io
from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.console import Console

from experiments.cluster import following
from experiments.cluster.following import Pace, follow, progress, screen
from experiments.cluster.shared_folder import NOT_SHARED
from experiments.cluster.slurm import Job, Submitted
from experiments.cluster.study_state import CellState, Held, StudyState
from experiments.pipeline.signals import Stopped
from semcal import UserError

HELD = Held("00003-abc", "process 5 on node7", 3.0, False, None)


def cell(name: str, answered: int, *held: Held, analysed: bool = False) -> CellState:
    return CellState(Path(name), 100, answered, 10, answered // 10, analysed, held)


HALF = StudyState((cell("a", 100, analysed=True), cell("b", 40, HELD)))
ALL = StudyState((cell("a", 100, analysed=True), cell("b", 100, analysed=True)))


@pytest.fixture
def array(tmp_path, monkeypatch) -> Submitted:
    monkeypatch.setattr(following, "LOOK_S", 0.0)
    monkeypatch.setattr(following, "_SEEN_WITHIN_S", 0.0)
    found = Submitted(tmp_path, ("7_0", "7_1"))
    found.log("7_0").parent.mkdir()
    return found


def shown(array: Submitted, looks: list[tuple[list[Job] | None, StudyState]], monkeypatch) -> tuple[str, list[bool]]:
    """What is printed for these answers of Slurm and states of the study; and which jobs were cancelled."""
    jobs, states, cancelled = iter([look[0] for look in looks]), iter([look[1] for look in looks]), list[bool]()
    monkeypatch.setattr(following, "jobs_of", lambda _: next(jobs))
    monkeypatch.setattr(following, "cancel", lambda _, waiting_only: cancelled.append(waiting_only))
    console = Console(file=(text := io.StringIO()), width=300)
    try:
        follow(array, lambda: next(states), console)
    except UserError as error:
        text.write(f"ERROR {error}\n")
    return text.getvalue(), cancelled


def test_a_line_says_how_far_all_is():
    jobs = [Job("7_0", "RUNNING"), Job("7_1", "RUNNING"), Job("7_2", "PENDING")]
    assert progress(HALF, jobs, 0.5) == (
        "1 of 2 cells finished · 140 of 200 questions (70%) · 0.5 questions/s · 2 min of sampling left · "
        "jobs: 2 running, 1 pending"
    )
    assert "left" not in progress(ALL, jobs, 0.5)


def test_a_terminal_shows_who_is_at_work_on_what():
    console = Console(file=(text := io.StringIO()), width=120)
    console.print(screen(HALF, [], 0.0))
    assert "process 5 on node7 b shard 00003" in " ".join(text.getvalue().split())
    assert "1 finished · 1 sampling" in text.getvalue()


def test_the_rate_is_that_of_the_last_ten_minutes():
    pace = Pace()
    for now, answered in ((0, 0), (1000, 10), (1300, 610), (1600, 1210)):
        pace.look(now, answered)
    assert pace.rate == 2.0


def test_what_changes_is_told_once_and_jobs_that_wait_in_vain_are_cancelled(array, monkeypatch):
    running = [Job("7_0", "RUNNING"), Job("7_1", "PENDING")]
    again = [Job("7_0", "RUNNING", restarts=1), Job("7_1", "PENDING")]
    done = [Job("7_0", "COMPLETED", restarts=1), Job("7_1", "PENDING")]
    ended = [Job("7_0", "COMPLETED", restarts=1), Job("7_1", "CANCELLED")]
    looks = [(running, HALF), (None, HALF), (again, HALF), (again, HALF), (done, ALL), (ended, ALL)]
    text, cancelled = shown(array, looks, monkeypatch)
    assert text.count("job 7_0 was queued again") == 1
    assert text.count("b: finished") == 1
    assert cancelled == [True]
    assert "ERROR" not in text


def test_a_job_that_failed_is_named_with_its_last_words_and_its_log(array, monkeypatch):
    array.log("7_0").write_text("semcal: llama: no such file\n")
    jobs = [Job("7_0", "FAILED", exit_code=2, node="node1"), Job("7_1", "TIMEOUT")]
    text, _ = shown(array, [(jobs, HALF)], monkeypatch)
    log = array.log("7_0")
    assert f"job 7_0 failed (exit code 2) on node1: semcal: llama: no such file; its log: {log}\n" in text
    assert "job 7_1 timeout and left no log here; is " in text
    assert f"ERROR {array.study.name}: 1 of 2 cells are not finished, and every job has ended: job 7_0 failed" in text


def test_a_folder_that_is_not_shared_is_named_rather_than_a_log(array, monkeypatch):
    jobs = [Job("7_0", "CANCELLED"), Job("7_1", "FAILED", exit_code=NOT_SHARED, node="node2")]
    text, _ = shown(array, [(jobs, HALF)], monkeypatch)
    assert f"ended: job 7_1 failed (exit code 78) on node2: node2 does not see {array.study}" in text


def test_a_worker_that_died_is_named_with_its_log(array, monkeypatch):
    died = Held("00003-abc", "process 5 on node7", 300.0, True, Path("logs/7_1"))
    states = StudyState((cell("b", 40, died),))
    looks = [([Job("7_0", "RUNNING"), Job("7_1", "RUNNING")], states)] * 2
    ended = [Job("7_0", "COMPLETED"), Job("7_1", "COMPLETED")]
    text, _ = shown(array, [*looks, (ended, ALL)], monkeypatch)
    line = "b: process 5 on node7 died over shard 00003, which another one takes over; its log: logs/7_1\n"
    assert text.count(line) == 1


def test_a_job_that_completed_is_no_success_while_cells_are_unfinished(array, monkeypatch):
    jobs = [Job("7_0", "COMPLETED"), Job("7_1", "FAILED", exit_code=2)]
    text, cancelled = shown(array, [(jobs, HALF)], monkeypatch)
    assert "1 of 2 cells are not finished, and every job has ended: job 7_1 failed (exit code 2)" in text
    jobs = [Job("7_0", "COMPLETED"), Job("7_1", "PENDING")]
    ended = [Job("7_0", "COMPLETED"), Job("7_1", "COMPLETED")]
    text, cancelled = shown(array, [(jobs, HALF), (ended, HALF)], monkeypatch)
    assert "1 of 2 cells are not finished, and every job has ended: job 7_0 completed" in text
    assert not cancelled, "the one that waited may do the rest"


def test_a_study_that_is_finished_is_a_success_however_its_jobs_ended(array, monkeypatch):
    text, _ = shown(array, [([Job("7_0", "GONE"), Job("7_1", "GONE")], ALL)], monkeypatch)
    assert "ERROR" not in text


def test_the_reason_why_a_job_waits_is_shown():
    jobs = [Job("7_0", "PENDING", reason="Resources"), Job("7_1", "RUNNING"), Job("7_2", "PENDING", reason="Resources")]
    assert progress(HALF, jobs, 0.0).endswith("jobs: 2 pending (Resources), 1 running")


@pytest.mark.parametrize(
    ("reason", "hopeless"),
    [
        *((name, True) for name in ("PartitionTimeLimit", "PartitionNodeLimit", "BadConstraints", "InvalidQOS")),
        *((name, True) for name in ("AssocMaxWallDurationPerJobLimit", "QOSMaxGRESPerJob", "QOSMinGRES")),
        *((name, False) for name in ("AssocMaxJobsLimit", "QOSMaxJobsPerUserLimit", "AssocGrpGRES", "Resources", "")),
    ],
)
def test_which_reasons_no_waiting_helps(reason, hopeless):
    assert Job("7_0", "PENDING", reason=reason).hopeless == hopeless


def test_jobs_that_can_never_start_are_cancelled_with_one_line_once_no_other_runs(array, monkeypatch):
    never = Job("7_1", "PENDING", reason="PartitionTimeLimit")
    looks = [([Job("7_0", "RUNNING"), never], HALF), ([Job("7_0", "FAILED", exit_code=1), never], HALF)]
    text, cancelled = shown(array, looks, monkeypatch)
    assert (
        f"ERROR {array.study.name}: Slurm will never start 1 of the 2 jobs of array 7 (PartitionTimeLimit), as " in text
    )
    assert cancelled == [True]


@pytest.mark.parametrize("stop", [Stopped(2), KeyboardInterrupt()])
def test_ctrl_c_ends_the_display_and_says_how_to_cancel_the_jobs(array, monkeypatch, stop):
    def stopped() -> Iterator[None]:
        raise stop
        yield

    monkeypatch.setattr(following, "jobs_of", lambda _: next(stopped()))
    console = Console(file=(text := io.StringIO()), width=300)
    with pytest.raises(type(stop)) as raised:
        follow(array, lambda: HALF, console)
    said = raised.value.line if isinstance(raised.value, Stopped) else text.getvalue()
    assert "the jobs go on, and `scancel 7` ends them" in said
