"""The share of one job of an array: which shards of a study it samples. Cells that share their samples are dealt as
one."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from semcal.errors import UserError

if TYPE_CHECKING:  # torch takes seconds
    from experiments.config.study import Cell

AUTO = "auto"
_BY_HAND = "write --shard i/n"


@dataclass(frozen=True)
class Share:
    """One of `of` jobs that split a study. Shards are dealt to them in turn, from one group of cells to the next by one
    job further, so that cells of one shard are split, too.

    Attributes:
        index: 0 to `of` - 1.

    Raises:
        UserError: it is not.
    """

    index: int
    of: int

    def __post_init__(self) -> None:
        if self.of < 1:
            raise UserError(f"--shard {self}: n is {self.of}; expected 1 or more")
        if not 0 <= self.index < self.of:
            raise UserError(f"--shard {self}: i runs from 0 to n-1, here to {self.of - 1}")

    def holds(self, group: int, shard: str) -> bool:
        """Whether a shard, by its key, is this job's; its cell is of the group with this number (`groups`)."""
        return (group + int(shard.partition("-")[0])) % self.of == self.index

    def __str__(self) -> str:
        return f"{self.index}/{self.of}"


def groups(cells: Sequence[Cell]) -> list[int]:
    """For each cell of a study the number of its group, counted from 0: cells of a group differ in B alone, so that
    they share their samples."""
    found: dict[tuple[str, str, str], int] = {}
    return [found.setdefault((c.model.name, c.dataset.name, c.style), len(found)) for c in cells]


def share_of(text: str, environ: Mapping[str, str]) -> Share:
    """Read `i/n`, with i from 0 to n - 1; or, for "auto", from the variables of a Slurm array or of torchrun.

    Raises:
        UserError: neither; i outside 0 … n - 1; auto and no such variables, or an array with gaps.
    """
    if text == AUTO:
        return _share_here(environ)
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None:
        raise UserError(f"--shard {text}: expected i/n with i from 0 to n-1, such as 0/8, or {AUTO}")
    return Share(int(found[1]), int(found[2]))


def _share_here(environ: Mapping[str, str]) -> Share:
    if "SLURM_ARRAY_TASK_ID" in environ:
        return _share_of_array(environ)
    if {"RANK", "WORLD_SIZE"} <= environ.keys():
        return Share(_number(environ, "RANK"), _number(environ, "WORLD_SIZE"))
    raise UserError(
        f"--shard {AUTO} reads SLURM_ARRAY_TASK_ID, or RANK and WORLD_SIZE, and none of them is set; {_BY_HAND}"
    )


def _share_of_array(environ: Mapping[str, str]) -> Share:
    """Slurm tells a job the first and the last number of its array and how many there are, but not which."""
    task, first, last, count = (_number(environ, f"SLURM_ARRAY_TASK_{name}") for name in ("ID", "MIN", "MAX", "COUNT"))
    step = _number(environ, "SLURM_ARRAY_TASK_STEP") if "SLURM_ARRAY_TASK_STEP" in environ else 1
    if step < 1 or (task - first) % step or (last - first) // step + 1 != count:
        raise UserError(
            f"--shard {AUTO}: the array has {count} jobs between {first} and {last}, not one every {step}, so which is "
            f"which is not known; submit it with --array=0-{max(count, 1) - 1}, or {_BY_HAND}"
        )
    return Share((task - first) // step, count)


def _number(environ: Mapping[str, str], name: str) -> int:
    try:
        return int(environ[name])
    except KeyError:
        raise UserError(f"--shard {AUTO} reads {name}, which is not set; {_BY_HAND}") from None
    except ValueError:
        raise UserError(f"--shard {AUTO}: {name} is {environ[name]!r}, not a number; {_BY_HAND}") from None
