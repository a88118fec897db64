"""Two ways to do one thing, timed alternately in one process; on a shared machine, only their ratio is meaningful."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import torch

REPEATS = 5


@dataclass(frozen=True)
class Case:
    """One comparison.

    Attributes:
        case: Its name.
        ours_s, theirs_s: Median seconds.
        ratio: theirs_s / ours_s; above 1 ours is faster.
        facts: Further figures: rows decoded, bytes held.
    """

    case: str
    ours_s: float
    theirs_s: float
    ratio: float
    facts: dict[str, Any] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        plain = asdict(self)
        return plain | plain.pop("facts")


def side_by_side(
    case: str,
    ours: Callable[[], object],
    theirs: Callable[[], object],
    *,
    repeats: int = REPEATS,
    scale: float = 1.0,
    **facts: Any,
) -> Case:
    """Time both in turns; the medians and the median of the ratios of neighbouring runs.

    `scale`: how many runs of theirs do the work of one run of ours.
    """
    pairs = [(seconds(ours), seconds(theirs) * scale) for _ in range(repeats)]
    return Case(
        case,
        statistics.median(a for a, _ in pairs),
        statistics.median(b for _, b in pairs),
        statistics.median(b / a for a, b in pairs),
        facts,
    )


def seconds(run: Callable[[], object]) -> float:
    """Wall-clock time of one run, including the work of the device."""
    _settle()
    began = time.perf_counter()
    run()
    _settle()
    return time.perf_counter() - began


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
