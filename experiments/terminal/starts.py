"""`python -m experiments.terminal.starts RUN`: CPU seconds of what a command takes before its work begins.

Each start is a process of its own, and the median of five is shown: CPU time, since the clock of a busy machine tells
more of the others. `semcal ls` lists 500 copies of RUN (hard links, in a temporary folder).
"""

import resource
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from experiments.terminal.fitted_table import FittedTable
from semcal.runs.files import link_or_copy

RUNS, REPEATS, LIMIT = 500, 5, 1.0
STARTS = (
    *(("--help",), ("--version",), ("rnu",), ("run", "--hlp"), ("run", "--help"), ("run", "no-such.yaml")),
    *(("run", "mistaken.yaml"), ("score", "no-such-run"), ("ls",), ("ls", "--json")),
)


def starts(run: Annotated[Path, typer.Argument(help="A run folder, to be copied.", exists=True)]) -> None:
    """Measure the start of commands; exit with 1 if one takes a CPU second or more."""
    table = FittedTable(("command", "CPU seconds", "of five, least", "most"))
    with tempfile.TemporaryDirectory() as folder:
        _copies(run.resolve(), Path(folder) / "runs")
        (Path(folder) / "mistaken.yaml").write_text("name: mistaken\nmodelz: []\n", encoding="utf-8")
        slowest = 0.0
        for arguments, spent in _measured(Path(folder)):
            median = statistics.median(spent)
            slowest = max(slowest, median)
            table.add_row(" ".join(("semcal", *arguments)), *(f"{s:.2f}" for s in (median, min(spent), max(spent))))
    Console().print(table)
    raise typer.Exit(int(slowest >= LIMIT))


def _measured(folder: Path) -> Iterator[tuple[tuple[str, ...], list[float]]]:
    for arguments in STARTS:
        yield (
            arguments,
            [_cpu_seconds([sys.executable, "-m", "experiments.cli", *arguments], folder) for _ in range(REPEATS)],
        )


def _cpu_seconds(command: list[str], folder: Path) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, cwd=folder, capture_output=True, check=False)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _copies(run: Path, into: Path) -> None:
    files = [path for path in run.rglob("*") if path.is_file() and not path.name.startswith(".")]
    for i in range(RUNS):
        for path in files:
            target = into / f"run-{i:03d}" / path.relative_to(run)
            target.parent.mkdir(parents=True, exist_ok=True)
            link_or_copy(path, target)


if __name__ == "__main__":
    typer.run(starts)
