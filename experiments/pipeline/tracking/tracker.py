"""Hears what happens in a study and tells W&B: a run opened when a cell starts, fed while it goes, closed when it is
done."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

from experiments.config.study import Cell
from experiments.pipeline.progress import Reporter
from experiments.pipeline.signals import Stopped
from experiments.pipeline.tracking.artifacts import STAGES, checkpoint_artifact, stage_artifact
from experiments.pipeline.tracking.capped_tables import Capped, question_table, sample_table
from experiments.pipeline.tracking.names import figures, layer_curve, settings, tags, trajectory
from experiments.pipeline.tracking.running import RunningFigures
from experiments.pipeline.tracking.session import STOPPED_S, About, JobType, Session, open_session
from semcal.runs.claims import claimed
from semcal.runs.files import content_key
from semcal.runs.run import Run

FEEDING = ".tracking"  # claim on the run of W&B of a cell
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


@dataclass
class _Feed:
    """What a cell that this process feeds to W&B is at.

    Attributes:
        held: The claim on its run of W&B, until that is closed.
        running: None where no figures of the questions so far are logged.
        asked, done, before: Questions in all, answered, and answered before its clock began.
    """

    session: Session
    held: ExitStack
    running: RunningFigures | None = None
    began: float | None = None
    line_due: float = 0.0
    running_due: float = 0.0
    asked: int = 0
    done: int = 0
    before: int = 0

    def begin(self, cell: Cell, now: float) -> None:
        """Its clock begins, once."""
        if self.began is None:
            self.session.by("sampling/*", _OF_SAMPLING)
            self.session.by("running/*", "running/questions")
            self.before, self.began, self.line_due, self.running_due = self.done, now, now, now + RUNNING_S
            self.running = RunningFigures.of(cell, Run(cell.folder)) if self.session.is_open else None

    def answered(self, questions: int, clock: Callable[[], float]) -> None:
        self.done += questions
        now = clock()
        if not self.session.is_open or self.began is None or (now < self.line_due and self.done < self.asked):
            return
        rate = (self.done - self.before) / max(now - self.began, 1e-9)
        line = {_OF_SAMPLING: self.done, "sampling/share": self.done / self.asked}
        self.line_due = now + LINE_S
        if self.running is not None and now >= self.running_due:
            line |= self.running.now()
            self.running_due = clock() + max(RUNNING_S, (clock() - now) / SHARE)
        self.session.log(line | {"sampling/questions_per_second": rate})

    def show_so_far(self, run: Run) -> None:
        """What the stages before this one found: once all is sampled, and once it is scored."""
        if self.running is not None and (line := self.running.now()):
            self.session.log(line)
        self.running = None
        if run.calibration():
            self.session.summarise(figures(run))


class Tracker(Reporter):
    """Passes everything on. Each cell is one run of W&B, however often it is stopped, resumed or scored again; a cell
    in which nothing has changed since it was logged opens none. Of several processes at a cell, one at a time feeds its
    run, and the one that comes by when it is finished logs its results."""

    def __init__(self, inner: Reporter, clock: Callable[[], float] = time.monotonic) -> None:
        self._inner, self._clock = inner, clock
        self._feeds: dict[str, _Feed] = {}  # by the folder of the cell
        self._sampled: _Feed | None = None  # of the cell whose questions are being answered

    def sampling(self, cell: Cell, questions: int, done: int) -> None:
        self._inner.sampling(cell, questions, done)
        self._sampled = feed = self._feeds.get(cell.folder) or self._open(cell, "sample")
        if feed is not None:
            feed.asked, feed.done = questions, done
            feed.begin(cell, self._clock())

    def answered(self, questions: int) -> None:
        self._inner.answered(questions)
        if self._sampled is not None:
            self._sampled.answered(questions, self._clock)

    def stage(self, cell: Cell, what: str) -> None:
        self._inner.stage(cell, what)
        feed = self._feeds.get(cell.folder)
        if feed is None and what in _JOBS:
            feed = self._open(cell, _JOBS[what])
        if feed is not None and what in STARTS:
            feed.show_so_far(Run(cell.folder))

    def left(self, cell: Cell, what: str) -> None:
        self._inner.left(cell, what)
        self._close(cell, None)

    def finished(self, cell: Cell) -> None:
        feed = self._feeds.get(cell.folder)
        if feed is None and _to_be_logged(cell):
            feed = self._open(cell, "score", unless_logged=True)
        if feed is not None:
            self._inner.stage(cell, "tracking")
            run = Run(cell.folder)
            whole = feed.session.is_open and _log_results(feed.session, cell, run)
            self._close(cell, _key(cell, run) if whole else None)
        self._inner.finished(cell)

    def stopped(self, error: BaseException) -> None:
        """Close the runs of cells that are not done; the same command goes on with them."""
        for feed in self._feeds.values():
            feed.session.close(error.code if isinstance(error, Stopped) else 1, STOPPED_S / len(self._feeds))
            feed.held.close()

    def _open(self, cell: Cell, job: JobType, *, unless_logged: bool = False) -> _Feed | None:
        """Open the run of a cell; None where it is not tracked, or another process feeds it."""
        if cell.tracking.wandb == "disabled":
            return None
        run, held = Run(cell.folder), ExitStack()
        ours = held.enter_context(claimed(run.folder, FEEDING))
        if not ours or (unless_logged and not _to_be_logged(cell)):
            held.close()
            return None
        manifest = run.manifest()
        known, first = manifest.get("tracking_id") or secrets.token_hex(4), manifest.get("tracking_step", 0)
        # If this process is killed, the next one counts on above every line that this one has logged.
        begun = {"tracking_id": known, "tracking_step": first + MOST_LINES}
        run.change_manifest(lambda manifest: manifest | begun)
        about = About(known, run.name, job, cell.study, tags(cell, run), settings(cell, run), first)
        self._feeds[cell.folder] = feed = _Feed(open_session(cell.tracking, about, run.folder), held)
        return feed

    def _close(self, cell: Cell, tracked: str | None) -> None:
        feed = self._feeds.pop(cell.folder, None)
        if feed is None:
            return
        self._sampled = None if self._sampled is feed else self._sampled
        feed.session.close()
        done = {"tracked": tracked, "tracking_step": feed.session.step}
        Run(cell.folder).change_manifest(lambda manifest: manifest | done)
        feed.held.close()


def _to_be_logged(cell: Cell) -> bool:
    """Whether anything of a tracked cell has changed since it was logged."""
    run = Run(cell.folder)
    return cell.tracking.wandb != "disabled" and _key(cell, run) != run.manifest().get("tracked")


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
