"""Who is at work on what: one process at a time on a folder, or on a part of what is done there.

A claim is a file that its holder touches every 40 s (filelock's SoftFileLease). It ends with its block. After a process
that was killed, the next one takes it over: at once on the same machine, elsewhere when nobody touched it for two
minutes, by the clock of the one who waits. A claim that names nobody, of a process that was killed before it had
written its name, is removed after some seconds. It needs a file system on which a file can be created by one process
only, and no locks of that file system. A holder that was suspended so long may find that another one did its work, too:
what is protected has to come out alike whoever does it.
"""

from __future__ import annotations

import re
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil
from filelock import SoftFileLease, Timeout

from semcal.errors import UserError

LOCK = ".lock"  # claim on all of a folder
CLAIMS = "claims"  # folder of the claims on parts of a run
WRITING = ".writing"  # held for moments, while files are read, changed and written again
SUFFIX = ".claim"
LEASE_S = 120.0
_MOMENT: dict[str, Any] = {"is_singleton": True, "poll_interval": 0.02}  # a process may hold it several times at once
UNNAMED_S = 5.0  # how long a claim may name nobody: the moment between making the file and writing into it
_TRIES = 2  # the first one may only find out that the holder is dead
_UNNAMED: dict[Path, tuple[tuple[int, int], float]] = {}  # claims that name nobody: which file, and seen since when
_WAITED: dict[Path, SoftFileLease] = {}  # how long a claim has not been touched is known to the object that watches it


@contextmanager
def claimed(folder: Path, name: str = LOCK) -> Iterator[bool]:
    """Whether this process has the claim of this name on a folder, for the time of the block; False where another has.

    Where the folder is not there or cannot be written, nothing can be claimed and nothing is refused.
    """
    path = folder / name
    lease = _WAITED.pop(path, None) or SoftFileLease(path, lease_duration=LEASE_S, timeout=0, thread_local=False)
    try:
        if folder.is_dir():
            _take(lease)
    except Timeout:
        _WAITED[path] = lease
        _remove_unnamed(path)
        yield False
        return
    except OSError:
        pass
    try:
        yield True
    finally:
        with suppress(OSError):
            lease.release()


def part(name: str) -> str:
    """The name of the claim on a part of what is done in a folder."""
    return f"{CLAIMS}/{name}{SUFFIX}"


def _take(lease: SoftFileLease) -> None:
    """
    Raises:
        Timeout: another process has it.
    """
    for attempt in range(_TRIES):
        try:
            lease.acquire()
            return
        except Timeout:
            if attempt == _TRIES - 1:
                raise


def _remove_unnamed(path: Path) -> None:
    """Remove a claim that has named nobody for UNNAMED_S; SoftFileLease waits for such a one forever."""
    try:
        found = path.stat()
        key = found.st_ino, found.st_ctime_ns
        if found.st_size:
            _UNNAMED.pop(path, None)
            return
        seen, since = _UNNAMED.setdefault(path, (key, time.monotonic()))
        if seen != key:
            _UNNAMED[path] = key, time.monotonic()
        elif time.monotonic() - since >= UNNAMED_S:
            path.unlink()
            del _UNNAMED[path]
    except OSError:  # it is gone, and with it what was to be removed
        _UNNAMED.pop(path, None)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder.

    Raises:
        UserError: another process works there; it is named.
    """
    with claimed(folder) as ours:
        if not ours:
            raise UserError(
                f"{folder} is in use by {holder(folder)}; wait until that has finished, or stop it, and run the "
                "same command again"
            )
        yield


def is_alive(folder: Path, name: str = LOCK) -> bool:
    """Whether a claim is there and its holder seems alive: a process of this machine that is there, or one of another
    that touched the claim not long ago, by this machine's clock."""
    try:
        silent = time.time() - (folder / name).stat().st_mtime
    except OSError:
        return False
    found = re.fullmatch(r"process (\d+) on (.+)", holder(folder, name))
    if found and found[2] == socket.gethostname():
        return psutil.pid_exists(int(found[1]))
    return silent <= LEASE_S


def holder(folder: Path, name: str = LOCK) -> str:
    """Who has a claim, in words."""
    with suppress(OSError, UnicodeDecodeError):
        text = (folder / name).read_text(encoding="utf-8")
        found = dict(re.findall(r"^(pid|host)=(.*)$", text, re.MULTILINE))
        if found.keys() == {"pid", "host"}:
            return f"process {found['pid']} on {found['host']}"
    return "another process"


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Read, change and write files of a folder that other processes change, too; the others wait for the moment. A
    block may hold another one of the same folder."""
    with ExitStack() as held:
        with suppress(OSError):  # not to be written: whoever writes there is told
            if folder.is_dir():
                held.enter_context(_moment(folder / WRITING))
        yield


@contextmanager
def _moment(path: Path) -> Iterator[None]:
    """A claim for which one waits."""
    lease = SoftFileLease(path, lease_duration=LEASE_S, **_MOMENT)
    while True:
        try:
            lease.acquire(timeout=UNNAMED_S)
            break
        except Timeout:
            _remove_unnamed(path)
    try:
        yield
    finally:
        lease.release()
