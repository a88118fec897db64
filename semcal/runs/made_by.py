"""The command that makes the runs of a study, kept beside them, so that a message about a run can name it."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

from semcal.runs.files import write_atomically

COMMAND = "command.txt"  # in a study's folder


def write_command(study: Path, command: str) -> None:
    """Keep the command by which the study with this folder was started last."""
    if _kept(study) != command:
        write_atomically(study / COMMAND, lambda path: path.write_text(f"{command}\n", encoding="utf-8"))


def again(run: Path) -> str:
    """The command that makes again what is missing of a run, or, where it is not known, words for it."""
    command = _kept(run.parent)
    return f"`{command}`" if command else "`semcal run` its study"


def _kept(study: Path) -> str:
    with suppress(OSError, UnicodeDecodeError):
        return (study / COMMAND).read_text(encoding="utf-8").strip()
    return ""
