"""Arguments that several commands take."""

from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.terminal.named_paths import checked


def _existing(named: list[str]) -> list[str]:
    """The paths that were named, each of which exists: said before anything slow is imported."""
    return [str(path) for path in checked(named)]


Sets = Annotated[list[str] | None, typer.Option("--set", help="Override a key of the study, e.g. sampling.m=20.")]
Targets = Annotated[
    list[str],
    typer.Argument(help="Study files, run folders, folders of runs, and globs of them.", callback=_existing),
]
Studies = Annotated[list[str], typer.Argument(help="Study files, and globs of them.", callback=_existing)]


def loaded(studies: list[str], overrides: list[str] | None) -> list[tuple[Path, Any]]:
    """Each study file with its study.

    Raises:
        UserError: see `experiments.config.study.load_study`.
    """
    from experiments.config.study import load_study

    return [(Path(study), load_study(study, overrides or [])) for study in studies]
