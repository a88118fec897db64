"""What the user named (study files, run folders, folders of runs, globs) as cells and runs."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.compare.pairs import Scored, scored
from experiments.config.run_folder import LOOKS, check_folder, check_has_samples, stored_cell
from experiments.config.study import Cell, Study, is_study_file, load_study
from experiments.terminal.named_paths import matching, no_run, pasted
from semcal.errors import UserError
from semcal.runs.made_by import again
from semcal.runs.run import Run


@dataclass(frozen=True)
class Target:
    """One thing that the user named: a run, a folder of runs, or a study, whose runs may not exist yet."""

    folder: Path
    runs: tuple[Run, ...]
    study: Study | None = None
    file: Path | None = None  # of the study

    @property
    def is_run(self) -> bool:
        return self.study is None and self.runs[0].folder == self.folder

    def cells(self) -> list[Cell]:
        """The cells as the study file describes them now, or as the run folders hold them."""
        return [stored_cell(run) for run in self.runs] if self.study is None else self.study.cells()


@dataclass(frozen=True)
class Resolved:
    """What was found under the names that the user gave; and which of them hold no run, as globs match figures too."""

    targets: tuple[Target, ...]
    left_out: tuple[str, ...] = ()


def resolve(named: Sequence[str | Path], overrides: Sequence[str] = ()) -> Resolved:
    """One target per study file or folder. Of several names, those without a run are left out.

    Raises:
        UserError: a path that does not exist, no run in any of them, overrides without a study file.
    """
    paths = matching(named)
    if overrides and not all(map(is_study_file, paths)):
        raise UserError("--set needs a study file; the settings of run folders are fixed")
    found, without = [], []
    for path in paths:
        if is_study_file(path):
            study = load_study(path, overrides)
            found.append(Target(study.folder, tuple(Run(Path(cell.folder)) for cell in study.cells()), study, path))
        elif below := runs_below(path):
            found.append(Target(path, tuple(below)))
        elif not path.exists() or len(paths) == 1:
            raise UserError(no_run(path))
        else:
            without.append(path)
    if not found:
        raise UserError(no_run(*paths[:3]))
    return Resolved(tuple(found), (f"no run in {', '.join(map(str, without))}",) if without else ())


def runs_below(path: Path) -> list[Run]:
    """The runs in a folder, itself included; no looks of runs, unless the folder is one or holds nothing else."""
    if not path.is_dir():
        return []
    found = {f.parent for f in path.rglob("config.yaml") if not _is_inside(f.relative_to(path))}
    return [Run(folder) for folder in sorted(found)]


def _is_inside(config: Path) -> bool:
    """Whether it lies in a folder that belongs to a run: its looks, its tracking, or files on their way."""
    return any(part in ("wandb", LOOKS) or part.startswith(".") for part in config.parts[:-1])


def sampled_rows(named: Sequence[str], overrides: Sequence[str]) -> tuple[list[tuple[Cell, Run]], list[str]]:
    """Every cell with its run, ready to be analysed; and why others of a study or a folder of runs are left out.

    Raises:
        UserError: the only run named is not sampled to the end or cannot be read, or none is; see `resolve`.
    """
    rows, found = {}, resolve(named, overrides)
    left_out = [*found.left_out]
    for target in found.targets:
        cells = [None] * len(target.runs) if target.study is None else target.study.cells()
        for cell, run in zip(cells, target.runs, strict=True):
            try:
                rows[run.folder.resolve()] = (_sampled(cell, run, target.file), run)
            except UserError as error:
                if target.is_run and len(found.targets) == 1:
                    raise
                left_out.append(str(error))
    if not rows:
        raise UserError(left_out[len(found.left_out)])
    return list(rows.values()), left_out


def _sampled(cell: Cell | None, run: Run, file: Path | None) -> Cell:
    """The cell of a run, as its study describes it or as it was run."""
    command = f"`{pasted('run', file)}`" if file else again(run.folder)
    if not (run.folder / "config.yaml").is_file():
        raise UserError(f"{run.folder} has not been run yet; {command} first")
    check_has_samples(run)
    cell = cell or stored_cell(run)
    check_folder(cell)
    if not run.sampled:
        missing = len(run.missing_shards()) or "all"
        raise UserError(f"{run.folder} is not fully sampled ({missing} shards missing); {command}")
    return cell


def scored_runs(named: Sequence[str], overrides: Sequence[str] = ()) -> tuple[list[Scored], bool, list[str]]:
    """At least two scored runs; whether each was named on its own; what was left out, and why.

    Raises:
        UserError: one is named twice; fewer than two; see `resolve`.
    """
    found = resolve(named, overrides)
    runs = [run for target in found.targets for run in target.runs]
    rows = [run for run in runs if run.calibration()]
    folders = [run.folder.resolve() for run in rows]
    if twice := next((run.folder for run, at in zip(rows, folders, strict=True) if folders.count(at) > 1), None):
        raise UserError(f"{twice} is named twice; name each run once")
    without = [run.folder for run in runs if not run.calibration()]
    if len(rows) < 2:
        why = f"{without[0]} has not been scored; `{pasted('score', without[0])}`" if without else "name more"
        raise UserError(f"needs two scored runs, found {len(rows)}: {why}, or `semcal run` their study first")
    left_out = [*found.left_out, *not_scored(without)]
    return [scored(run) for run in rows], all(target.is_run for target in found.targets), left_out


def not_scored(folders: Iterable[Path]) -> list[str]:
    """Why these were left out."""
    return [f"{folder}: not scored" for folder in folders]
