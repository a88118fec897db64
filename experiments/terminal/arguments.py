"""Arguments that several commands take."""

from pathlib import Path
from typing import Annotated, Any

import typer

Sets = Annotated[list[str] | None, typer.Option("--set", help="Override a key of the study, e.g. sampling.m=20.")]
Targets = Annotated[
    list[str], typer.Argument(help="Study files, run folders, folders of runs, and globs of them.", show_default=False)
]
Studies = Annotated[list[str], typer.Argument(help="Study files, and globs of them.", show_default=False)]


def loaded(studies: list[str], overrides: list[str] | None) -> list[tuple[Path, Any]]:
    """Each study file with its study.

    Raises:
        UserError: see `experiments.config.study.load_study`.
    """
    from experiments.config.study import load_study
    from experiments.terminal.named_paths import matching

    return [(path, load_study(path, overrides or [])) for path in matching(studies)]
