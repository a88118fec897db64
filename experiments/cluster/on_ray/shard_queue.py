"""What is left to sample of a study, and which of it a free worker does next: a model is loaded as rarely as possible.

Knows neither models nor run folders nor a cluster.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Alike:
    """Cells that share their samples, so that all but the first take its shards over.

    Attributes:
        model: Name of the model.
        cells: Their numbers in the study.
        shards: About how many shards each has.
    """

    model: str
    cells: tuple[int, ...]
    shards: int = 1


@dataclass(frozen=True)
class Begin:
    """To write the questions of a cell, and find out which of its shards are missing."""

    cell: int


@dataclass(frozen=True)
class Sample:
    """To sample a shard of a cell that was begun."""

    cell: int
    shard: str


Work = Begin | Sample


@dataclass
class _Left:
    """What is left to do with a model; `beginning` counts the cells that workers are at."""

    begun: deque[Sample] = field(default_factory=deque)
    unbegun: deque[Alike] = field(default_factory=deque)
    shards: int = 0  # of the unbegun, about
    beginning: int = 0

    @property
    def size(self) -> int:
        return len(self.begun) + self.shards


class ShardQueue:
    """Hands out each piece of work once, and again if it comes back."""

    def __init__(self, groups: Sequence[Alike]) -> None:
        self._left: dict[str, _Left] = {}
        self._group: dict[int, Alike] = {}  # of each cell that is at hand
        self._missing: dict[int, int] = {}  # shards of each of these that are not sampled
        self._open = 0  # groups of which not all cells are whole
        for group in groups:
            self._wait(group)
            self._open += 1

    @property
    def finished(self) -> bool:
        """Whether all cells are whole."""
        return not self._open

    @property
    def waiting(self) -> int:
        """About how many pieces of work no one is at."""
        return sum(left.size for left in self._left.values())

    def next(self, held: str | None, holding: Mapping[str, int]) -> tuple[str, Work] | None:
        """A model and what to do with it, for a worker that holds a model or none; None where there is nothing now.

        A worker stays with its model while anything of it is left. Then it takes the model that no one holds, or else
        the one with most left for each worker.

        Args:
            holding: Model -> number of workers that hold it.
        """
        if held is not None and (mine := self._left.get(held)):
            if mine.size:
                return held, self._take(mine)
            if mine.beginning:  # its shards are to come
                return None
        waiting = [(name, left) for name, left in self._left.items() if left.size]
        if not waiting:
            return None
        name, left = max(waiting, key=lambda x: (not holding.get(x[0]), x[1].size / (1 + holding.get(x[0], 0))))
        return name, self._take(left)

    def begun(self, work: Begin, missing: Sequence[str]) -> bool:
        """A cell has been begun, and these of its shards are missing; returns whether it is whole."""
        left = self._left[self._group[work.cell].model]
        left.beginning -= 1
        left.begun.extend(Sample(work.cell, shard) for shard in missing)
        self._missing[work.cell] = len(missing)
        return self._whole(work.cell)

    def sampled(self, work: Sample) -> bool:
        """A shard is on disk; returns whether its cell is whole."""
        self._missing[work.cell] -= 1
        return self._whole(work.cell)

    def back(self, work: Work) -> None:
        """It was not done, and is to be done after what is waiting already."""
        group = self._group[work.cell]
        left = self._left[group.model]
        if isinstance(work, Sample):
            left.begun.append(work)
        else:
            left.beginning -= 1
            self._wait(group)

    def _wait(self, group: Alike) -> None:
        left = self._left.setdefault(group.model, _Left())
        left.unbegun.append(group)
        left.shards += max(1, group.shards)

    def _take(self, left: _Left) -> Work:
        if left.begun:
            return left.begun.popleft()
        group = left.unbegun.popleft()
        left.shards -= max(1, group.shards)
        left.beginning += 1
        self._group[group.cells[0]] = group
        return Begin(group.cells[0])

    def _whole(self, cell: int) -> bool:
        """Whether a cell is; then the next one that shares its samples waits to be begun."""
        if self._missing[cell]:
            return False
        del self._missing[cell]
        group = self._group.pop(cell)
        if more := group.cells[1:]:
            self._wait(Alike(group.model, more, shards=1))
        else:
            self._open -= 1
        return True
