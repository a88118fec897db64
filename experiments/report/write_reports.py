"""Figures and pages drawn again from what run folders hold: of one run, of a study, of a folder of runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from experiments.config.parsing import is_study_file, load_study
from experiments.config.study import Cell
from experiments.pipeline.cell import stored_cell
from experiments.pipeline.run_study import find_runs
from experiments.report.run_page import write_report
from experiments.report.study_page import write_study
from semcal.errors import UserError
from semcal.runs.run import Run


def report_on(
    target: str, overrides: Sequence[str] = (), tell: Callable[[Cell, str], None] = lambda *_: None
) -> tuple[Path, list[Path]]:
    """Draw the page of a run; or, of a study file or a folder of runs, the page of each run and one of all.

    Returns:
        The page, and the runs that it leaves out since they have not been scored.

    Raises:
        UserError: no run, or none that was scored.
    """
    if overrides and not is_study_file(target):
        raise UserError("--set goes with a study file, not with run folders")
    folder = Path(target)
    if (folder / "config.yaml").is_file():
        runs = [Run(folder)]
    elif is_study_file(target):
        study = load_study(target, overrides)
        folder, runs = study.folder, [Run(Path(cell.folder)) for cell in study.cells()]
    else:
        runs = find_runs([target])
    scored = [run for run in runs if run.calibration()]
    if not scored:
        raise UserError(f"{target}: no run of it has been scored; `semcal run` its study first")
    rows = [(stored_cell(run), run) for run in scored]
    for cell, run in rows:
        tell(cell, "drawing")
        write_report(cell, run)
    if runs[0].folder != folder:
        write_study(folder.resolve().name, rows, folder)
    return folder / "report.html", [run.folder for run in runs if not run.calibration()]


def refresh_study(target: str, overrides: Sequence[str]) -> None:
    """Draw the page of a study again, whose runs have just been."""
    study = load_study(target, overrides)
    runs = [Run(Path(cell.folder)) for cell in study.cells()]
    write_study(study.name, [(stored_cell(run), run) for run in runs], study.folder)
