"""Arguments that several commands take."""

from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.terminal.named_paths import checked, pasted
from semcal.errors import UserError


def _existing(named: list[str]) -> list[str]:
    """The paths that were named, each of which exists: said before anything slow is imported."""
    return [str(path) for path in checked(named)]


Sets = Annotated[list[str] | None, typer.Option("--set", help="Override a key of the study, e.g. sampling.m=20.")]
Targets = Annotated[
    list[str],
    typer.Argument(help="Study files, run folders, folders of runs, and globs of them.", callback=_existing),
]
Width = Annotated[
    float | None,
    typer.Option(min=2.5, max=20, help="Width of the figures in inches, e.g. 3.25 for a column of a paper."),
]
Studies = Annotated[
    list[str], typer.Argument(help="Study files, and globs of them; or with --model tables.", callback=_existing)
]


def loaded(named: list[str], overrides: list[str] | None, model: str | None = None) -> list[tuple[Path, Any]]:
    """Each study file with its study; with a model, also the studies that ask it the questions of tables.

    Raises:
        UserError: as `load_swept`; a table without a model, or a model without a table.
    """
    from experiments.config.study import is_study_file
    from experiments.pipeline.tracking.sweeps import load_swept

    tables = [name for name in named if not is_study_file(name)]
    if model is None and tables and Path(tables[0]).is_file():
        raise UserError(
            f"{tables[0]} is no study file; to ask a model the questions of a table: "
            f"{pasted('run', tables[0], '--model', 'PATH')}"
        )
    if model is not None and not tables:
        raise UserError("--model goes with a table of questions; a study names its models itself")
    if model is None:
        return [(Path(name), load_swept(name, overrides or [])) for name in named]
    from experiments.config.own_questions import STUDY, study_of_questions
    from experiments.sample.models import has_chat_template

    studies = {
        name: study_of_questions(Path(name), model, has_chat_template, overrides or [])
        if name in tables
        else load_swept(name, overrides or [])
        for name in named
    }
    return [(study.folder / STUDY if name in tables else Path(name), study) for name, study in studies.items()]
