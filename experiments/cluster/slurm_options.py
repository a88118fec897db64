"""What `--slurm` asks of the cluster: read from one string, written as options of sbatch."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from semcal.errors import UserError, nearest

EXAMPLE = "partition=gpu,gpus=1,time=4:00:00"
# Key -> option of sbatch.
_FLAGS = {
    **{key: key for key in ("partition", "account", "qos", "constraint", "reservation", "nodelist", "exclude")},
    **{key: key for key in ("gres", "mem")},
    "gpus": "gpus-per-node",
    "cpus": "cpus-per-task",
}
_NUMBERS = ("gpus", "cpus")
_TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")


@dataclass(frozen=True)
class SlurmOptions:
    """Of each job of an array.

    Attributes:
        minutes: time limit.
        flags: option of sbatch, without dashes, -> value.
    """

    minutes: int
    flags: dict[str, str]

    @property
    def cpus(self) -> str | None:
        return self.flags.get(_FLAGS["cpus"])


def slurm_options(text: str) -> SlurmOptions:
    """Read key=value,key=value; a value may hold commas.

    Raises:
        UserError: an unknown key, a value that cannot be one, no time limit.
    """
    known, found = (*_FLAGS, "time"), dict[str, str]()
    for item in re.split(r",(?=[^,=\[\]]+=)", text):
        key, equals, value = item.partition("=")
        if not equals or not value:
            raise UserError(f"--slurm {text}: {item!r} is no key=value; expected something like {EXAMPLE}")
        if key not in known:
            raise UserError(f"--slurm: unknown key {key!r}{nearest(key, known)}; expected one of {', '.join(known)}")
        if key in _NUMBERS and not re.fullmatch(r"[1-9]\d*", value):
            raise UserError(f"--slurm: {key} is a number of 1 or more, not {value!r}")
        found[key] = value
    if "time" not in found:
        raise UserError(
            "--slurm: say how long a job may run, such as time=4:00:00; one that reaches this limit is queued again "
            "and goes on where it was"
        )
    return SlurmOptions(_minutes(found.pop("time")), {_FLAGS[key]: value for key, value in found.items()})


def _minutes(text: str) -> int:
    """A time as sbatch reads it: minutes, minutes:seconds, hours:minutes:seconds, or days-hours[:minutes[:seconds]]."""
    if (found := _TIME.fullmatch(text)) is None:
        raise UserError(f"--slurm: time={text} is no time; expected minutes, hours:minutes:seconds or days-hours")
    days, *parts = (None if part is None else int(part) for part in found.groups())
    given = [part for part in parts if part is not None]
    if days is not None:
        hours, minutes, seconds = (*given, 0, 0)[:3]
    elif len(given) == 3:
        hours, minutes, seconds = given
    else:
        hours, (minutes, seconds) = 0, (*given, 0)[:2]
    whole = math.ceil(((days or 0) * 24 + hours) * 60 + minutes + seconds / 60)
    if not whole:
        raise UserError("--slurm: time is 0; expected the longest that a job may run, such as 4:00:00")
    return whole
