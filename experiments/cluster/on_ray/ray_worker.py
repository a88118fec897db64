"""What runs in an actor of Ray: it holds one model and samples shards of cells, into the folder of the study where that
is shared, or else into one of its own, of which the files are sent back."""

from __future__ import annotations

import logging
import os
import socket
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

from experiments.config.study import Cell
from experiments.sample.models import Models
from experiments.sample.run_checks import together
from experiments.sample.sample_cell import sample_cell
from experiments.sample.sampling_job import SamplingJob, prepare
from semcal.errors import UserError
from semcal.questions.question import Dataset
from semcal.runs.run import Run

START = ("questions.parquet", "aliases.json", "prompts.parquet", "manifest.json")  # by the last one a run was started
_SEEN_WITHIN_S = 5.0  # network file systems show a new file late


@dataclass(frozen=True)
class Orders:
    """What a worker needs of a study.

    Attributes:
        cells: All of them.
        folders: Of their runs, as the driver sees them.
        datasets: Name -> its questions, or what `fetch` makes them of.
        cwd: Where relative paths of the study begin.
        environ: Variables of the driver that say where models and data are.
        several: Whether a model is spread over several GPUs.
    """

    cells: tuple[Cell, ...]
    folders: tuple[str, ...]
    datasets: Mapping[str, Any]
    cwd: str
    environ: Mapping[str, str]
    several: bool = False


@dataclass(frozen=True)
class Joined:
    """Who has joined. `pid`: its process; `log`: the file that it complains to; `shared`: whether it sees the driver's
    folder."""

    host: str
    pid: int
    log: str
    shared: bool
    semcal: str


@dataclass(frozen=True)
class Answer:
    """What came of a piece of work.

    Attributes:
        done: Whether the shard is sampled; False where another process is at it.
        files: Name in the run folder -> content, where the folder is not shared.
        record: What is to be added to the manifest with them.
        warnings: What was complained about.
        refused: What a user must mend, in a line; "" if nothing.
    """

    done: bool = True
    files: dict[str, bytes] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    refused: str = ""


class ShardWorker:
    """Samples what it is told to; one call at a time."""

    def __init__(self, orders: Orders, fetch: Callable[[Any], Dataset] | None = None) -> None:
        self._orders, self._fetch = orders, fetch or _from_ray
        self._models, self._shared = Models(), True
        self._own: tempfile.TemporaryDirectory[str] | None = None
        self._job: tuple[int, SamplingJob] | None = None
        os.environ.update(orders.environ)
        if Path(orders.cwd).is_dir():
            os.chdir(orders.cwd)  # of this process, which does nothing else

    def join(self, token: str) -> Joined:
        """`token`: a file that the driver has written into the folder of the study."""
        until = time.monotonic() + _SEEN_WITHIN_S
        while not (found := Path(token).is_file()) and Path(token).parent.is_dir() and time.monotonic() < until:
            time.sleep(0.1)
        self._shared = found
        return Joined(socket.gethostname(), os.getpid(), _log_file(), found, version("semcal"))

    def begin(self, cell: int, start: dict[str, bytes]) -> Answer:
        """Write the questions of a cell. `start`: its files, where a run that is not shared was begun before."""
        with _heard() as warnings:
            try:
                job = self._prepared(cell, start)
            except UserError as error:
                return Answer(refused=str(error), warnings=tuple(warnings))
        files = {} if self._shared or start else job.run.contents(START)
        return Answer(files=files, warnings=tuple(warnings))

    def sample(self, cell: int, shard: str, start: dict[str, bytes]) -> Answer:
        """Sample a shard of a cell."""
        with _heard() as warnings:
            try:
                job = self._prepared(cell, start)
                captured = bool(job.cell.capture.positions)
                if not job.run.has_shard(shard, with_activations=captured):
                    model = self._models.of(self._config(cell))
                    sample_cell(replace(job, todo=(shard,)), model, lambda _: None)
            except UserError as error:
                return Answer(refused=str(error), warnings=tuple(warnings))
        done = job.run.has_shard(shard, with_activations=captured)
        if self._shared:
            return Answer(done=done, warnings=tuple(warnings))
        names = [*([f"activations/{shard}.safetensors"] if captured else []), f"samples/{shard}.parquet"]
        files, record = job.run.contents(names), {key: job.run.manifest().get(key) for key in together({}, {})}
        for name in files:
            (job.run.folder / name).unlink()
        job.run.change_manifest(lambda manifest: manifest | together({}, {}))
        return Answer(done=done, files=files, record=record, warnings=tuple(warnings))

    def _config(self, cell: int) -> Any:
        config = self._orders.cells[cell].model
        return config.model_copy(update={"device": "balanced"}) if self._orders.several else config

    def _prepared(self, number: int, start: dict[str, bytes]) -> SamplingJob:
        if self._job is None or self._job[0] != number:
            cell = self._orders.cells[number]
            run = Run(self._orders.folders[number]) if self._shared else self._own_run(start)
            runs = [] if not self._shared else [Run(self._orders.folders[other]) for other in self._alike(cell)]
            model = self._models.of(self._config(number))
            dataset = self._fetch(self._orders.datasets[cell.dataset.name])
            self._job = number, prepare(cell, run, dataset, model, runs)
        return self._job[1]

    def _own_run(self, start: dict[str, bytes]) -> Run:
        if self._own is not None:
            self._own.cleanup()
        self._own = tempfile.TemporaryDirectory(prefix="semcal-")
        run = Run(self._own.name)
        run.take(start)
        if start:
            run.change_manifest(lambda manifest: manifest | together({}, {}))
        return run

    def _alike(self, cell: Cell) -> list[int]:
        """The cells that may share their samples."""
        same = (cell.model.name, cell.dataset.name, cell.style)
        return [n for n, c in enumerate(self._orders.cells) if (c.model.name, c.dataset.name, c.style) == same]


def _from_ray(reference: Any) -> Dataset:
    import ray  # pyright: ignore[reportMissingImports]

    return ray.get(reference)


def _log_file() -> str:
    """The file that this process complains to, where the system can say."""
    try:
        return os.readlink("/proc/self/fd/2")
    except OSError:
        return ""


@contextmanager
def _heard() -> Iterator[list[str]]:
    """The warnings that are logged in the block. The traceback of what is raised out of it goes to the log of this
    process, as Ray writes it to none."""
    heard: list[str] = []
    hearing = logging.Handler(logging.WARNING)
    hearing.emit = lambda record: heard.append(record.getMessage())
    logging.getLogger().addHandler(hearing)
    try:
        yield heard
    except Exception:
        traceback.print_exc()
        raise
    finally:
        logging.getLogger().removeHandler(hearing)
