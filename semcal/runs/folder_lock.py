"""One process at a time works on a folder; a second one is told which."""

import fcntl
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from semcal.errors import UserError

LOCK = ".lock"


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder. The lock ends with the process, however that ends.

    Where the file system knows no locks, or the folder cannot be written, nothing is locked.

    Raises:
        UserError: another process works there; it is named.
    """
    try:
        held = _take(folder)
    except BlockingIOError:
        raise UserError(
            f"{folder} is in use by {_holder(folder)}; wait until that has finished, or stop it, and run the same "
            "command again"
        ) from None
    except OSError:
        yield
        return
    try:
        yield
    finally:
        with suppress(OSError):
            (folder / LOCK).unlink()
        os.close(held)


def _take(folder: Path) -> int:
    while True:
        held = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if _is_at(held, folder / LOCK):  # and was not removed by the one who held it just before
                os.ftruncate(held, 0)
                os.write(held, f"process {os.getpid()} on {socket.gethostname()}".encode())
                return held
        except BaseException:
            os.close(held)
            raise
        os.close(held)


def _is_at(held: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(held), path.stat())
    except FileNotFoundError:
        return False


def _holder(folder: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        if name := (folder / LOCK).read_text(encoding="utf-8"):
            return name
    return "another process"
