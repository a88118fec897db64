"""The share of one job of an array: which shards of a study it samples."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from semcal.errors import UserError

AUTO = "auto"


@dataclass(frozen=True)
class Share:
    """One of `of` jobs that split a study. Shards are dealt to them in turn, from cell to cell one job further, so that
    cells of one shard are split, too.

    Attributes:
        index: 0 to `of` - 1.
    """

    index: int
    of: int

    def holds(self, cell: int, shard: str) -> bool:
        """Whether a shard, by its key, of the cell with this number in the study is this job's."""
        return (cell + int(shard.partition("-")[0])) % self.of == self.index

    def __str__(self) -> str:
        return f"{self.index}/{self.of}"


def share_of(text: str, environ: Mapping[str, str]) -> Share:
    """Read `i/n`, with i from 0 to n - 1; or, for "auto", from the variables of a Slurm array or of torchrun.

    Raises:
        UserError: neither; i outside 0 … n - 1; auto and no such variable.
    """
    if text == AUTO:
        return _share_here(environ)
    found = re.fullmatch(r"(\d+)/(\d+)", text)
    if found is None:
        raise UserError(f"--shard {text}: expected i/n with i from 0 to n-1, such as 0/8, or {AUTO}")
    index, of = int(found[1]), int(found[2])
    if index >= of:
        raise UserError(f"--shard {text}: i runs from 0 to n-1, here to {of - 1}" if of else f"--shard {text}: n is 0")
    return Share(index, of)


def _share_here(environ: Mapping[str, str]) -> Share:
    if "SLURM_ARRAY_TASK_ID" in environ:
        task, first, last, step = (
            int(environ.get(f"SLURM_ARRAY_TASK_{name}", default))
            for name, default in (("ID", "0"), ("MIN", "0"), ("MAX", "0"), ("STEP", "1"))
        )
        return Share((task - first) // step, (last - first) // step + 1)
    if {"RANK", "WORLD_SIZE"} <= environ.keys():
        return Share(int(environ["RANK"]), int(environ["WORLD_SIZE"]))
    raise UserError(
        f"--shard {AUTO} reads SLURM_ARRAY_TASK_ID, or RANK and WORLD_SIZE, and none of them is set; write --shard i/n"
    )
