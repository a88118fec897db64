"""Hears what happens in a study and tells W&B: a run opened when a cell starts, fed while it goes, closed when it is
done."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from experiments.config.study import Cell
from experiments.pipeline.progress import Reporter
from experiments.pipeline.signals import Stopped
from experiments.pipeline.tracking.artifacts import STAGES, checkpoint_artifact, stage_artifact
from experiments.pipeline.tracking.capped_tables import Capped, question_table, sample_table
from experiments.pipeline.tracking.names import figures, layer_curve, settings, tags, trajectory
from experiments.pipeline.tracking.running import RunningFigures
from experiments.pipeline.tracking.session import STOPPED_S, About, JobType, Session, open_session
from semcal.runs.files import content_key
from semcal.runs.run import Run

LINE_S = 2.0  # seconds between two lines of the progress of sampling
MOST_LINES = 1_000_000  # of history that one process logs of a cell
RUNNING_S, SHARE = 30.0, 0.02  # between two readings of the answers so far, which take at most this share of the time
STARTS = ("scoring", "probing", "drawing")  # what is said when a stage starts; further words tell how far it is
_JOBS: dict[str, JobType] = {"scoring": "score", "probing": "probe"}  # what a stage that comes first makes of a run
_OF_SAMPLING = "sampling/questions"


@contextmanager
def tracking(cells: Iterable[Cell], reporter: Reporter) -> Iterator[Reporter]:
    """The reporter, and W&B beside it for cells that are tracked."""
    if all(cell.tracking.wandb == "disabled" for cell in cells):
        yield reporter
        return
    tracker = Tracker(reporter)
    try:
        yield tracker
    except BaseException as error:
        tracker.stopped(error)
        raise


class Tracker(Reporter):
    """Passes everything on. Each cell is one run of W&B, however often it is stopped, resumed or scored again; a cell
    in which nothing has changed since it was logged opens none."""

    def __init__(self, inner: Reporter, clock: Callable[[], float] = time.monotonic) -> None:
        self._inner, self._clock = inner, clock
        self._session, self._folder = Session(None), ""
        self._running: RunningFigures | None = None
        self._began = self._line_due = self._running_due = 0.0
        self._asked = self._done = self._before = 0

    def sampling(self, cell: Cell, questions: int, done: int) -> None:
        self._inner.sampling(cell, questions, done)
        self._open(cell, "sample")
        self._session.by("sampling/*", _OF_SAMPLING)
        self._session.by("running/*", "running/questions")
        self._asked, self._done, self._before, self._began = questions, done, done, self._clock()
        self._line_due, self._running_due = self._began, self._began + RUNNING_S
        self._running = RunningFigures.of(cell, Run(cell.folder)) if self._session.is_open else None

    def answered(self, questions: int) -> None:
        self._inner.answered(questions)
        self._done += questions
        now = self._clock()
        if not self._session.is_open or (now < self._line_due and self._done < self._asked):
            return
        rate = (self._done - self._before) / max(now - self._began, 1e-9)
        line = {_OF_SAMPLING: self._done, "sampling/share": self._done / self._asked}
        self._line_due = now + LINE_S
        if self._running is not None and now >= self._running_due:
            line |= self._running.now()
            self._running_due = self._clock() + max(RUNNING_S, (self._clock() - now) / SHARE)
        self._session.log(line | {"sampling/questions_per_second": rate})

    def stage(self, cell: Cell, what: str) -> None:
        self._inner.stage(cell, what)
        if what in _JOBS and not self._is_of(cell):
            self._open(cell, _JOBS[what])
        if what in STARTS and self._is_of(cell):
            self._show_so_far(Run(cell.folder))

    def _show_so_far(self, run: Run) -> None:
        """What the stages before this one found: once all is sampled, and once it is scored."""
        if self._running is not None and (line := self._running.now()):
            self._session.log(line)
        self._running = None
        if run.calibration():
            self._session.summarise(figures(run))

    def finished(self, cell: Cell) -> None:
        run = Run(cell.folder)
        changed = _key(cell, run) != run.manifest().get("tracked")
        if cell.tracking.wandb != "disabled" and (changed or self._is_of(cell)):
            self._inner.stage(cell, "tracking")
            if not self._is_of(cell):
                self._open(cell, "score")
            whole = self._session.is_open and _log_results(self._session, cell, run)
            self._close(_key(cell, run) if whole else None)
        self._inner.finished(cell)

    def stopped(self, error: BaseException) -> None:
        """Close the run of a cell that is not done; the same command goes on with it."""
        self._session.close(error.code if isinstance(error, Stopped) else 1, STOPPED_S)

    def _is_of(self, cell: Cell) -> bool:
        return self._folder == cell.folder

    def _open(self, cell: Cell, job: JobType) -> None:
        if cell.tracking.wandb == "disabled":
            return
        if self._folder:  # a cell that was left to other processes
            self._close(None)
        run = Run(cell.folder)
        manifest = run.manifest()
        known, first = manifest.get("tracking_id") or secrets.token_hex(4), manifest.get("tracking_step", 0)
        # If this process is killed, the next one counts on above every line that this one has logged.
        begun = {"tracking_id": known, "tracking_step": first + MOST_LINES}
        run.change_manifest(lambda manifest: manifest | begun)
        about = About(known, run.name, job, cell.study, tags(cell, run), settings(cell, run), first)
        self._session, self._folder = open_session(cell.tracking, about, run.folder), cell.folder

    def _close(self, tracked: str | None) -> None:
        self._session.close()
        run = Run(self._folder)
        done = {"tracked": tracked, "tracking_step": self._session.step}
        run.change_manifest(lambda manifest: manifest | done)
        self._session, self._folder = Session(None), ""


def _key(cell: Cell, run: Run) -> str:
    """What was logged of a run: the same key, and nothing has changed."""
    analysed = {stage: key for stage, key in run.manifest().get("analysed", {}).items() if stage != "drawn"}
    return content_key(figures(run), cell.tracking.model_dump(), analysed)


def _log_results(session: Session, cell: Cell, run: Run) -> bool:
    """Everything that a finished cell has to show; whether W&B took it."""
    found = figures(run)
    session.configure(settings(cell, run))
    session.tag(tags(cell, run))
    session.by("probe/*", "layer")
    session.by("trajectory/*", "checkpoint_step")
    for line in layer_curve(run):
        session.log(line)
    if line := trajectory(cell, found):
        session.log(line)
    _log_tables(session, run, found)
    _log_lineage(session, cell, run)
    session.summarise(found)
    return session.is_open


def _log_tables(session: Session, run: Run, found: dict[str, Any]) -> None:
    """Tables and all pictures, in one line of history; what was left out is a headline figure."""
    import wandb

    shown: dict[str, Capped] = {"questions": question_table(run), "samples": sample_table(run)}
    tables = {name: capped.rows for name, capped in shown.items()}
    if not (probes := run.probes()).empty:
        tables["probes"] = probes
    files = sorted((run.folder / "figures").glob("*.png"))
    pictures = {f"figures/{path.stem}": wandb.Image(str(path)) for path in files}
    session.log({f"tables/{name}": wandb.Table(dataframe=rows) for name, rows in tables.items()} | pictures)
    found |= {f"left_out_{name}": capped.left_out for name, capped in shown.items()}


def _log_lineage(session: Session, cell: Cell, run: Run) -> None:
    """Checkpoint and questions are read; of every later stage, the one before is read and it is written."""
    session.reads(checkpoint_artifact(cell, run))
    before = None
    for stage in STAGES:
        if (made := stage_artifact(cell, run, stage)) is None:
            return
        if before is None:
            session.reads(made)
        else:
            if before != "questions":
                session.reads(stage_artifact(cell, run, before))  # pyright: ignore[reportArgumentType]
            session.writes(made)
        before = stage
