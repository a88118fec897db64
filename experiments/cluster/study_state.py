"""How far a study is and who is at work on it, read from the names and small files in its run folders.

Knows nothing of models or of Slurm; nothing slow is imported, and no result is read.
"""

from __future__ import annotations

import json
import os
import socket
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from semcal.runs.claims import CLAIMS, LOCK, SUFFIX, holder, is_alive
from semcal.runs.files import newest
from semcal.runs.partial_shard import questions_in

WORKERS = "workers"  # in a study's folder: a file for each process of a job, which names its log
_SAMPLES, _ACTIVATIONS, _PARTIAL = ".parquet", ".safetensors", ".partial.jsonl"


@dataclass(frozen=True)
class Held:
    """A claim of a process on a shard, or on a whole run for its analysis.

    Attributes:
        shard: key of the shard; "" for the run.
        by: the process and its machine, in words.
        silent_s: seconds since the process last gave a sign of life, which it does every 40 s; by the clock of this
            machine.
        dead: whether the process is known to be gone: here; elsewhere, after two minutes of silence.
        log: where the process writes what it has to say; None where that is not known.
    """

    shard: str
    by: str
    silent_s: float
    dead: bool
    log: Path | None

    @property
    def what(self) -> str:
        """What is held, in words."""
        return f"shard {self.shard.partition('-')[0]}" if self.shard else "analysis"


@dataclass(frozen=True)
class CellState:
    """One cell.

    Attributes:
        questions: how many it has; 0 where it was not begun and nobody said so.
        answered: questions that are on disk, with those of unfinished shards.
        shards, finished: how many it has, and how many of them are whole; 0 where it was not begun.
        analysed: whether its results and its page are there.
        held: who is at work on it, or died over it.
    """

    folder: Path
    questions: int
    answered: int
    shards: int
    finished: int
    analysed: bool
    held: tuple[Held, ...]

    @property
    def sampled(self) -> bool:
        return 0 < self.shards == self.finished

    @property
    def words(self) -> str:
        """Its state in a word or two."""
        at_work = [h for h in self.held if not h.dead]
        if not self.sampled:
            done = f" {self.answered / self.questions:.0%}" if self.questions else ""
            return f"sampling{done}" if at_work else f"stopped at{done}" if self.answered else "not begun"
        if any(not h.shard for h in at_work):
            return "in analysis"
        return "finished" if self.analysed else "sampled"


@dataclass(frozen=True)
class StudyState:
    """All cells of a study at one moment.

    Attributes:
        groups: for each cell the number of its group, whose cells share their samples; empty where each has its own.
    """

    cells: tuple[CellState, ...]
    groups: tuple[int, ...] = ()

    @property
    def questions(self) -> int:
        """How many are to be answered; those of a group once."""
        return self._once(lambda cell: cell.questions)

    @property
    def answered(self) -> int:
        return self._once(lambda cell: cell.answered)

    def _once(self, count: Callable[[CellState], int]) -> int:
        most: dict[int, int] = {}
        for group, cell in zip(self.groups or range(len(self.cells)), self.cells, strict=True):
            most[group] = max(most.get(group, 0), count(cell))
        return sum(most.values())

    @property
    def finished(self) -> int:
        """Cells."""
        return sum(cell.sampled and cell.analysed for cell in self.cells)

    @property
    def workers(self) -> dict[str, list[tuple[CellState, Held]]]:
        """What each process that is alive is at work on."""
        found: dict[str, list[tuple[CellState, Held]]] = {}
        for cell in self.cells:
            for held in cell.held:
                if not held.dead:
                    found.setdefault(held.by, []).append((cell, held))
        return found

    @property
    def dead(self) -> list[tuple[CellState, Held]]:
        """What was left by processes that died, and nobody has taken over yet."""
        return [(cell, held) for cell in self.cells for held in cell.held if held.dead]


def study_state(
    folders: Sequence[Path], questions: Sequence[int] | None = None, groups: Sequence[int] = ()
) -> StudyState:
    """The state of a study from its run folders, which need not exist.

    Args:
        questions: how many each cell has, for cells that were not begun.
        groups: see `StudyState`.
    """
    return StudyState(tuple(map(_cell_state, folders, questions or [0] * len(folders))), tuple(groups))


def _cell_state(folder: Path, questions: int) -> CellState:
    manifest = _manifest(folder)
    keys: list[str] = manifest.get("shards", [])
    samples = _names(folder / "samples")
    whole = {name.removesuffix(_SAMPLES) for name in samples if name.endswith(_SAMPLES)}
    if manifest.get("positions"):
        captured = _names(folder / "activations")
        whole &= {name.removesuffix(_ACTIVATIONS) for name in captured if name.endswith(_ACTIVATIONS)}
    asked, size = manifest.get("questions", questions), manifest.get("shard_size", 0)
    finished = [i for i, key in enumerate(keys) if key in whole]
    answered = sum(min(size, asked - i * size) for i in finished)
    for key in keys:
        if key not in whole and f"{key}{_PARTIAL}" in samples:
            answered += partly_answered(folder, key)
    drawn = bool(manifest.get("analysed", {}).get("drawn")) and (folder / "report.html").is_file()
    return CellState(folder, asked, answered, len(keys), len(finished), drawn, held_of(folder))


def _manifest(folder: Path) -> dict[str, Any]:
    try:
        found = json.loads(newest(folder, "manifest.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):  # not begun, or whoever uses the run will be told
        return {}
    return found if isinstance(found, dict) else {}


def _names(folder: Path) -> set[str]:
    try:
        return set(os.listdir(folder))
    except OSError:
        return set()


def partly_answered(folder: Path, shard: str) -> int:
    """How many questions of an unfinished shard of a run are on disk."""
    path = newest(folder, "samples", f"{shard}{_PARTIAL}")
    try:
        at = path.stat()
        return _questions_as_of(path, at.st_size, at.st_mtime_ns)
    except OSError:  # finished meanwhile
        return 0


@lru_cache(maxsize=10_000)
def _questions_as_of(path: Path, *_: int) -> int:
    return questions_in(path)


def held_of(folder: Path) -> tuple[Held, ...]:
    """Who is at work on a run or on a part of it, or died over it."""
    names = [f"{CLAIMS}/{name}" for name in sorted(_names(folder / CLAIMS)) if name.endswith(SUFFIX)]
    found = [_claim(folder, name) for name in (LOCK, *names)]
    return tuple(held for held in found if held is not None)


def _claim(folder: Path, name: str) -> Held | None:
    try:
        silent = time.time() - (folder / name).stat().st_mtime
    except OSError:
        return None
    by = holder(folder, name)
    shard = "" if name == LOCK else name.removeprefix(f"{CLAIMS}/").removesuffix(SUFFIX)
    return Held(shard, by, silent, not is_alive(folder, name), log_of(folder.parent, by))


# ---- logs of workers -------------------------------------------------------------------------------------------------


def name_log(study: Path, log: Path) -> None:
    """Write down where this process, at work on a study, writes what it has to say."""
    place = study / WORKERS / f"process {os.getpid()} on {socket.gethostname()}"
    with suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(str(log), encoding="utf-8")


def log_of(study: Path, by: str) -> Path | None:
    """The log of a process, by the words of its claims."""
    try:
        return Path((study / WORKERS / by).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError):
        return None


def last_words(log: Path) -> str:
    """The last line of a log that says something; "" where there is none."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - 4096))
            lines = stream.read().decode(errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.strip() for line in reversed(lines) if line.strip()), "")
