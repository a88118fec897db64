"""The shares of the jobs of an array are a partition, and what cannot be a share is refused."""

from __future__ import annotations

import pytest

from experiments.cluster.share import Share, groups, share_of
from experiments.config.study import load_study
from semcal import UserError
from tests.experiments.conftest import write_study


def slurm(task: str, first: str, last: str, count: str, step: str = "1") -> dict[str, str]:
    """What Slurm tells a job of an array."""
    names = ("ID", "MIN", "MAX", "COUNT", "STEP")
    values = (task, first, last, count, step)
    return {f"SLURM_ARRAY_TASK_{name}": value for name, value in zip(names, values, strict=True)}


@pytest.mark.parametrize("of", [1, 3, 8])
def test_every_shard_is_one_jobs_and_jobs_have_alike_many(of):
    units = [(group, f"{shard:05d}-abc") for group in range(40) for shard in range(group % 3 + 1)]
    held = [[unit for unit in units if Share(i, of).holds(*unit)] for i in range(of)]
    assert sorted(unit for some in held for unit in some) == sorted(units)
    assert max(map(len, held)) - min(map(len, held)) <= 0.2 * len(units) / of + 2


def test_cells_of_a_single_shard_are_dealt_out():
    assert [next(i for i in range(3) if Share(i, 3).holds(group, "00000-abc")) for group in range(4)] == [0, 1, 2, 0]


def test_cells_that_differ_in_b_alone_are_of_one_group(tmp_path, study_dict):
    study_dict |= {"styles": ["concise", "sentence"], "semantics": [{"kind": "exact"}, {"kind": "kth-word", "k": 1}]}
    cells = load_study(write_study(tmp_path, study_dict)).cells()
    assert groups(cells) == [0, 0, 1, 1]


@pytest.mark.parametrize(
    ("text", "environ", "share"),
    [
        ("2/8", {}, Share(2, 8)),
        ("auto", slurm("5", "1", "7", "4", "2"), Share(2, 4)),
        ("auto", slurm("5", "1", "8", "4", "2"), Share(2, 4)),
        ("auto", slurm("3", "3", "3", "1"), Share(0, 1)),
        ("auto", {"RANK": "3", "WORLD_SIZE": "4"}, Share(3, 4)),
    ],
)
def test_where_a_share_is_read_from(text, environ, share):
    assert share_of(text, environ) == share


@pytest.mark.parametrize(
    ("text", "environ", "message"),
    [
        ("8/8", {}, r"--shard 8/8: i runs from 0 to n-1, here to 7"),
        ("0/0", {}, "n is 0"),
        ("3", {}, "expected i/n with i from 0 to n-1, such as 0/8, or auto"),
        ("-1/8", {}, "expected i/n"),
        ("auto", {}, "reads SLURM_ARRAY_TASK_ID, or RANK and WORLD_SIZE, and none of them is set; write --shard i/n"),
        ("auto", slurm("7", "3", "7", "2"), "has 2 jobs between 3 and 7, not one every 1, .* write --shard i/n"),
        ("auto", slurm("4", "3", "7", "3", "2"), "which is which is not known"),
        ("auto", slurm("9", "1", "7", "7"), "--shard 8/7: i runs from 0 to n-1, here to 6"),
        ("auto", {"SLURM_ARRAY_TASK_ID": "3"}, "reads SLURM_ARRAY_TASK_MIN, which is not set; write --shard i/n"),
        ("auto", slurm("1", "0", "x", "2"), "SLURM_ARRAY_TASK_MAX is 'x', not a number"),
        ("auto", {"RANK": "5", "WORLD_SIZE": "4"}, "--shard 5/4: i runs from 0 to n-1, here to 3"),
        ("auto", {"RANK": "-1", "WORLD_SIZE": "4"}, "--shard -1/4: i runs from 0"),
        ("auto", {"RANK": "0", "WORLD_SIZE": "0"}, "n is 0"),
        ("auto", {"RANK": "a", "WORLD_SIZE": "4"}, "RANK is 'a', not a number"),
    ],
)
def test_what_is_no_share(text, environ, message):
    with pytest.raises(UserError, match=message):
        share_of(text, environ)
