"""What the terminal shows while a study runs."""

from __future__ import annotations

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
    from experiments.config import Cell

complaints = Console(stderr=True, soft_wrap=True, highlight=False)


class Screen:
    """Shows a study as it runs: a bar of questions with rate and time left, and the stage of each cell."""

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
        self._tasks: dict[str, TaskID] = {}  # by folder

    def __enter__(self) -> Screen:
        self._bar.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._bar.__exit__(*error)

    def sampling(self, cell: Cell, questions: int, done: int) -> None:
        self._sampled = self._bar.add_task(f"{cell.label}: sampling", total=questions, completed=done, rate="")
        self._tasks[cell.folder] = self._sampled

    def answered(self, questions: int) -> None:
        assert self._sampled is not None
        self._bar.advance(self._sampled, questions)
        speed = self._bar.tasks[self._sampled].speed
        self._bar.update(self._sampled, rate=f"{speed:.1f} questions/s" if speed else "")

    def stage(self, cell: Cell, what: str) -> None:
        self._bar.update(self._task(cell), description=f"{cell.label}: {what}")

    def finished(self, cell: Cell) -> None:
        self.stage(cell, "finished")
        self._bar.stop_task(self._tasks.pop(cell.folder))

    def _task(self, cell: Cell) -> TaskID:
        if cell.folder not in self._tasks:
            self._tasks[cell.folder] = self._bar.add_task("", total=1, completed=1, rate="")
        return self._tasks[cell.folder]
