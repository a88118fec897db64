"""How far a study on Ray is: all of it, as the folders of its runs tell, and what each worker of the driver is at."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console, Group
from rich.live import Live
from rich.text import Text

from experiments.cluster.following import LOOK_S, Pace, Told, progress, screen, working
from experiments.cluster.on_ray.ray_worker import Joined
from experiments.cluster.on_ray.shard_queue import Begin, Sample, Work
from experiments.cluster.study_state import Held, StudyState, study_state
from experiments.pipeline.run_study import Prepared


@dataclass(eq=False)
class Worker:
    """An actor. `joined` is None until it says so; `model` is what it holds, by name, or is about to load."""

    actor: Any
    joined: Joined | None = None
    model: str | None = None
    doing: Work | None = None
    rests_until: float = 0.0


@dataclass
class Crew:
    """The workers that there are now; None before there is a cluster, and after its work."""

    workers: Sequence[Worker] | None = None


@contextmanager
def shown(prepared: Prepared, console: Console | None) -> Iterator[Crew]:
    """Show how far the study is until the block ends; without a console, nothing. Whoever is in the block keeps the
    crew up to date."""
    crew, over = Crew(), threading.Event()
    if console is None:
        yield crew
        return
    folders = [Path(cell.folder) for cell in prepared.cells]
    questions = [len(prepared.datasets[cell.dataset.name].questions) for cell in prepared.cells]
    thread = threading.Thread(
        target=_show, args=(console, lambda: study_state(folders, questions, prepared.groups), crew, over), daemon=True
    )
    thread.start()
    try:
        yield crew
    finally:
        over.set()
        thread.join()


def _show(console: Console, state: Callable[[], StudyState], crew: Crew, over: threading.Event) -> None:
    """Where output is a terminal, one screen; otherwise lines, at least every 30 s."""
    pace, told, ended = Pace(), Told(console), False
    with Live(console=console, auto_refresh=False, transient=True) as live:
        while True:
            workers = crew.workers
            now, words = with_workers(state(), workers or ()), crew_words(workers)
            pace.look(time.monotonic(), now.answered)
            told.changes(now)
            if console.is_terminal:
                live.update(Group(screen(now, (), pace.rate), Text(words)), refresh=True)
            else:
                at_work = (f"{by}: {doing}" for by, doing in working(now))
                told.regularly(" · ".join([progress(now, (), pace.rate), *filter(None, [words]), *at_work]))
            if ended:
                return
            ended = over.wait(LOOK_S)


def with_workers(state: StudyState, workers: Sequence[Worker]) -> StudyState:
    """The state of a study with what workers have in hand that share no folder with it: their claims are not there."""
    cells = list(state.cells)
    for worker in workers:
        work, joined = worker.doing, worker.joined
        if joined is None or not isinstance(work, Sample):
            continue
        log = Path(joined.log) if joined.log else None
        held = Held(work.shard, f"process {joined.pid} on {joined.host}", 0.0, False, log)
        cell = cells[work.cell]
        if all((h.by, h.shard) != (held.by, held.shard) for h in cell.held):
            cells[work.cell] = replace(cell, held=(*cell.held, held))
    return replace(state, cells=tuple(cells))


def crew_words(workers: Sequence[Worker] | None) -> str:
    """How many workers have joined, and what they are at."""
    if workers is None:
        return ""
    joined = [w for w in workers if w.joined is not None]
    if not joined:
        return f"waiting for workers: 0 of {len(workers)} joined"
    loading = sorted({w.model or "" for w in joined if isinstance(w.doing, Begin)})
    parts = [
        (sum(isinstance(w.doing, Sample) for w in joined), "sampling"),
        (sum(isinstance(w.doing, Begin) for w in joined), f"beginning with {', '.join(loading)}"),
        (sum(w.doing is None for w in joined), "idle"),
        (len(workers) - len(joined), "not joined yet"),
    ]
    return "workers: " + ", ".join(f"{n} {what}" for n, what in parts if n)
