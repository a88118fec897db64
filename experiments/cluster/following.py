"""Following a study that others work on: its progress in one place, from the folders of its runs and from Slurm."""

from __future__ import annotations

import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from experiments.cluster.shared_folder import NOT_SHARED, not_shared
from experiments.cluster.slurm import COMPLETED, PENDING, Job, Submitted, cancel, jobs_of
from experiments.cluster.study_state import CellState, StudyState, last_words
from experiments.pipeline.forecast import duration
from experiments.pipeline.signals import Stopped
from semcal.errors import UserError

LOOK_S = 5.0  # from one look to the next
SILENT_AT_MOST_S = 30.0  # where the output is no terminal
_WINDOW_S = 600.0  # over which the rate is taken
_SEEN_WITHIN_S = 10.0  # until what a job wrote is to be seen on another machine


@dataclass
class Pace:
    """How fast questions are answered, from looks at the study over the last ten minutes."""

    _seen: deque[tuple[float, int]] = field(default_factory=deque)

    def look(self, now: float, answered: int) -> None:
        self._seen.append((now, answered))
        while now - self._seen[0][0] > _WINDOW_S:
            self._seen.popleft()

    @property
    def rate(self) -> float:
        """Questions a second; 0 where nothing was answered."""
        (began, before), (now, after) = self._seen[0], self._seen[-1]
        return max(0.0, (after - before) / (now - began)) if now > began else 0.0


def follow(array: Submitted, state: Callable[[], StudyState], console: Console) -> None:
    """Show how far a study is until its jobs have ended. Jobs that still wait when it is done are cancelled.

    Raises:
        UserError: all jobs ended before it was done; each with its log. Slurm will never start those that are left,
            which are cancelled.
    """
    pace, told, jobs = Pace(), Told(console), tuple(Job(job, PENDING) for job in array.ids)
    with Live(console=console, auto_refresh=False, transient=True) as live:
        try:
            while True:
                jobs, now = jobs_of(array) or jobs, state()
                pace.look(time.monotonic(), now.answered)
                told.ends(array, jobs)
                told.changes(now)
                if console.is_terminal:
                    live.update(screen(now, jobs, pace.rate), refresh=True)
                else:
                    at_work = (f"{by}: {doing}" for by, doing in working(now))
                    told.regularly(" · ".join([progress(now, jobs, pace.rate), *at_work]))
                if all(job.ended for job in jobs):
                    break
                done = now.finished == len(now.cells) and any(job.state == COMPLETED for job in jobs)
                if done and any(job.state == PENDING for job in jobs):
                    cancel(array, waiting_only=True)
                elif all(job.ended or job.hopeless for job in jobs):
                    cancel(array, waiting_only=True)
                    raise UserError(_never(array, jobs))
                time.sleep(LOOK_S)
        except (Stopped, KeyboardInterrupt) as stopped:
            on = f"the jobs go on, and `scancel {array.array}` ends them; the same command follows them again"
            if isinstance(stopped, Stopped):
                stopped.saved = on
            else:
                console.print(on, highlight=False, markup=False, soft_wrap=True)
            raise
    until = time.monotonic() + _SEEN_WITHIN_S
    while now.finished < len(now.cells) and any(job.state == COMPLETED for job in jobs) and time.monotonic() < until:
        time.sleep(0.5)
        now = state()
    if now.finished < len(now.cells):
        raise UserError(_unfinished(array, jobs, now))


def _never(array: Submitted, jobs: Sequence[Job]) -> str:
    waiting = [job for job in jobs if job.hopeless]
    return (
        f"{array.study.name}: Slurm will never start {len(waiting)} of the {len(jobs)} jobs of array {array.array} "
        f"({waiting[0].reason}), as --slurm asks for more than it allows; they are cancelled, and `scontrol show "
        "partition` shows what a job may ask for"
    )


def _unfinished(array: Submitted, jobs: Sequence[Job], state: StudyState) -> str:
    left = len(state.cells) - state.finished
    first = max(jobs, key=lambda job: (job.exit_code == NOT_SHARED, job.state != COMPLETED))  # of several the first
    return (
        f"{array.study.name}: {left} of {len(state.cells)} cells are not finished, and every job has ended: "
        f"{outcome(array, first)}; the same command goes on with what is there"
    )


def outcome(array: Submitted, job: Job) -> str:
    """How a job ended, why, and where its log is."""
    log = array.log(job.id)
    ended = f"job {job.id} {_ending(job)}{f' on {job.node}' if job.node else ''}"
    if job.exit_code == NOT_SHARED:
        return f"{ended}: {not_shared(array.study, job.node)}"
    if job.state != COMPLETED and not _is_there(log):
        return f"{ended} and left no log here; is {log.parent} on a file system that all machines share?"
    said = last_words(log) if job.exit_code or job.signal else ""
    return f"{ended}{f': {said}' if said else ''}; its log: {log}"


def _ending(job: Job) -> str:
    how = f"exit code {job.exit_code}" if job.exit_code else f"signal {job.signal}" if job.signal else ""
    state = job.state.lower().replace("_", " ")
    return f"{state} ({how})" if how else state


def _is_there(log: Path) -> bool:
    """Wait a little for a file that was written on another machine."""
    until = time.monotonic() + _SEEN_WITHIN_S
    while not log.is_file() and time.monotonic() < until:
        time.sleep(0.5)
    return log.is_file()


class Told:
    """Lines that stay: what has changed since the last look; and, where nothing moves, how far it is now and then."""

    def __init__(self, console: Console) -> None:
        self._console, self._at = console, -SILENT_AT_MOST_S
        self._jobs: dict[str, Job] = {}
        self._cells: dict[Path, str] | None = None  # the first look is no change
        self._dead: set[tuple[str, str]] = set()

    def ends(self, array: Submitted, jobs: Sequence[Job]) -> None:
        for job in jobs:
            before = self._jobs.get(job.id, Job(job.id, PENDING))
            if job.restarts > before.restarts:
                self._line(f"job {job.id} was queued again ({job.restarts}. time); what it had saved is kept")
            if job.ended and not before.ended and job.state != COMPLETED:
                self._line(outcome(array, job))
            self._jobs[job.id] = job

    def changes(self, state: StudyState) -> None:
        cells = {cell.folder: _stage(cell) for cell in state.cells}
        for cell in state.cells if self._cells is not None else ():
            if cells[cell.folder] != (self._cells or {}).get(cell.folder):
                self._line(f"{cell.folder.name}: {cells[cell.folder]}")
        self._cells = cells
        for cell, held in state.dead:
            if (held.by, held.shard) not in self._dead:
                self._dead.add((held.by, held.shard))
                log = f"; its log: {held.log}" if held.log else ""
                self._line(f"{cell.folder.name}: {held.by} died over {held.what}, which another one takes over{log}")

    def regularly(self, words: str) -> None:
        if time.monotonic() - self._at >= SILENT_AT_MOST_S - 2 * LOOK_S:
            self._line(words)
            self._at = time.monotonic()

    def _line(self, words: str) -> None:
        self._console.print(words, highlight=False, markup=False, soft_wrap=True)


def _stage(cell: CellState) -> str:
    return "sampling" if cell.words.startswith(("sampling", "stopped")) else cell.words


def progress(state: StudyState, jobs: Sequence[Job], rate: float) -> str:
    """How far a study is, in one line: cells, questions, rate, time left, jobs."""
    cells, share = f"{state.finished} of {len(state.cells)} cells finished", ""
    if state.questions:
        share = f"{state.answered:,} of {state.questions:,} questions ({state.answered / state.questions:.0%})"
    left = (state.questions - state.answered) / rate if rate else 0
    speed = [f"{rate:.3g} questions/s", f"{duration(left)} of sampling left"] if left > 0 else []
    by_state = Counter(f"{job.state.lower()} ({job.reason})" if job.reason else job.state.lower() for job in jobs)
    queue = "jobs: " + ", ".join(f"{n} {name}" for name, n in by_state.most_common()) if jobs else ""
    return " · ".join(part for part in (cells, share, *speed, queue) if part)


def working(state: StudyState) -> list[tuple[str, str]]:
    """Each process, and what it is at work on, in words."""
    return [(by, ", ".join(f"{c.folder.name} {h.what}" for c, h in held)) for by, held in sorted(state.workers.items())]


def screen(state: StudyState, jobs: Sequence[Job], rate: float) -> Group:
    """The whole study for a terminal: a bar, cells by their state, and a row for each process at work."""
    stages = Counter(map(_stage, state.cells))
    table = Table(box=None, show_header=False, pad_edge=False)
    for by, doing in working(state):
        table.add_row(Text(by, style="cyan"), Text(doing, overflow="ellipsis", no_wrap=True))
    bar = ProgressBar(total=max(state.questions, 1), completed=state.answered)
    cells = " · ".join(f"{n} {name}" for name, n in stages.items())
    return Group(bar, Text(progress(state, jobs, rate)), Text(f"cells: {cells}"), table)
