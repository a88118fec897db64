"""What a person sees of a study that workers of Ray are at."""

from __future__ import annotations

import io
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rich.console import Console

from experiments.cluster import following
from experiments.cluster.following import working
from experiments.cluster.on_ray import ray_progress
from experiments.cluster.on_ray.ray_progress import Worker, crew_words, shown, with_workers
from experiments.cluster.on_ray.ray_worker import Joined
from experiments.cluster.on_ray.shard_queue import Begin, Sample
from experiments.cluster.study_state import CellState, Held, StudyState

JOINED = Joined("node7", 5, "worker.log", shared=False, semcal="1")
CLAIM = Held("00003-abc", "process 5 on node7", 3.0, False, None)


def state(*held: Held) -> StudyState:
    return StudyState((CellState(Path("gemma__b"), 100, 40, 10, 4, False, held),))


def test_workers_are_counted_by_what_they_are_at():
    sampling = Worker(None, JOINED, "gemma", Sample(0, "00003-abc"))
    beginning = Worker(None, JOINED, "gemma", Begin(0))
    assert crew_words(None) == ""
    assert crew_words([Worker(None), Worker(None)]) == "waiting for workers: 0 of 2 joined"
    assert crew_words([sampling, beginning, Worker(None, JOINED, "gemma"), Worker(None)]) == (
        "workers: 1 sampling, 1 beginning with gemma, 1 idle, 1 not joined yet"
    )


def test_a_worker_is_named_with_its_shard_whether_its_claim_is_to_be_seen_or_not():
    worker = Worker(None, JOINED, "gemma", Sample(0, "00003-abc"))
    for seen in (state(), state(CLAIM)):
        assert working(with_workers(seen, [worker])) == [("process 5 on node7", "gemma__b shard 00003")]


def test_questions_of_cells_that_share_their_samples_are_counted_once():
    two = StudyState((*state().cells, *state().cells), (0, 0))
    worker = Worker(None, JOINED, "gemma", Sample(0, "00003-abc"))
    assert with_workers(two, [worker]).questions == 100


def test_without_a_terminal_lines_say_how_far_all_is_and_that_workers_are_waited_for(monkeypatch):
    monkeypatch.setattr(ray_progress, "study_state", lambda *_: state())
    monkeypatch.setattr(ray_progress, "LOOK_S", 0.01)
    monkeypatch.setattr(following, "SILENT_AT_MOST_S", 0.0)
    prepared: Any = SimpleNamespace(cells=[], datasets={}, groups=[])
    text = io.StringIO()
    with shown(prepared, Console(file=text, width=300)) as crew:
        crew.workers = [Worker(None)]
        until = time.monotonic() + 30
        while "0 of 1 joined" not in text.getvalue() and time.monotonic() < until:
            time.sleep(0.01)
    line = "0 of 1 cells finished · 40 of 100 questions (40%)"
    assert text.getvalue().startswith(line)
    assert f"{line} · waiting for workers: 0 of 1 joined\n" in text.getvalue()
