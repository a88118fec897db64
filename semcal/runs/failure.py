"""What a process could not go on with, left in the run folder for whoever looks, until its work is taken up again."""

import os
import socket
import time
from contextlib import suppress
from pathlib import Path

FAILED = "failed.txt"


def write_failure(folder: Path, why: str) -> None:
    """Leave in a run folder who failed of what."""
    by, when = f"process {os.getpid()} on {socket.gethostname()}", time.strftime("%Y-%m-%d %H:%M")
    with suppress(OSError):  # a disk that is full, perhaps
        (folder / FAILED).write_text(f"{by}, {when}: {' '.join(why.split())}\n", encoding="utf-8")


def clear_failure(folder: Path) -> None:
    """Its work is taken up again."""
    with suppress(OSError):
        (folder / FAILED).unlink(missing_ok=True)


def failure_of(folder: Path) -> str:
    """Who failed over a run, when and why, in a line; "" where nobody did since its work was taken up last."""
    try:
        return (folder / FAILED).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError):
        return ""
