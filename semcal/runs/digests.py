"""Digests of the files of a run: written down as each file is completed, and compared when it is read, so that a file
that was edited, swapped or cut since then is no result.

They are in `digests.json`: name of a file in the run folder -> SHA-256 of its content, and a second one while the file
is being replaced. It is written before the file gets its name, so that a process may be killed anywhere: a digest of a
file that is not there is of no consequence, and a file is never newer than its digest.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from semcal.errors import UserError
from semcal.runs.claims import writing
from semcal.runs.files import write_atomically
from semcal.runs.made_by import again

DIGESTS = "digests.json"
Digests = dict[str, list[str]]

# What makes a file again, if it is deleted; anything else `semcal run` makes again.
_MADE_BY = {
    "classes.parquet": "score",
    "intermediate.parquet": "score",
    "calibration.json": "score",
    "probe": "probe",
    "learning_curve.parquet": "probe",
    "interventions": "intervene",
    "looks/tilt": "tilt",
    "looks/gates": "gate",
}


@dataclass(frozen=True)
class Unchanged:
    """What comparing the files of a run with their digests shows.

    Attributes:
        same: number of files that are as they were written.
        changed: names of those that are not.
        unknown: names of those whose digest was not written down, by an early version of semcal.
    """

    same: int
    changed: tuple[str, ...]
    unknown: tuple[str, ...]


def digest(path: Path) -> str:
    """SHA-256 of a file's content, read once as long as the file is not touched."""
    at = path.stat()
    return _digest(str(path), at.st_dev, at.st_ino, at.st_size, at.st_mtime_ns, at.st_ctime_ns)


@lru_cache(maxsize=10_000)
def _digest(path: str, *_: int) -> str:
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def read_digests(path: Path) -> Digests:
    """
    Raises:
        UserError: the file is there and cannot be read.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise _unreadable(path) from error
    if not isinstance(found, dict) or not all(isinstance(known, list) for known in found.values()):
        raise _unreadable(path)
    return found


def write_recorded(name: str, path: Path, write: Callable[[Path], object], digests: Callable[[], Path]) -> None:
    """`write_atomically`, and write down the digest of the file.

    Args:
        name: The file's name in the run folder.
        digests: Where the digests are read; they are written beside, by the same way as the file is.
    """
    into = path.parents[name.count("/")] / DIGESTS

    def record(found: list[str]) -> None:
        with writing(into.parent):  # another process may record another file
            text = json.dumps(read_digests(digests()) | {name: found}, indent=1) + "\n"
            write_atomically(into, lambda p: p.write_text(text, encoding="utf-8"))

    new: list[str] = []

    def write_and_record(temporary: Path) -> None:
        write(temporary)
        new.append(digest(temporary))
        record([*new, *before])  # before the file gets its name

    before = (read_digests(digests()).get(name) or [digest(path)]) if path.is_file() else []
    write_atomically(path, write_and_record)
    if before:
        record(new)


def compare(files: Mapping[str, Path], digests: Digests) -> Unchanged:
    """Compare files with what is written down of them."""
    known = {name: path for name, path in files.items() if name in digests}
    changed = tuple(name for name, path in known.items() if digest(path) not in digests[name])
    return Unchanged(len(known) - len(changed), changed, tuple(name for name in files if name not in digests))


def changed(path: Path, name: str, run: Path) -> UserError:
    """The error for a file that is not as it was written."""
    return UserError(f"{path} was changed after semcal wrote it; restore it, or {_remedy(name, run)}")


def _remedy(name: str, run: Path) -> str:
    if name in ("questions.parquet", "prompts.parquet", "aliases.json"):
        return f"delete it and manifest.json, and {again(run)} makes both again"
    command = next((made for start, made in _MADE_BY.items() if name.startswith(start)), None)
    if command == "intervene":
        return f"delete it, and `semcal intervene {run}` makes it again"
    if command is not None:
        return f"`semcal {command} {run}` makes it again"
    return f"delete it, and {again(run)} makes it again"


def _unreadable(path: Path) -> UserError:
    return UserError(f"{path} cannot be read; delete it, and the files of this run are read without being compared")
