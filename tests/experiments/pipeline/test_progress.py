"""What is shown while a study runs: cell and stage, never a full bar before the work is over, and no long silence."""

from __future__ import annotations

import io
import time
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from experiments.pipeline import progress
from experiments.pipeline.progress import Screen


def cell(name: str) -> Any:
    return SimpleNamespace(label=name, folder=f"runs/{name}")


def console(terminal: bool, width: int = 100) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=width, _environ={"TERM": "xterm"})


def shown(on: Console) -> str:
    assert isinstance(on.file, io.StringIO)
    return on.file.getvalue()


def walk(screen: Screen) -> None:
    with screen:
        for name in ("a", "b"):
            screen.sampling(cell(name), 4, 0)
            screen.answered(2)
            screen.answered(2)
            screen.stage(cell(name), "scoring")
            screen.stage(cell(name), "scoring, 10 of 20 requests")
            screen.stage(cell(name), "probing")
            screen.finished(cell(name))


def test_without_a_terminal_there_is_a_line_a_stage():
    on = console(False)
    walk(Screen(2, console=on))
    assert shown(on).splitlines() == [
        *("cell 1/2 · a: sampling, 0 of 4", "cell 1/2 · a: scoring", "cell 1/2 · a: probing"),
        "cell 1/2 · a: finished after 0:00",
        *("cell 2/2 · b: sampling, 0 of 4", "cell 2/2 · b: scoring", "cell 2/2 · b: probing"),
        "cell 2/2 · b: finished after 0:00",
    ]


def test_without_a_terminal_a_long_stage_is_told_again(monkeypatch):
    monkeypatch.setattr(progress, "SILENT_AT_MOST", 0.0)
    on = console(False)
    with Screen(console=on) as screen:
        screen.stage(cell("a"), "probing")
        deadline = time.monotonic() + 20
        while shown(on).count("a: probing") < 2 and time.monotonic() < deadline:
            time.sleep(0.05)  # nothing is reported meanwhile
    assert "a: probing · 0:0" in shown(on)


def test_quiet_shows_nothing():
    on = console(True)
    walk(Screen(2, quiet=True, console=on))
    assert shown(on) == ""


@pytest.mark.parametrize("width", [40, 100])
def test_in_a_terminal_the_bar_is_that_of_the_stage(width):
    on = console(True, width)
    screen = Screen(2, console=on)
    with screen:
        (task,) = screen._view._bar.tasks  # pyright: ignore[reportAttributeAccessIssue]
        screen.sampling(cell("a"), 4, 0)
        screen.answered(4)
        assert (task.completed, task.total) == (4, 4)
        screen.stage(cell("a"), "scoring")
        assert task.total is None  # it moves
        screen.stage(cell("a"), "intervening, 1,000 of 2,000")
        assert (task.completed, task.total) == (1000, 2000)
        screen.stage(cell("a"), "drawing")
        assert (task.total, task.elapsed < 5) == (None, True)
        screen.finished(cell("a"))
    assert "cell 1/2 · a: finished after 0:00" in shown(on)


def test_a_single_cell_is_not_counted():
    on = console(False)
    with Screen(1, console=on) as screen:
        screen.stage(cell("a"), "scoring")
    assert shown(on) == "a: scoring\n"


@pytest.mark.parametrize("terminal", [False, True])
def test_cells_that_are_sampled_by_turns_are_told_apart(terminal):
    on = console(terminal, 200)
    with Screen(2, console=on) as screen:
        for done in (0, 2):
            for name in ("a", "b"):
                screen.sampling(cell(name), 8, done)
                screen.answered(2)
        screen.stage(cell("a"), "scoring")
        screen.answered(2)  # of b, while a is scored
        shown_last = screen._view._bar.tasks[0].description if terminal else screen._view._last  # pyright: ignore
    assert shown_last.startswith("cell 2/2 · b: sampling")
    if not terminal:
        assert shown_last.endswith("6 of 8")
        assert shown(on).splitlines() == [
            *("cell 1/2 · a: sampling, 0 of 8", "cell 2/2 · b: sampling, 0 of 8", "cell 1/2 · a: scoring"),
        ]
