"""The shares of the jobs of an array are a partition, and what cannot be a share is refused."""

from __future__ import annotations

import pytest

from experiments.cluster.share import Share, share_of
from semcal import UserError

SLURM = {"SLURM_ARRAY_TASK_MIN": "1", "SLURM_ARRAY_TASK_MAX": "7", "SLURM_ARRAY_TASK_STEP": "2"}


@pytest.mark.parametrize("of", [1, 3, 8])
def test_every_shard_is_one_jobs_and_jobs_have_alike_many(of):
    units = [(cell, f"{shard:05d}-abc") for cell in range(40) for shard in range(cell % 3 + 1)]
    held = [[unit for unit in units if Share(i, of).holds(*unit)] for i in range(of)]
    assert sorted(unit for some in held for unit in some) == sorted(units)
    assert max(map(len, held)) - min(map(len, held)) <= 0.2 * len(units) / of + 2


def test_cells_of_a_single_shard_are_dealt_out():
    assert [next(i for i in range(3) if Share(i, 3).holds(cell, "00000-abc")) for cell in range(4)] == [0, 1, 2, 0]


@pytest.mark.parametrize(
    ("text", "environ", "share"),
    [
        ("2/8", {}, Share(2, 8)),
        ("auto", SLURM | {"SLURM_ARRAY_TASK_ID": "5"}, Share(2, 4)),
        ("auto", {"RANK": "3", "WORLD_SIZE": "4"}, Share(3, 4)),
    ],
)
def test_where_a_share_is_read_from(text, environ, share):
    assert share_of(text, environ) == share


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("8/8", r"--shard 8/8: i runs from 0 to n-1, here to 7"),
        ("0/0", "n is 0"),
        ("3", "expected i/n with i from 0 to n-1, such as 0/8, or auto"),
        ("-1/8", "expected i/n"),
        ("auto", "reads SLURM_ARRAY_TASK_ID, or RANK and WORLD_SIZE, and none of them is set; write --shard i/n"),
    ],
)
def test_what_is_no_share(text, message):
    with pytest.raises(UserError, match=message):
        share_of(text, {})
