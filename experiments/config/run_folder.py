"""The run folder of a cell: opened, or refused where it holds a run of another configuration."""

from __future__ import annotations

from pathlib import Path

from experiments.config.differences import first_difference, sampling_part
from experiments.config.parsing import parse
from experiments.config.study import Cell
from semcal.errors import UserError
from semcal.runs.run import Run


def stored_cell(run: Run) -> Cell:
    """The cell that a run's config.yaml holds, wherever the folder is now.

    Raises:
        UserError: a configuration of another version of semcal.
    """
    return parse(Cell, run.config() | {"folder": str(run.folder)}, str(run.folder / "config.yaml"))


def check_folder(cell: Cell) -> Cell | None:
    """The configuration that the cell's folder was started with; None where nothing was sampled. Writes nothing.

    Raises:
        UserError: the folder holds a run of another configuration.
    """
    run = Run(Path(cell.folder))
    if run.folder.is_file():
        raise UserError(f"{run.folder} is a file; choose another output folder")
    if not (run.folder / "config.yaml").is_file() or not run.manifest():
        return None
    old = stored_cell(run)
    if difference := first_difference(sampling_part(old), sampling_part(cell)):
        raise UserError(
            f"{run.folder} holds a run of another configuration ({difference}); give this study another name or "
            "output, or delete the folder"
        )
    return old


def open_cell(cell: Cell) -> Run:
    """The run folder of a cell, new or existing. Analysis settings may have changed; config.yaml then follows, and
    results stay until new ones replace them.

    Raises:
        UserError: the folder holds a run of another configuration.
    """
    old, run = check_folder(cell), Run(Path(cell.folder))
    if old != cell:
        run.write_config(cell.model_dump(mode="json"))
    return run
