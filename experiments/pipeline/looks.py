"""Looks: what is computed with settings of a command line goes beside the results of a run or study, not over them.

A look is a folder `looks/KEY`, whose key says which settings. That of a run is a run folder itself, which shares the
files of the run that its settings do not change.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from experiments.config.run_folder import LOOKS, STAGES, analysis_part, first_difference, stored_cell
from experiments.config.study import Cell, ProbesConfig, Study, parse
from experiments.pipeline.targets import Target, runs_below
from semcal.errors import UserError
from semcal.runs.files import content_key, finish, link_or_copy, replacing, write_atomically
from semcal.runs.run import Run

# Of the run as it was analysed, or not of the analysis.
_OWN = ("config.yaml", "report.html", "agreement.json", "figures", "interventions", "wandb", LOOKS)


def differs(cell: Cell, run: Run) -> str | None:
    """In which setting of the analysis a cell differs from how its run was analysed; None where in none."""
    old = stored_cell(run)
    return next((d for s in STAGES if (d := first_difference(analysis_part(old, s), analysis_part(cell, s)))), None)


def reading(cell: Cell, activations: Path) -> Cell:
    """The cell with probes that read a file of another tool's activations instead of the run's own.

    Raises:
        UserError: its probes also read the model.
    """
    probes = cell.probes.model_dump() | {"enabled": True, "activations": str(activations.resolve())}
    return cell.model_copy(update={"probes": parse(ProbesConfig, probes, "--activations")})


def look_folder(cell: Cell, run: Run) -> Path:
    """Where the run is analysed with the settings of `cell`."""
    return run.folder / LOOKS / content_key([analysis_part(cell, stage) for stage in STAGES])[:8]


@contextmanager
def look(cell: Cell, run: Run) -> Iterator[tuple[Cell, Run]]:
    """The run in a folder of its own, to be analysed with the settings of `cell`; it is there once the block ends."""
    folder = look_folder(cell, run)
    finish(run.folder)  # else old files would be copied beside new ones
    with replacing(folder.parent) as staged:
        into = staged / folder.name
        for path in run.folder.rglob("*"):
            within = path.relative_to(run.folder)
            if path.is_file() and within.parts[0] not in _OWN and not within.parts[0].startswith("."):
                write_atomically(into / within, lambda p, path=path: link_or_copy(path, p))
        new = Run(into)
        own = cell.model_copy(update={"folder": str(into)})
        new.write_config(stored_cell(run).model_copy(update={"folder": str(into)}).model_dump(mode="json"))
        new.write_manifest(new.manifest() | {"analysed": new.manifest().get("analysed", {}) | {"drawn": False}})
        yield own, new
        new.write_config(cell.model_copy(update={"folder": str(folder)}).model_dump(mode="json"))


def study_folder(study: Study, overrides: Sequence[str]) -> Path:
    """Where a verdict or page of a study goes: its folder, or beside, where what was set on the command line leaves out
    runs in that folder or describes them otherwise than they were run."""
    there = {run.folder.resolve(): run for run in runs_below(study.folder)}
    cells = {Path(cell.folder).resolve(): cell for cell in study.cells()}
    described = [(_described(stored_cell(run)), _described(cells[at])) for at, run in there.items() if at in cells]
    if not overrides or (there.keys() <= cells.keys() and all(old == new for old, new in described)):
        return study.folder
    return study.folder / LOOKS / content_key(sorted(overrides))[:8]


def _described(cell: Cell) -> dict[str, Any]:
    return cell.model_dump(mode="json", exclude={"folder", "tracking"})


def check_stored(targets: Sequence[Target]) -> None:
    """For commands that show stored results, which settings of now do not change.

    Raises:
        UserError: a study that analyses a run otherwise than its results were made.
    """
    for target in (t for t in targets if t.study is not None):
        for cell, run in zip(target.cells(), target.runs, strict=True):
            if run.calibration() and (difference := differs(cell, run)):
                raise UserError(
                    f"{run.folder} holds results made with other settings ({difference}); `semcal score` the same "
                    "study, with the same --set if there is one, makes results with these"
                )
