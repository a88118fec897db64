"""`semcal run STUDY --slurm OPTIONS --jobs N`: submit, or find what was submitted, and follow it to the end."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from rich.console import Console

from experiments.cluster.following import follow
from experiments.cluster.slurm import submit, submitted
from experiments.cluster.slurm_options import slurm_options
from experiments.cluster.study_state import study_state
from experiments.pipeline.run_study import Prepared
from semcal.errors import UserError
from semcal.runs.claims import writing


def run_on_slurm(prepared: Prepared, arguments: Sequence[str], options: str, jobs: int, console: Console) -> None:
    """Run a study by jobs of Slurm, and show its progress until they have ended. Where jobs of an earlier call are
    still there, nothing is submitted, and these are followed.

    Args:
        arguments: of `semcal` in each job: run, the study file, its overrides.
        options: such as "partition=gpu,gpus=1,time=4:00:00".

    Raises:
        UserError: a wrong option, Slurm's refusal, or jobs that all ended before the study was done.
    """
    asked, study = slurm_options(options), prepared.study.folder
    if jobs < 1:
        raise UserError(f"--jobs {jobs}: expected 1 or more")
    study.mkdir(parents=True, exist_ok=True)
    with writing(study):  # two people may submit it
        if found := submitted(study):
            words = f"{len(found.ids)} jobs of array {found.array} are at work on it already; following these"
        else:
            found = submit(study, arguments, asked, jobs)
            words = f"submitted {jobs} jobs as array {found.array}; logs: {found.log(found.ids[0]).parent}"
    console.print(f"{prepared.study.name}: {words}", highlight=False, markup=False, soft_wrap=True)
    folders = [Path(cell.folder) for cell in prepared.cells]
    questions = [len(prepared.datasets[cell.dataset.name].questions) for cell in prepared.cells]
    follow(found, lambda: study_state(folders, questions), console)
