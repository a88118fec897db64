"""`semcal run STUDY --slurm OPTIONS --jobs N`: submit, or find what was submitted, and follow it to the end.

The jobs run the study as it was when they were submitted, from a file of their own: what becomes of the user's file
while they wait, or before they are queued again, does not reach them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from rich.console import Console

from experiments.cluster.following import follow
from experiments.cluster.slurm import FOLDER, Submitted, submit, submitted
from experiments.cluster.slurm_options import slurm_options
from experiments.cluster.study_state import study_state
from experiments.config.run_folder import first_difference
from experiments.config.study import Study, load_study
from experiments.pipeline.run_study import Prepared
from semcal.errors import UserError
from semcal.runs.claims import writing
from semcal.runs.files import write_atomically


def run_on_slurm(prepared: Prepared, options: str, jobs: int, console: Console) -> None:
    """Run a study by jobs of Slurm, and show its progress until they have ended. Where jobs of an earlier call are
    still there, nothing is submitted, and these are followed.

    Args:
        options: such as "partition=gpu,gpus=1,time=4:00:00".

    Raises:
        UserError: a wrong option, Slurm's refusal, jobs of an earlier call that run the study with other settings, or
            jobs that all ended before the study was done.
    """
    asked, study = slurm_options(options), prepared.study.folder
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: expected 1 or more")
    with writing(study):  # two people may submit it
        if found := submitted(study):
            _check_same(prepared.study, found)
            words = f"{len(found.ids)} jobs of array {found.array} are at work on it already; following these"
        else:
            found = submit(study, ["run", str(save(prepared.study))], asked, jobs)
            words = f"submitted {jobs} jobs as array {found.array}; logs: {found.log(found.ids[0]).parent}"
    console.print(f"{prepared.study.name}: {words}", highlight=False, markup=False, soft_wrap=True)
    folders = [Path(cell.folder) for cell in prepared.cells]
    questions = [len(prepared.datasets[cell.dataset.name].questions) for cell in prepared.cells]
    follow(found, lambda: study_state(folders, questions, prepared.groups), console)


def submitted_file(study: Study) -> Path:
    """The file that the jobs of a study run."""
    return (study.folder / FOLDER / "study.yaml").resolve()


def save(study: Study) -> Path:
    """Write the file that the jobs run. Relative paths in it begin where they did, at the working folder, in which the
    jobs start."""
    path, settings = submitted_file(study), study.model_dump(mode="json", exclude_unset=True)
    text = yaml.safe_dump(settings, sort_keys=False, allow_unicode=True)
    write_atomically(path, lambda file: file.write_text(text, encoding="utf-8"))
    return path


def _check_same(study: Study, found: Submitted) -> None:
    if not (file := submitted_file(study)).is_file():
        return
    before, now = (_numbered(each.model_dump(mode="json")) for each in (load_study(file), study))
    if difference := first_difference(before, now):
        raise UserError(
            f"{study.name}: the jobs of array {found.array} run it as it was submitted ({difference}); wait until they "
            f"have ended, or cancel them by `scancel {found.array}`, and run the same command again"
        )


def _numbered(value: Any) -> Any:
    """Lists as mappings by number, so that the difference of two is that of their items."""
    if isinstance(value, list):
        value = {str(i): item for i, item in enumerate(value)}
    return {key: _numbered(item) for key, item in value.items()} if isinstance(value, dict) else value
