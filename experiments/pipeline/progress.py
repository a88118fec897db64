"""What the terminal shows while a study runs: which cell of how many, its stage, and how long that has taken.

A stage that knows how far it is has a bar that grows; for any other, a bar that moves and a running clock. Where stderr
is no terminal, or one that cannot move its cursor: one line a stage, and one at least every 30 s.
"""

from __future__ import annotations

import re
import threading
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Column

from experiments.terminal.output import animated, complaints

if TYPE_CHECKING:  # torch takes seconds
    from experiments.config.study import Cell
    from experiments.train.checkpoints import Progress as Step

SILENT_AT_MOST = 30.0  # seconds, where stdout is no terminal
_NARROW = 70  # columns of a terminal that has no room for a bar
_FAR = re.compile(r"(\d[\d,]*) of (\d[\d,]*)")


class Reporter:
    """Hears what happens while a study runs; this one shows nothing."""

    def sampling(self, cell: Cell, questions: int, done: int) -> None: ...

    def answered(self, questions: int) -> None: ...

    def stage(self, cell: Cell, what: str) -> None: ...

    def left(self, cell: Cell, what: str) -> None:
        """What remains of a cell is in the hands of other processes; `what` names one."""
        self.stage(cell, what)

    def finished(self, cell: Cell) -> None: ...


@dataclass
class _Shown:
    """One cell on the screen.

    Attributes:
        name: How it is called.
        began: When it was first heard of.
        stages: What has been said of it so far, without how far that is.
        sampling_began: When its questions were first counted.
        asked, done, before: Questions in all, answered, and answered before they were counted.
    """

    name: str
    began: float
    stages: set[str] = field(default_factory=set)
    sampling_began: float = 0.0
    asked: int = 0
    done: int = 0
    before: int = 0


class Screen(Reporter):
    """Shows the cell at work; of several, the one that was last heard of.

    Args:
        cells: How many there are; 0 where that is not known.
        quiet: Show nothing.
    """

    def __init__(self, cells: int = 0, *, quiet: bool = False, console: Console = complaints) -> None:
        self._cells, self._shown = cells, dict[str, _Shown]()  # by folder
        self._sampled: _Shown | None = None
        self._view = _Silence() if quiet else _Bar(console) if animated(console) else _Lines(console)

    def __enter__(self) -> Screen:
        self._view.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._view.__exit__(*error)

    def sampling(self, cell: Cell, questions: int, done: int) -> None:
        self._sampled = shown = self._begin(cell, "sampling")
        if not shown.sampling_began:
            shown.sampling_began, shown.before = time.monotonic(), done
        shown.asked, shown.done = questions, done
        self._show(shown, "sampling", done, questions)

    def answered(self, questions: int) -> None:
        if (shown := self._sampled) is None:
            return
        shown.done += questions
        seconds = time.monotonic() - shown.sampling_began
        rate = f", {(shown.done - shown.before) / seconds:.1f} questions/s" if seconds > 1 else ""
        self._show(shown, f"sampling{rate}", shown.done, shown.asked)

    def stage(self, cell: Cell, what: str) -> None:
        far = _FAR.search(what)
        done, of = (int(n.replace(",", "")) for n in far.groups()) if far else (0, 0)
        self._show(self._begin(cell, what), what, done, of)

    def finished(self, cell: Cell) -> None:
        shown = self._begin(cell, "finished")
        self._view.close(f"{shown.name}: finished after {_clock(time.monotonic() - shown.began)}")

    def _begin(self, cell: Cell, what: str) -> _Shown:
        """The cell, known by its folder; a stage that is new to it is opened."""
        if cell.folder not in self._shown:
            at = len(self._shown) + 1
            name = f"cell {at}/{self._cells} · {cell.label}" if self._cells > 1 else cell.label
            self._shown[cell.folder] = _Shown(name, time.monotonic())
        shown = self._shown[cell.folder]
        if (stage := re.split(r"[,\d]", what)[0].strip()) not in shown.stages:
            shown.stages.add(stage)
            self._view.open(shown.name)
        return shown

    def _show(self, shown: _Shown, what: str, done: int, of: int) -> None:
        self._view.show(f"{shown.name}: {what}", done, of)


class _Silence:
    def __enter__(self) -> None: ...

    def __exit__(self, *error: Any) -> None: ...

    def open(self, cell: str) -> None:
        """A stage begins."""

    def show(self, words: str, done: int, of: int) -> None:
        """It is so far; `of` is 0 where that is not known."""

    def close(self, words: str) -> None:
        """The cell is finished."""


class _Bar(_Silence):
    """One line that moves, above it one for each finished cell."""

    def __init__(self, console: Console) -> None:
        name = Column(ratio=1, no_wrap=True, overflow="ellipsis")
        columns = [TextColumn("{task.description}", markup=False, table_column=name), TimeElapsedColumn()]
        if console.width >= _NARROW:
            columns[1:1] = [BarColumn(bar_width=20), TextColumn("{task.fields[far]}")]
            columns.append(TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, expand=True)
        self._task = self._bar.add_task("", total=None, visible=False, far="")

    def __enter__(self) -> None:
        self._bar.__enter__()

    def __exit__(self, *error: Any) -> None:
        self._bar.update(self._task, visible=False)
        self._bar.__exit__(*error)

    def open(self, cell: str) -> None:
        self._bar.reset(self._task, description=cell, visible=True, far="")
        self._aim_at(None)

    def show(self, words: str, done: int, of: int) -> None:
        far = f"{done:,}/{of:,}" if of else ""
        self._aim_at(of or None)
        self._bar.update(self._task, description=words, completed=done, far=far, visible=True)

    def _aim_at(self, total: int | None) -> None:
        """`Progress.update` cannot forget a total."""
        next(task for task in self._bar.tasks if task.id == self._task).total = total

    def close(self, words: str) -> None:
        self._bar.update(self._task, visible=False)
        self._bar.console.print(words, markup=False, highlight=False)


class _Lines(_Silence):
    """A line when a stage begins, and whenever nothing was printed for 30 s."""

    def __init__(self, console: Console) -> None:
        self._console, self._lock, self._over = console, threading.Lock(), threading.Event()
        self._last, self._began, self._printed, self._new = "", 0.0, 0.0, False

    def __enter__(self) -> None:
        threading.Thread(target=self._repeat, daemon=True).start()

    def __exit__(self, *error: Any) -> None:
        self._over.set()

    def open(self, cell: str) -> None:  # noqa: ARG002
        with self._lock:
            self._began, self._new = time.monotonic(), True

    def show(self, words: str, done: int, of: int) -> None:
        far = f", {done:,} of {of:,}" if of and not _FAR.search(words) else ""
        with self._lock:
            self._last = words + far
            if self._new:
                self._new = False
                self._print(self._last)

    def close(self, words: str) -> None:
        with self._lock:
            self._last = ""
            self._print(words)

    def _repeat(self) -> None:
        while not self._over.wait(1.0):
            with self._lock:
                now = time.monotonic()
                if self._last and now - self._printed >= SILENT_AT_MOST:
                    self._print(f"{self._last} · {_clock(now - self._began)}")

    def _print(self, line: str) -> None:
        self._printed = time.monotonic()
        self._console.print(line, markup=False, highlight=False)


def _clock(seconds: float) -> str:
    minutes, left = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{left:02d}" if hours else f"{minutes}:{left:02d}"


class Steps:
    """Shows a bar of training steps with time left; where stdout is no terminal, a line at least every 30 s."""

    def __init__(self, console: Console, steps: int) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[facts]}"))
        self._console, self._steps, self._printed = console, steps, -SILENT_AT_MOST
        self._moves = animated(console)
        self._bar = Progress(*columns, console=console, disable=not self._moves)
        self._task = self._bar.add_task("steps", total=steps, facts="preparing")

    def __enter__(self) -> Steps:
        self._bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)

    def tell(self, what: str) -> None:
        """What happens before the first step."""
        self._show(what, 0)

    def step(self, step: Step) -> None:
        facts = [f"loss {step.loss:.3f}", step.said, f"{step.tokens / 1e6:.2f} M tokens"]
        self._show(" · ".join([*filter(None, facts), f"{step.seconds_left / 60:.1f} min left"]), step.step)

    def note(self, what: str) -> None:
        """A line that stays."""
        self._console.print(what, soft_wrap=True, highlight=False, markup=False)

    def _show(self, facts: str, done: int) -> None:
        self._bar.update(self._task, completed=done, facts=facts)
        due = time.monotonic() - self._printed >= SILENT_AT_MOST or done == self._steps
        if not self._moves and due:
            self._console.print(f"{done} of {self._steps} · {facts}", soft_wrap=True, highlight=False, markup=False)
            self._printed = time.monotonic()
