"""The paths that a user named, and commands to paste that name them. Knows no run and no study."""

import glob
import shlex
from collections.abc import Sequence
from pathlib import Path

from semcal.errors import UserError, nearest

STUDY_FILES = (".yaml", ".yml")
TABLES = {".jsonl": "jsonl", ".json": "jsonl", ".csv": "csv", ".tsv": "csv", ".parquet": "parquet"}  # kind of dataset


def matching(named: Sequence[str | Path]) -> list[Path]:
    """The paths that names stand for, in which * and ? are taken as a shell takes them: some shells leave that to the
    command, and some users quote. A name that is a path or matches nothing stands for itself."""
    found = []
    for name in map(str, named):
        found += [name] if Path(name).exists() else sorted(glob.glob(name)) or [name]
    return [Path(name) for name in found]


def checked(named: Sequence[str | Path]) -> list[Path]:
    """The same, before anything slow is imported.

    Raises:
        UserError: a path that does not exist.
    """
    paths = matching(named)
    if missing := next((path for path in paths if not path.exists()), None):
        raise UserError(_no_file(missing) if _is_file(missing) else no_run(missing))
    return paths


def _is_file(path: Path) -> bool:
    """Whether a study or a table of questions is meant, by its name."""
    return path.suffix.lower() in (*STUDY_FILES, *TABLES)


def _no_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"no file {path}; there is no folder {path.parent}"
    return f"no file {path}{nearest(path.name, [p.name for p in path.parent.iterdir() if _is_file(p)])}"


def pasted(command: str, *paths: str | Path) -> str:
    """A command of semcal that can be pasted into a shell."""
    return shlex.join(["semcal", *command.split(), *map(str, paths)])


def no_run(*paths: Path) -> str:
    """The message where none of these holds a run."""
    where = ", ".join(map(str, paths))
    near = next((folder for path in paths for folder in path.parents if folder.is_dir()), Path("."))
    return f"no run at or below {where}; `{pasted('ls', near)}` lists the runs, `semcal run STUDY.yaml` makes them"
