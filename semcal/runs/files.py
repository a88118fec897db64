"""Files that are there whole or not at all: written under a temporary name and renamed, one by one or as a set. Knows
nothing of runs. numpy, pyarrow and the like are imported where they are used: `semcal ls` reads by this module, and
needs none of them to begin with."""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from semcal.errors import UserError

STAGED, COMPLETE = ".new", ".complete"  # folders in which a set of files is written, and from which it is moved
_TEMPORARY = re.compile(r"\.(\d+)@(.+)\.tmp$")
_ABANDONED_S = 86_400.0
_NO_ROOM = {  # what happened, what to do
    errno.ENOSPC: ("disk full", "free some space"),
    errno.EDQUOT: ("disk quota used up", "free some space"),
    errno.EFBIG: ("file too large", "raise `ulimit -f`"),
}
_CANNOT_WRITE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.ELOOP)


def content_key(*parts: Any) -> str:
    """16 hexadecimal digits that change when any of the parts does."""
    return hashlib.sha256(json.dumps(parts, sort_keys=True, default=str).encode()).hexdigest()[:16]


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let `write` fill a temporary file next to `path`, then rename it. The file's mode follows the umask.

    Raises:
        UserError: the disk is full or the folder cannot be written; no half-written file is left.
    """
    temporary = path.with_name(temporary_name(f".{path.name}"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        with temporary.open("rb") as stream:
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        if complaint := disk_error(path, error):
            raise complaint from error
        raise


def temporary_name(name: str) -> str:
    """A name by which `sweep` knows whose file this is, so that it goes when its process is gone."""
    return f"{name}.{os.getpid()}@{socket.gethostname()}.tmp"


def sweep(folder: Path) -> None:
    """Remove temporary files and folders, also below this folder, whose process is gone: what `kill -9` leaves.

    Whether a process of another machine is gone is not known; its files are removed a day after their last change.
    """
    import psutil

    for path in list(folder.rglob(".*.tmp")):
        if (found := _TEMPORARY.search(path.name)) is None:
            continue
        with suppress(OSError):  # another process sweeps, too
            here = found[2] == socket.gethostname()
            gone = not psutil.pid_exists(int(found[1])) if here else time.time() - path.stat().st_mtime > _ABANDONED_S
            if gone and path.is_dir():
                shutil.rmtree(path)
            elif gone:
                path.unlink()


def is_whole(path: Path) -> bool:
    """Whether a parquet or safetensors file is there and ends where its own account of itself says; the rest of it is
    not read."""
    import pyarrow
    import pyarrow.parquet as pq
    from safetensors import SafetensorError, safe_open

    try:
        if path.suffix == ".parquet":
            pq.read_metadata(path)
        else:
            with safe_open(path, framework="np"):
                pass
    except (pyarrow.ArrowException, SafetensorError, OSError):
        return False
    return True


@contextmanager
def replacing(folder: Path) -> Iterator[Path]:
    """A folder to write new files to, which replace those of the same names below `folder` at the end of the block.

    All of them do or none, whenever the process is killed: one rename, to `folder/.complete`, is the moment. Such files
    are to be read by `newest`, which finds them there as long as they have not been moved to their places. If the block
    fails, the old ones stay.
    """
    staged = folder / temporary_name(STAGED)
    shutil.rmtree(staged, ignore_errors=True)  # of a killed process with the same number
    try:
        yield staged
        if staged.is_dir():
            _publish(staged, folder)
    finally:
        shutil.rmtree(staged, ignore_errors=True)


def _publish(staged: Path, folder: Path) -> None:
    while True:
        finish(folder)
        try:
            os.rename(staged, folder / COMPLETE)
            break
        except OSError as error:
            if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):  # another process was faster
                raise disk_error(folder, error) or error from error
    finish(folder)


def finish(folder: Path) -> None:
    """Move the files of a complete set to their places, as whoever published it did not live to do.

    Raises:
        UserError: the disk is full or the folder cannot be written; the rest is moved by the next call.
    """
    complete = folder / COMPLETE
    if not complete.is_dir():
        return
    try:
        for path in [p for p in complete.rglob("*") if p.is_file()]:
            target = folder / path.relative_to(complete)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(path, target)
        shutil.rmtree(complete)
    except FileNotFoundError:  # another process moves the same files
        return
    except OSError as error:
        raise disk_error(folder, error) or error from error


def newest(folder: Path, *parts: str) -> Path:
    """Where a file of a folder is to be read."""
    complete = folder.joinpath(COMPLETE, *parts)
    return complete if complete.exists() else folder.joinpath(*parts)


def disk_error(path: Path, error: BaseException) -> UserError | None:
    """One line for a disk that is full or cannot be written; None for any other error."""
    code = getattr(error, "errno", None)
    if code is None:  # safetensors and Arrow say it in words
        named = re.search(r"(?i:errno|os error) (\d+)", str(error))
        code = int(named[1]) if named else errno.ENOSPC if "No space left" in str(error) else None
    path = Path(*(part for part in path.parts if not part.startswith(STAGED)))  # the name that it was to have
    if code in _NO_ROOM:
        happened, remedy = _NO_ROOM[code]
        return UserError(f"{happened} while writing {path}; {remedy} and run the same command again")
    if code in (errno.ENOENT, errno.EEXIST) and not path.parent.is_dir():  # the latter: a link to nowhere
        return UserError(f"cannot make the folder {path.parent} ({os.strerror(code)}); choose another output folder")
    if code in _CANNOT_WRITE:
        return UserError(f"cannot write {path} ({os.strerror(code)}); choose another output folder")
    return None


def link_or_copy(source: Path, target: Path) -> None:
    """Give a file a second name, or copy it where the file system has no hard links."""
    try:
        os.link(source, target)
    except OSError:
        target.write_bytes(source.read_bytes())


def plain(value: Any) -> Any:
    """The same value for JSON, which knows neither NaN nor numpy: an undefined figure becomes null."""
    import numpy as np

    if isinstance(value, Mapping):
        return {str(k): plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [plain(v) for v in value]
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
