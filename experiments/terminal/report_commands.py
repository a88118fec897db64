"""Commands that show what is stored: report, ls."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from experiments.terminal.arguments import Sets, Targets, Width
from experiments.terminal.fitted_table import FittedTable
from experiments.terminal.output import output
from experiments.terminal.run_list import TITLES, Listed, at_work, listed, rows_of, run_folders
from semcal.errors import UserError
from semcal.runs.made_by import again


def report(targets: Targets, set: Sets = None, width: Width = None) -> None:
    """Draw figures and pages again from stored results: of runs, and of a study or a folder of runs as one page. With
    other runs by --set than those in the study's folder, that page goes to looks/ there."""
    from experiments.pipeline.looks import check_stored
    from experiments.pipeline.run_study import report_on
    from experiments.pipeline.targets import not_scored, resolve

    found = resolve(targets, set or [])
    check_stored(found.targets)
    reported, without = [], []
    with output().screen(sum(len(target.runs) for target in found.targets)) as screen:
        for target in found.targets:
            if len(found.targets) > 1 and target.is_run and not target.runs[0].calibration():
                without.append(target.folder)
                continue
            reported.append(report_on(target, set or [], screen.stage, width))
    if not reported:
        raise UserError(f"{without[0]} has not been scored; {again(without[0])} first")
    output().written(page for page, _ in reported)
    output().left_out([*found.left_out, *not_scored([*without, *(f for _, left in reported for f in left)])])


def ls(
    folders: Annotated[
        list[str] | None, typer.Argument(help="Folders to search, run folders, study files, globs; default: runs.")
    ] = None,
) -> None:
    """List runs, their state and headline figures; who is at work on them; what failed, and why."""
    found, left_out = _named(folders or ["runs"])
    table = FittedTable(TITLES, left=2, first_out=("n", "KL gap", "excess"))
    for cells in rows_of(found):
        table.add_row(*cells)
    output().show(table)
    for line in at_work(found):
        output().explain(line)
    output().record(runs=[_record(run) for run in found])
    output().left_out([run.problem for run in found if run.problem] + left_out)


def _named(names: list[str]) -> tuple[list[Listed], list[str]]:
    """The runs under these names, each once, and what holds none."""
    from experiments.terminal.named_paths import matching, no_run

    paths, found, without = matching(names), dict[Path, Listed](), []
    for path in paths:
        folders = _of_study(path) if path.suffix in (".yaml", ".yml") and path.is_file() else run_folders(path)
        found |= {folder.resolve(): listed(folder) for folder in folders}
        if not folders:
            if not path.exists() or len(paths) == 1:
                raise UserError(no_run(path))
            without.append(path)
    if not found:
        raise UserError(no_run(*paths[:3]))
    return list(found.values()), [f"no run in {', '.join(map(str, without))}"] if without else []


def _of_study(file: Path) -> list[Path]:
    """The run folders of the cells of a study, or what was kept of them without texts."""
    from experiments.config.run_folder import run_of
    from experiments.config.study import load_study

    return [run_of(cell).folder for cell in load_study(file).cells()]


def _record(run: Listed) -> dict[str, Any]:
    held = [{"what": h.what, "by": h.by, "silent_s": h.silent_s, "dead": h.dead, "log": h.log} for h in run.held]
    also = {"problem": run.problem, "failed": run.failed, "held": held}
    return {"folder": run.folder, "state": run.state, **run.figures} | {
        key: value for key, value in also.items() if value
    }
