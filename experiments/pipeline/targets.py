"""What the user named (study files, run folders, folders of runs, globs) as cells and runs."""

import glob
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.compare.pairs import Scored, scored
from experiments.config.run_folder import LOOKS, check_folder, check_has_samples, stored_cell
from experiments.config.study import Cell, Study, is_study_file, load_study
from semcal.errors import UserError
from semcal.runs.run import Run


@dataclass(frozen=True)
class Target:
    """One thing that the user named: a run, a folder of runs, or a study, whose runs may not exist yet."""

    folder: Path
    runs: tuple[Run, ...]
    study: Study | None = None

    @property
    def is_run(self) -> bool:
        return self.study is None and self.runs[0].folder == self.folder

    def cells(self) -> list[Cell]:
        """The cells as the study file describes them now, or as the run folders hold them."""
        return [stored_cell(run) for run in self.runs] if self.study is None else self.study.cells()


def resolve(named: Sequence[str | Path], overrides: Sequence[str] = ()) -> list[Target]:
    """One target per study file or folder. Of several names, those without a run are skipped: globs match figures too.

    Raises:
        UserError: a path that does not exist, no run in any of them, overrides without a study file.
    """
    paths = [Path(path) for name in named for path in sorted(glob.glob(str(name))) or [str(name)]]
    if overrides and not all(map(is_study_file, paths)):
        raise UserError("--set needs a study file; the settings of run folders are fixed")
    found = []
    for path in paths:
        if is_study_file(path):
            study = load_study(path, overrides)
            found.append(Target(study.folder, tuple(Run(Path(cell.folder)) for cell in study.cells()), study))
        elif below := runs_below(path):
            found.append(Target(path, tuple(below)))
        elif not path.exists() or len(paths) == 1:
            raise UserError(_no_run(path))
    if not found:
        raise UserError(_no_run(*paths[:3]))
    return found


def runs_below(path: Path) -> list[Run]:
    """The runs in a folder, itself included; no looks of runs, unless the folder is one or holds nothing else."""
    if not path.is_dir():
        return []
    found = {f.parent for f in path.rglob("config.yaml") if not _is_inside(f.relative_to(path))}
    return [Run(folder) for folder in sorted(found)]


def _is_inside(config: Path) -> bool:
    """Whether it lies in a folder that belongs to a run: its looks, its tracking, or files on their way."""
    return any(part in ("wandb", LOOKS) or part.startswith(".") for part in config.parts[:-1])


def _no_run(*paths: Path) -> str:
    where = ", ".join(map(str, paths))
    return f"no run at or below {where}; `semcal ls` lists the runs, `semcal run STUDY.yaml` makes them"


def sampled_rows(named: Sequence[str], overrides: Sequence[str]) -> tuple[list[tuple[Cell, Run]], list[str]]:
    """Every cell with its run, ready to be analysed; and why others of a study or a folder of runs are left out.

    Raises:
        UserError: a run named on its own that is not sampled to the end or cannot be read, or none that is; see
            `resolve`.
    """
    rows, left_out = {}, []
    for target in resolve(named, overrides):
        cells = [None] * len(target.runs) if target.study is None else target.study.cells()
        for cell, run in zip(cells, target.runs, strict=True):
            try:
                rows[run.folder.resolve()] = (_sampled(cell, run), run)
            except UserError as error:
                if target.is_run:
                    raise
                left_out.append(str(error))
    if not rows:
        raise UserError(left_out[0])
    return list(rows.values()), left_out


def _sampled(cell: Cell | None, run: Run) -> Cell:
    """The cell of a run, as its study describes it or as it was run."""
    if not (run.folder / "config.yaml").is_file():
        raise UserError(f"{run.folder} has not been run yet; `semcal run` its study first")
    check_has_samples(run)
    cell = cell or stored_cell(run)
    check_folder(cell)
    if not run.sampled:
        missing = len(run.missing_shards()) or "all"
        raise UserError(f"{run.folder} is not fully sampled ({missing} shards missing); `semcal run` its study")
    return cell


def scored_runs(named: Sequence[str], overrides: Sequence[str] = ()) -> tuple[list[Scored], bool, list[Path]]:
    """At least two scored runs; whether each was named on its own; folders left out because they are not scored.

    Raises:
        UserError: a run named on its own that is not scored, or named twice; fewer than two; see `resolve`.
    """
    targets = resolve(named, overrides)
    for target in targets:
        if target.is_run and not target.runs[0].calibration():
            raise UserError(
                f"{target.folder} has not been scored; `semcal run` its study, or `semcal score {target.folder}`"
            )
    runs = [run for target in targets for run in target.runs]
    found = [run for run in runs if run.calibration()]
    folders = [run.folder.resolve() for run in found]
    if twice := next((run.folder for run, at in zip(found, folders, strict=True) if folders.count(at) > 1), None):
        raise UserError(f"{twice} is named twice; name each run once")
    if len(found) < 2:
        raise UserError(f"needs two scored runs, found {len(found)}; name more, or `semcal run` their study first")
    left_out = [run.folder for run in runs if not run.calibration()]
    return [scored(run) for run in found], all(target.is_run for target in targets), left_out
