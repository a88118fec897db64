"""What `--slurm` understands."""

from __future__ import annotations

import pytest

from experiments.cluster.slurm_options import slurm_options
from semcal import UserError


def test_keys_become_options_of_sbatch():
    found = slurm_options("partition=gpu,gpus=2,cpus=8,mem=64G,exclude=node[1,3],node7,time=4:00:00")
    assert found.minutes == 240
    assert found.cpus == "8"
    assert found.flags == {
        **{"partition": "gpu", "gpus-per-node": "2", "cpus-per-task": "8", "mem": "64G", "exclude": "node[1,3],node7"}
    }


@pytest.mark.parametrize(
    ("time", "minutes"),
    [("90", 90), ("90:30", 91), ("4:00:00", 240), ("1-0", 1440), ("2-12:30", 3630), ("1-00:00:01", 1441), ("0:30", 1)],
)
def test_time_is_read_as_sbatch_reads_it(time, minutes):
    assert slurm_options(f"time={time}").minutes == minutes


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("partiton=gpu,time=60", "unknown key 'partiton', did you mean 'partition'"),
        ("gpu", "no key=value"),
        ("time=60,partition=", "no key=value"),
        ("gpus=many,time=60", "gpus is a number of 1 or more"),
        ("partition=gpu", "say how long a job may run"),
        ("time=soon", "is no time"),
        ("time=0", "time is 0"),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_line(text, said):
    with pytest.raises(UserError, match=said) as refused:
        slurm_options(text)
    assert "\n" not in str(refused.value)
