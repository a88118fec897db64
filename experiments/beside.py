"""A second process beside this one: cells are analysed there while the next one is sampled here."""

from __future__ import annotations

import logging
import os
import signal
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from typing import TYPE_CHECKING, Any

import torch
from threadpoolctl import threadpool_limits

from semcal.errors import UserError

if TYPE_CHECKING:
    from experiments.config import Cell
    from semcal.store import Run

log = logging.getLogger(__name__)


@contextmanager
def threads(count: int) -> Iterator[None]:
    """So many threads for torch and for the libraries under numpy."""
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        with threadpool_limits(count):
            yield
    finally:
        torch.set_num_threads(before)


class SecondProcess:
    """Does `work` on cells and their runs, with as many threads as this process has.

    What it logs is logged here when the cell is done. If the block it is opened in ends by an exception, or this
    process dies, it is stopped where it is. If it cannot be started, or is killed, its cells are given back.
    """

    def __init__(self, work: Callable[[Cell, Run], None]) -> None:
        self._work = work  # pickled
        self._pool: ProcessPoolExecutor | None = None
        self._pid = 0
        self._given: dict[Future[_Done], tuple[Cell, Run]] = {}
        self._given_back: list[tuple[Cell, Run]] = []
        self.usable = True

    def __enter__(self) -> SecondProcess:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: Any) -> None:
        if self._pool is None:
            return
        self._pool.shutdown(wait=error is None, cancel_futures=True)
        if error is not None and self._pid:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGTERM)

    def submit(self, cell: Cell, run: Run) -> None:
        try:
            if self._pool is None:
                self._start()
            assert self._pool is not None
            self._given[self._pool.submit(_do, self._work, torch.get_num_threads(), cell, run)] = cell, run
        except BrokenProcessPool:
            self._broken()
            self._given_back.append((cell, run))

    def finished(self) -> Iterator[tuple[Cell, Run]]:
        """What is done and was not told of yet; raises what the work has raised."""
        for future in [f for f in self._given if f.done()]:
            given = self._given.pop(future)
            try:
                done = future.result()
            except BrokenProcessPool:
                self._broken()
                self._given_back.append(given)
                continue
            for record in done.records:
                logging.getLogger(record.name).handle(record)
            if done.error is not None:
                raise done.error
            yield given

    def rest(self) -> Iterator[tuple[Cell, Run, bool]]:
        """What was not told of yet, and whether it is done: what has not begun there is left to the caller, the last of
        it first."""
        while self._given or self._given_back:
            if (mine := self._taken_back()) is not None:
                yield *mine, False
            else:
                wait(self._given, return_when=FIRST_COMPLETED)
            for given in self.finished():
                yield *given, True

    def _taken_back(self) -> tuple[Cell, Run] | None:
        if self._given_back:
            return self._given_back.pop()
        for future in reversed(self._given):
            if future.cancel():
                return self._given.pop(future)
        return None

    def _start(self) -> None:
        self._pool = ProcessPoolExecutor(1, get_context("spawn"), _end_with_parent)  # a fork inherits locks of threads
        with _interrupts_ignored():  # the new process inherits that: Ctrl-C reaches both, and this one ends the other
            first = self._pool.submit(os.getpid)
        self._pid = first.result()

    def _broken(self) -> None:
        if self.usable:
            log.warning(
                "the second process, which analyses, could not be started or was killed (for want of memory, or in a "
                'script without `if __name__ == "__main__":`); going on with one'
            )
        self.usable = False


@dataclass(frozen=True)
class _Done:
    records: list[logging.LogRecord]
    error: Exception | None


class _Kept(logging.Handler):
    """Keeps records as they can be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self.records: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        record.msg, record.args, record.exc_info = record.getMessage(), None, None
        self.records.append(record)


def _do(work: Callable[[Cell, Run], None], count: int, cell: Cell, run: Run) -> _Done:
    """In the second process. An error that is not the user's may not survive pickling: its traceback does."""
    kept, error = _Kept(), None
    logging.captureWarnings(True)
    logging.getLogger().addHandler(kept)
    try:
        with threads(count):
            work(cell, run)
    except UserError as raised:
        error = raised
    except Exception:
        error = RuntimeError(traceback.format_exc())
    logging.getLogger().removeHandler(kept)
    return _Done(kept.records, error)


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    threading.Thread(target=lambda: (parent.join(), os._exit(1)), daemon=True).start()


@contextmanager
def _interrupts_ignored() -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():  # who alone may say so
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
