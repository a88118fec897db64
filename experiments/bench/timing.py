"""Two ways to do one thing, timed alternately in one process; on a shared machine, only their ratio is meaningful."""

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

REPEATS = 5


@dataclass(frozen=True)
class Case:
    """One comparison: its name, median seconds, their ratio (above 1 ours is faster), and further figures such as rows
    decoded or bytes held."""

    case: str
    ours_s: float
    theirs_s: float
    ratio: float
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def line(self) -> str:
        """The case in one line, while others are still running."""
        return f"{self.case}: {self.ratio:.3g}×"

    def to_dict(self) -> dict[str, Any]:
        plain = asdict(self)
        return plain | plain.pop("facts")


@dataclass(frozen=True)
class Skipped:
    """A comparison that was not made, and why."""

    case: str
    why: str

    @property
    def line(self) -> str:
        return f"{self.case}: skipped; {self.why}"


def side_by_side(
    case: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    *,
    repeats: int = REPEATS,
    scale: float = 1.0,
) -> Case:
    """Time both in turns; the medians, and the median of the ratios of adjacent runs.

    `scale`: how many of their runs do the work of one of ours.
    """
    pairs = [(seconds(ours), seconds(theirs) * scale) for _ in range(repeats)]
    return Case(
        case,
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(b / a for a, b in pairs),
    )


@dataclass(frozen=True)
class Spent:
    """Seconds of wall clock, and of all threads together on the processor."""

    wall_s: float
    cpu_s: float


def spent(run: Callable[[], object], cpu_seconds: Callable[[], float] = time.process_time) -> Spent:
    """What one run takes, including the work of the device. `cpu_seconds`: read before and after; this process's."""
    _settle()
    began, cpu = time.perf_counter(), cpu_seconds()
    run()
    _settle()
    return Spent(time.perf_counter() - began, cpu_seconds() - cpu)


def seconds(run: Callable[[], object]) -> float:
    """Wall-clock time of one run, including the work of the device."""
    return spent(run).wall_s


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
