"""A study as an array of Slurm's jobs: submitted through submitit, asked after, cancelled.

Each job runs the same command, and claims share the work among them. What submitit writes is in STUDY/slurm, with a log
for each job: among it pickles of the command, which only the jobs themselves read.
"""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from contextlib import redirect_stderr, suppress
from dataclasses import dataclass
from io import StringIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.cluster.shared_folder import write_token
from experiments.cluster.slurm_options import SlurmOptions
from experiments.cluster.study_state import name_log
from experiments.pipeline.tracking.sweeps import PARAMETERS
from semcal.errors import UserError
from semcal.runs.files import write_atomically

if TYPE_CHECKING:
    from submitit.helpers import DelayedSubmission

FOLDER = "slurm"  # in a study's folder
_SUBMITTED = "submitted.json"
_WARNING_S = 120  # at most, from Slurm's warning to the time limit
_TIMEOUTS = 1000  # how often a job may run into its time limit
_PATIENCE_S = 5.0  # for an answer of Slurm to a look; the next look asks again
_LONG_S = 60.0
_COLUMNS = {"JobArrayID": 60, "State": 24, "exit_code": 12, "RestartCnt": 12, "Reason": 100, "NodeList": 200}  # widths
# Slurm's "Job Reason Codes" of requests that no waiting helps: a limit on one job, or what is not there or not allowed.
# Not of limits on all jobs of a user, an account or a group, which are waited for.
_HOPELESS = re.compile(
    r"Partition(Time|Node)Limit|BadConstraints|Invalid(Account|QOS)|(Account|QOS)NotAllowed|QOSMin\w+"
    r"|(Assoc|QOS)Max\w+Per(Job|Node)\w*|DependencyNeverSatisfied"
)
_ENDED = (
    *("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "LAUNCH_FAILED", "NODE_FAIL", "OUT_OF_MEMORY"),
    *("PREEMPTED", "REVOKED", "TIMEOUT"),
)
COMPLETED, PENDING, GONE = "COMPLETED", "PENDING", "GONE"


@dataclass(frozen=True)
class Worker:
    """What a job does: the command `semcal` with these arguments, in this process.

    When Slurm warns that the time is up, submitit ends the process, which gives its claims back, and queues the job
    again; it goes on with what is on disk.
    """

    arguments: tuple[str, ...]
    study: str

    def __call__(self) -> None:
        from submitit import JobEnvironment

        name_log(Path(self.study), JobEnvironment().paths.stdout)
        os.environ.pop(PARAMETERS, None)  # the study that was saved is that of the point already
        sys.argv = ["semcal", *self.arguments]
        from experiments.cli import main

        main()

    def checkpoint(self) -> DelayedSubmission:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


@dataclass(frozen=True)
class Submitted:
    """An array of jobs.

    Attributes:
        study: folder of the study.
        ids: of the jobs, as Slurm writes them.
    """

    study: Path
    ids: tuple[str, ...]

    @property
    def array(self) -> str:
        return self.ids[0].partition("_")[0]

    def log(self, job: str) -> Path:
        from submitit.core.utils import JobPaths

        return Path(JobPaths(self.study / FOLDER, job).stdout)


@dataclass(frozen=True)
class Job:
    """
    Attributes:
        state: as Slurm calls it; `GONE` where Slurm has forgotten it.
        exit_code: 0 while it has none.
        signal: the number of the signal that killed it, or 0.
        restarts: how often it was queued again.
        node: where it runs or ran; "" while it waits.
        reason: why it waits, in Slurm's word; "" if it does not, or Slurm does not know yet.
    """

    id: str
    state: str
    exit_code: int = 0
    signal: int = 0
    restarts: int = 0
    node: str = ""
    reason: str = ""

    @property
    def ended(self) -> bool:
        return self.state in (*_ENDED, GONE)

    @property
    def hopeless(self) -> bool:
        """Whether it waits for what no waiting brings."""
        return self.state == PENDING and _HOPELESS.fullmatch(self.reason) is not None


def submit(study: Path, arguments: Sequence[str], options: SlurmOptions, jobs: int) -> Submitted:
    """Queue an array of jobs that each run `semcal` with these arguments.

    Raises:
        UserError: Slurm or submitit is not here; Slurm's refusal.
    """
    check_slurm()
    from submitit import SlurmExecutor

    study = study.resolve()
    folder = study / FOLDER
    check = [sys.executable, "-m", "experiments.cluster.shared_folder", str(study), write_token(study), os.getcwd()]
    executor = SlurmExecutor(folder, max_num_timeout=_TIMEOUTS)
    executor.update_parameters(
        job_name=f"semcal-{study.name}",
        time=options.minutes,
        signal_delay_s=min(_WARNING_S, options.minutes * 60 // 4),
        setup=[f"{shlex.join(check)} || exit $?"],
        srun_args=[f"--cpus-per-task={options.cpus}"] if options.cpus else None,
        stderr_to_stdout=True,
        array_parallelism=jobs,
        wckey=None,
        additional_parameters={**options.flags, "requeue": True},
    )
    worker = Worker(tuple(arguments), str(study))
    try:
        with redirect_stderr(StringIO()), executor.batch():  # what it copies there is in its error
            queued = [executor.submit(worker) for _ in range(jobs)]
    except RuntimeError as error:  # submitit's own, with what sbatch said
        raise UserError(f"Slurm refused: {_said(str(error)) or type(error).__name__}") from error
    found = Submitted(study, tuple(job.job_id for job in queued))
    write_atomically(folder / _SUBMITTED, lambda path: path.write_text(json.dumps(found.ids), encoding="utf-8"))
    return found


def submitted(study: Path) -> Submitted | None:
    """The jobs that were submitted for a study and have not all ended; None where there are none.

    Raises:
        UserError: Slurm is not here, or does not answer.
    """
    check_slurm()
    study = study.resolve()
    try:
        found = Submitted(study, tuple(json.loads((study / FOLDER / _SUBMITTED).read_text(encoding="utf-8"))))
    except (OSError, ValueError):
        return None
    if (jobs := jobs_of(found, _LONG_S)) is None:
        raise UserError(f"Slurm does not say whether the jobs of array {found.array} have ended; try again in a minute")
    return None if all(job.ended for job in jobs) else found


def check_slurm() -> None:
    """
    Raises:
        UserError: Slurm or submitit is not here.
    """
    if missing := [name for name in ("sbatch", "srun", "squeue", "scancel") if shutil.which(name) is None]:
        raise UserError(
            f"--slurm needs Slurm's {', '.join(missing)}, not found here; submit from a machine of the cluster, or use "
            "--shard i/n"
        )
    try:
        import submitit  # noqa: F401
    except ImportError as error:
        raise UserError(f"--slurm needs {error.name}; pip install 'semcal[slurm]'") from error


def jobs_of(array: Submitted, patience_s: float = _PATIENCE_S) -> tuple[Job, ...] | None:
    """The jobs of an array as Slurm sees them; None where Slurm does not answer in time."""
    which = ("--noheader", "--array", "--states=all", f"--jobs={array.array}")
    columns = ",".join(f"{name}:{width}" for name, width in _COLUMNS.items())
    asked = _slurm("squeue", *which, "-O", columns, patience_s=patience_s)
    if asked is None or (asked.returncode and "Invalid job id" not in asked.stderr):
        return None
    found = {job.id: job for job in map(_job, filter(str.strip, asked.stdout.splitlines()))}
    return tuple(found.get(job, Job(job, GONE)) for job in array.ids)


def cancel(array: Submitted, *, waiting_only: bool = False) -> None:
    """Cancel the jobs of an array, or those of them that have not begun."""
    _slurm("scancel", *(["--state=PENDING"] if waiting_only else []), array.array)


def _job(line: str) -> Job:
    found, at = [], 0
    for width in _COLUMNS.values():
        found.append(line[at : at + width].strip())
        at += width
    name, state, code, restarts, reason, node = found
    status = int(code) if code.isdigit() else 0
    waits_for = reason if state == PENDING and reason != "None" else ""
    return Job(name, state, status >> 8, status & 127, int(restarts or 0), node, waits_for)


def _slurm(*command: str, patience_s: float = _PATIENCE_S) -> subprocess.CompletedProcess[str] | None:
    """What a command of Slurm answers; None where it takes too long."""
    with suppress(subprocess.TimeoutExpired, OSError):
        keep: dict[str, Any] = {"capture_output": True, "text": True, "timeout": patience_s, "check": False}
        return subprocess.run(command, **keep)
    return None


def _said(text: str) -> str:
    """What sbatch wrote, in one line."""
    lines = [line.strip().removeprefix("sbatch: ").removeprefix("error: ") for line in text.splitlines()]
    return "; ".join(dict.fromkeys(line for line in lines if line))
