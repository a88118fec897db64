"""Whether a job sees the folder that it was submitted from, found out by a file with a random text: the token.

A job runs this file as a program before anything slow is imported.
"""

from __future__ import annotations

import os
import secrets
import socket
import sys
from pathlib import Path

from semcal.errors import UserError
from semcal.runs.files import write_atomically

TOKEN = "token"
NOT_SHARED = 78  # exit code of a job that does not see the folder


def write_token(folder: Path) -> str:
    """Leave a new token in a folder, in place of an older one.

    Raises:
        UserError: the folder cannot be written.
    """
    token = secrets.token_hex(8)
    write_atomically(folder / TOKEN, lambda path: path.write_text(token, encoding="utf-8"))
    return token


def check_shared(folder: Path, token: str) -> None:
    """
    Raises:
        UserError: what has this path here is not the folder that the token was left in.
    """
    try:
        found = (folder / TOKEN).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError):
        found = ""
    if found != token:
        raise UserError(not_shared(folder, socket.gethostname()))


def not_shared(folder: Path, where: str) -> str:
    """What is wrong, and what to do."""
    return (
        f"{where} does not see {folder} as the machine that submitted the job does; choose a folder that all machines "
        "share: --set output=FOLDER"
    )


def main(folder: str, token: str, working: str) -> int:
    """Exit code of a check of the folder of a study and of the working folder, which relative paths begin at."""
    try:
        check_shared(Path(folder), token)
        if not Path(working).is_dir() or not os.path.samefile(working, "."):
            raise UserError(
                f"{socket.gethostname()} has no folder {working}, from which the job was submitted; submit it from one "
                "that all machines share"
            )
    except UserError as error:
        sys.stderr.write(f"semcal: {error}\n")
        return NOT_SHARED
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
