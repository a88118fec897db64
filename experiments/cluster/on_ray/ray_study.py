"""A study on a cluster of Ray: an actor per GPU, or per share of the cores, samples shards; the driver hands them out,
writes what comes back as bytes, and analyses each cell once it is whole.

Ray starts the workers and tells which have died; what a worker had in hand goes to another one. What is on disk is all
that the driver knows, so that one that is started again continues.
"""

from __future__ import annotations

import logging
import os
import queue
import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

from rich.console import Console

from experiments.cluster.on_ray.ray_places import Place, connected, fitting, gpus_of, nodes, one_line, place_for
from experiments.cluster.on_ray.ray_progress import Crew, Worker, shown
from experiments.cluster.on_ray.ray_worker import START, Answer, Joined, Orders, ShardWorker
from experiments.cluster.on_ray.shard_queue import Alike, Begin, Sample, ShardQueue, Work
from experiments.config.study import Cell
from experiments.pipeline.progress import Reporter
from experiments.pipeline.run_study import WAIT_S, Prepared, finish_cell, other_weights
from experiments.pipeline.signals import Stopped
from experiments.pipeline.tracking.tracker import tracking
from experiments.report.pages import write_study
from experiments.sample.models import Models
from experiments.sample.run_checks import together
from semcal.errors import UserError
from semcal.runs.failure import clear_failure, write_failure
from semcal.runs.files import sweep, temporary_name

TRIES = 3  # of a piece of work whose workers die
_LOOK_S = 1.0  # at what the threads and Ray have to say
_PATIENCE_S = 60.0  # until a user is told that no worker has begun
_JOIN_S = 10.0  # between looks at whether more workers fit
_OF_NODE = "its node has died"  # what Ray says of a worker that died with its node
_MEMORY = "low on memory"  # of one that it killed, so that its node keeps working
_CARRIED = ("SEMCAL_MODELS", "SEMCAL_DATA")
log = logging.getLogger(__name__)


def run_on_ray(
    prepared: Prepared,
    reporter: Reporter,
    address: str | None = None,
    *,
    cores: int | None = None,
    console: Console | None = None,
) -> None:
    """Sample, capture, score, probe, report and track every cell that is not finished, sampling on a cluster of Ray.

    Args:
        address: HOST:PORT of the cluster; None: that of RAY_ADDRESS or of this machine, or else one that is started
            here and ends with the study.
        cores: Of a worker; None: its share of a node.
        console: Where to show how far the whole study is; None: nowhere.

    Raises:
        UserError: no cluster, or of another version; too few GPUs for a model; workers that die again and again;
            whatever a stage cannot go on with.
    """
    rows = list(zip(prepared.cells, prepared.runs, strict=True))
    sweep(prepared.study.folder)
    try:
        with (
            tracking(prepared.cells, reporter) as reporter,
            shown(prepared, console) as crew,
            _Analyses(rows, reporter) as analyses,
        ):
            todo = [n for n, (cell, run) in enumerate(rows) if not run.sampled or other_weights(cell.model, run)]
            for number in set(range(len(rows))) - set(todo):
                analyses.add(number)
            if todo:
                with connected(address) as stop_if_asked, _token(prepared.study.folder) as token:
                    _sample_all(prepared, todo, _How(token, cores, stop_if_asked, crew), analyses)
            analyses.finish()
    except Stopped as stopped:
        shards = [(len(run.shard_keys()), len(run.missing_shards())) for run in prepared.runs]
        there = sum(n - missing for n, missing in shards)
        begun = f"{sum(n for n, _ in shards)} shards of the cells that were begun"
        stopped.saved = f"{there} of {begun} are saved, and the same command continues"
        raise
    write_study(prepared.study.name, rows, prepared.study.folder)
    sweep(prepared.study.folder)  # what workers left that died with their node


@dataclass(frozen=True)
class _How:
    """
    Attributes:
        token: A file in the folder of the study.
        cores: Of a worker; None: its share of a node.
        stop_if_asked: Raises what a signal is to raise, now and then.
        crew: What is shown of the workers.
    """

    token: str
    cores: int | None
    stop_if_asked: Callable[[], None]
    crew: Crew


def _sample_all(prepared: Prepared, todo: Sequence[int], how: _How, analyses: _Analyses) -> None:
    """Sample these cells: first those of the models that take most GPUs, so that GPUs never have to be put together."""
    import ray  # pyright: ignore[reportMissingImports]

    takes = gpus_of(prepared.study, [prepared.cells[n] for n in todo], nodes(), how.stop_if_asked)
    datasets = {name: ray.put(dataset) for name, dataset in prepared.datasets.items()}
    for gpus in sorted(set(takes.values()), reverse=True):
        groups = _groups(prepared, [n for n in todo if takes[prepared.cells[n].model.name] == gpus])
        orders = Orders(
            cells=prepared.cells,
            folders=tuple(str(run.folder.resolve()) for run in prepared.runs),
            datasets=datasets,
            cwd=os.getcwd(),
            environ={name: os.environ[name] for name in _CARRIED if name in os.environ},
            several=gpus > 1,
        )
        if groups:
            _Crew(prepared, ShardQueue(groups), place_for(gpus, nodes(), how.cores), orders, how).work(analyses)


def _groups(prepared: Prepared, numbers: Sequence[int]) -> list[Alike]:
    """The cells that differ in B alone share their samples."""
    found = []
    for _, some in groupby(numbers, lambda number: prepared.groups[number]):
        cells = tuple(some)
        first = prepared.cells[cells[0]]
        questions = len(prepared.datasets[first.dataset.name].questions)
        found.append(Alike(first.model.name, cells, -(-questions // first.sampling.shard_size)))
    return found


@contextmanager
def _token(folder: Path) -> Iterator[str]:
    """A file by which workers know that the folder of the study is theirs, too."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder.resolve() / temporary_name(f".shared-{secrets.token_hex(8)}")
    path.touch()
    try:
        yield str(path)
    finally:
        path.unlink(missing_ok=True)


# ---- workers ---------------------------------------------------------------------------------------------------------


class _Crew:
    """The workers of one size, and what they are at."""

    def __init__(self, prepared: Prepared, left: ShardQueue, place: Place, orders: Orders, how: _How) -> None:
        import ray  # pyright: ignore[reportMissingImports]

        self._prepared, self._left, self._place, self._how = prepared, left, place, how
        self._orders = ray.put(orders)
        self._workers: list[Worker] = []
        self._calls: dict[Any, Worker] = {}  # by what Ray is to answer
        self._deaths: Counter[Work] = Counter()
        self._lost = 0  # workers that died before they did anything, by themselves, one after the other
        self._looked, self._began, self._told = 0.0, time.monotonic(), False

    def work(self, analyses: _Analyses) -> None:
        """Until all is sampled."""
        import ray  # pyright: ignore[reportMissingImports]

        self._how.crew.workers = self._workers
        try:
            while not self._left.finished:
                self._how.stop_if_asked()
                self._hire()
                self._hand_out()
                analyses.tell()
                if not self._calls:  # all rest, or wait for a cell to be begun
                    time.sleep(_LOOK_S / 10)
                    continue
                for call in ray.wait(list(self._calls), timeout=_LOOK_S)[0]:
                    self._take(call, analyses)
        finally:
            self._how.crew.workers = None
            for worker in self._workers:
                ray.kill(worker.actor)

    def _hire(self) -> None:
        """As many workers as fit into the nodes that are there now."""
        import ray  # pyright: ignore[reportMissingImports]

        if time.monotonic() - self._looked < _JOIN_S:
            return
        self._looked = time.monotonic()
        actor = ray.remote(ShardWorker).options(num_cpus=self._place.cpus, num_gpus=self._place.gpus, max_restarts=0)
        idle = sum(w.doing is None for w in self._workers)
        more = min(fitting(self._place, nodes()) - len(self._workers), self._left.waiting - idle)
        for _ in range(more):
            worker = Worker(actor.remote(self._orders))
            self._workers.append(worker)
            self._calls[worker.actor.join.remote(self._how.token)] = worker
        if time.monotonic() - self._began > _PATIENCE_S and not self._told and not any(w.joined for w in self._workers):
            log.warning("no worker of the cluster has begun yet; `ray status` shows who holds its cores and GPUs")
            self._told = True
        if not self._workers and self._left.waiting:
            has = "no GPU" if self._place.gpus else "fewer cores"
            raise UserError(
                f"no worker of {self._place.cpus} cores and {self._place.gpus} GPUs fits into the cluster, of which "
                f"each node has {has}; `ray status` shows what it has"
            )

    def _hand_out(self) -> None:
        for worker in self._workers:
            free = worker.joined is not None and worker.doing is None and time.monotonic() >= worker.rests_until
            holding = Counter(w.model for w in self._workers if w.model is not None)
            if not free or (found := self._left.next(worker.model, holding)) is None:
                continue
            worker.model, worker.doing = found
            self._calls[self._call(worker, worker.doing)] = worker

    def _call(self, worker: Worker, work: Work) -> Any:
        run = self._prepared.runs[work.cell]
        assert worker.joined is not None
        start = {} if worker.joined.shared or not run.manifest() else run.contents(START)
        if isinstance(work, Begin):
            return worker.actor.begin.remote(work.cell, start)
        return worker.actor.sample.remote(work.cell, work.shard, start)

    def _take(self, call: Any, analyses: _Analyses) -> None:
        """What Ray answers to a call, or that its worker died."""
        import ray  # pyright: ignore[reportMissingImports]
        from ray.exceptions import RayError  # pyright: ignore[reportMissingImports]

        worker = self._calls.pop(call)
        try:
            answer: Any = ray.get(call)
        except RayError as error:  # it died, with its node or alone, or Ray killed it where memory ran short
            ray.kill(worker.actor)  # or something unforeseen was raised in it, after which its GPU may be unusable
            self._bury(worker, error)
            return
        if isinstance(answer, Joined):
            self._lost, worker.joined = 0, answer
            _check_version(answer)
        else:
            self._done(worker, answer, analyses)

    def _bury(self, worker: Worker, error: Exception) -> None:
        """Its work goes to another one.

        Raises:
            UserError: several have failed at it.
        """
        from ray.exceptions import RayTaskError  # pyright: ignore[reportMissingImports]

        self._workers.remove(worker)
        self._looked = 0.0
        why = one_line(str(error))
        if (work := worker.doing) is None:
            self._lost += _OF_NODE not in why
            if self._lost >= TRIES:
                remedy = "free some there" if _MEMORY in why else "is semcal installed on every node?"
                raise UserError(f"workers die before they begin ({why}); {remedy}")
            return
        assert worker.joined is not None
        cell, where = self._prepared.cells[work.cell], f"{worker.joined.host}, log {worker.joined.log or 'unknown'}"
        what = f"{cell.label}, shard {work.shard}" if isinstance(work, Sample) else cell.label
        how = f"failed ({why})" if isinstance(error, RayTaskError) else "died"
        self._deaths[work] += 1
        if self._deaths[work] >= TRIES:
            raise self._failed(work, f"{what}: {TRIES} workers failed at it, the last on {where}; {why}")
        log.warning("%s: its worker %s on %s; another one goes on with it", what, how, where)
        self._left.back(work)

    def _done(self, worker: Worker, answer: Answer, analyses: _Analyses) -> None:
        work, worker.doing = worker.doing, None
        assert work is not None
        assert worker.joined is not None
        cell, run = self._prepared.cells[work.cell], self._prepared.runs[work.cell]
        for warning in answer.warnings:
            log.warning("%s", warning)
        if answer.refused:
            where = f"on {worker.joined.host}, log {worker.joined.log or 'unknown'}"
            raise self._failed(work, f"{answer.refused} ({where})")
        if not answer.done:  # another process is at it
            worker.rests_until = time.monotonic() + WAIT_S
            self._left.back(work)
            return
        run.take(answer.files)
        if answer.record:
            run.change_manifest(lambda manifest: manifest | together(manifest, answer.record))
        if isinstance(work, Begin):
            missing = self._missing(work.cell)
            analyses.began(work.cell)
            whole = self._left.begun(work, missing)
        else:
            analyses.answered(work.cell, int(work.shard.partition("-")[0]), cell.sampling.shard_size)
            whole = self._left.sampled(work)
        if whole:
            analyses.add(work.cell)

    def _failed(self, work: Work, why: str) -> UserError:
        """The error to raise, which is left in the run folder, too."""
        write_failure(self._prepared.runs[work.cell].folder, why)
        return UserError(why)

    def _missing(self, number: int) -> list[str]:
        """The shards of a cell that was begun which it cannot take over from another cell either."""
        cell, run = self._prepared.cells[number], self._prepared.runs[number]
        alike = [
            other
            for c, other in zip(self._prepared.cells, self._prepared.runs, strict=True)
            if (c.model.name, c.dataset.name, c.style) == (cell.model.name, cell.dataset.name, cell.style)
        ]
        captured = bool(cell.capture.positions)
        return [
            key
            for key in run.missing_shards()
            if not any(run.adopt_shard(other, key, with_activations=captured) for other in alike)
        ]


def _check_version(joined: Joined) -> None:
    from importlib.metadata import version

    if joined.semcal != (ours := version("semcal")):
        raise UserError(f"{joined.host} has semcal {joined.semcal}, here is {ours}; install the same on every node")


# ---- analysis --------------------------------------------------------------------------------------------------------


class _Analyses:
    """Analyses cells one after the other in a thread, so that workers need not wait; what it reports, and what it
    raises, comes out in the main thread."""

    def __init__(self, rows: Sequence[tuple[Cell, Any]], reporter: Reporter) -> None:
        self._rows, self._reporter = rows, reporter
        self._waiting: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._said: queue.SimpleQueue[Callable[[], None]] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._work, daemon=True)  # what it leaves half done is not missed
        self._shown: int | None = None
        self._counted: dict[int, tuple[int, int]] = {}  # cell -> questions asked, and answered so far

    def __enter__(self) -> _Analyses:
        self._thread.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self._waiting.put(None)

    def began(self, number: int) -> None:
        """Workers begin with a cell."""
        _, run = self._rows[number]
        clear_failure(run.folder)
        self._counted[number] = run.manifest()["questions"], run.questions_saved()
        self._show(number)

    def answered(self, number: int, shard: int, size: int) -> None:
        """A shard of so many questions, or what is left for the last one, is sampled."""
        asked, done = self._counted[number]
        questions = min(size, asked - shard * size)
        if self._shown != number:
            self._show(number)
        self._counted[number] = asked, done + questions
        self._reporter.answered(questions)

    def _show(self, number: int) -> None:
        self._reporter.sampling(self._rows[number][0], *self._counted[number])
        self._shown = number

    def add(self, number: int) -> None:
        """A cell is whole."""
        self._waiting.put(number)

    def tell(self) -> None:
        """Report what has happened since.

        Raises:
            UserError: what an analysis could not go on with.
        """
        while not self._said.empty():
            self._said.get()()

    def finish(self) -> None:
        """Wait until all cells are analysed."""
        self._waiting.put(None)
        while self._thread.is_alive():
            self.tell()
            self._thread.join(_LOOK_S / 10)
        self.tell()

    def _work(self) -> None:
        models, later = Models(), _Later(self._said)
        later.inner = self._reporter
        try:
            while (number := self._waiting.get()) is not None:
                cell, run = self._rows[number]
                while not finish_cell(cell, run, models, later):
                    time.sleep(WAIT_S)
                later.finished(cell)
        except BaseException as error:  # whatever it is, the main thread raises it
            self._said.put(lambda error=error: _raise(error))


class _Later(Reporter):
    """Passes everything on to a reporter, when it is asked to."""

    inner: Reporter

    def __init__(self, said: queue.SimpleQueue[Callable[[], None]]) -> None:
        self._said = said

    def stage(self, cell: Cell, what: str) -> None:
        self._said.put(lambda: self.inner.stage(cell, what))

    def left(self, cell: Cell, what: str) -> None:
        self._said.put(lambda: self.inner.left(cell, what))

    def finished(self, cell: Cell) -> None:
        self._said.put(lambda: self.inner.finished(cell))


def _raise(error: BaseException) -> None:
    raise error
