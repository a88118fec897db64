"""What the terminal shows while a study runs."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

if TYPE_CHECKING:  # torch takes seconds
    from experiments.config.study import Cell
    from experiments.train.checkpoints import Progress as Step

_SILENT_AT_MOST = 30.0  # seconds, where stdout is no terminal

complaints = Console(stderr=True, soft_wrap=True, highlight=False)


class Reporter:
    """Hears what happens while a study runs; this one shows nothing."""

    def sampling(self, cell: Cell, questions: int, done: int) -> None: ...

    def answered(self, questions: int) -> None: ...

    def stage(self, cell: Cell, what: str) -> None: ...

    def finished(self, cell: Cell) -> None: ...


class Screen(Reporter):
    """Shows a bar of questions with rate and time left, and the stage of each cell."""

    def __init__(self) -> None:
        self._bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[rate]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=complaints,
        )
        self._sampled: TaskID | None = None  # the bar that grows
        self._lines: dict[str, TaskID] = {}  # of cells that were sampled, by folder
        self._line: TaskID | None = None  # of all others, one after the other

    def __enter__(self) -> Screen:
        self._bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)

    def sampling(self, cell: Cell, questions: int, done: int) -> None:
        self._sampled = self._bar.add_task(f"{cell.label}: sampling", total=questions, completed=done, rate="")
        self._lines[cell.folder] = self._sampled

    def answered(self, questions: int) -> None:
        assert self._sampled is not None
        self._bar.advance(self._sampled, questions)
        speed = self._bar.tasks[self._sampled].speed
        self._bar.update(self._sampled, rate=f"{speed:.1f} questions/s" if speed else "")

    def stage(self, cell: Cell, what: str) -> None:
        if (line := self._lines.get(cell.folder, self._line)) is None:
            line = self._line = self._bar.add_task("", total=1, completed=1, rate="")
        self._bar.update(line, description=f"{cell.label}: {what}")

    def finished(self, cell: Cell) -> None:
        self.stage(cell, "finished")
        if (line := self._lines.pop(cell.folder, None)) is None:
            line, self._line = self._line, None
        assert line is not None
        self._bar.stop_task(line)


class Steps:
    """Shows a bar of training steps with time left; where stdout is no terminal, a line at least every 30 s."""

    def __init__(self, console: Console, steps: int) -> None:
        columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[facts]}"))
        self._console, self._steps, self._printed = console, steps, -_SILENT_AT_MOST
        self._bar = Progress(*columns, console=console, disable=not console.is_terminal)
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
        due = time.monotonic() - self._printed >= _SILENT_AT_MOST or done == self._steps
        if not self._console.is_terminal and due:
            self._console.print(f"{done} of {self._steps} · {facts}", soft_wrap=True, highlight=False, markup=False)
            self._printed = time.monotonic()
