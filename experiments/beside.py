"""A second process beside this one: cells are analysed there while the next one is sampled here."""

from __future__ import annotations

import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import suppress
from logging.handlers import QueueHandler, QueueListener
from multiprocessing import get_context, parent_process
from multiprocessing.queues import Queue
from typing import TYPE_CHECKING, Any

from semcal.errors import UserError

if TYPE_CHECKING:
    from experiments.config import Cell
    from semcal.store import Run


class SecondProcess:
    """Does `work` on cells and their runs; started by the first of them, ended with the block it is opened in.

    Either process then has half of the threads: more of them than cores would wait for each other. What it logs is
    logged here. If the block ends by an exception, or this process dies, it is stopped where it is.
    """

    def __init__(self, work: Callable[[Cell, Run], None]) -> None:
        self._work = work  # pickled
        self._pool: ProcessPoolExecutor | None = None
        self._given: dict[Future[None], tuple[Cell, Run]] = {}

    def __enter__(self) -> SecondProcess:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: Any) -> None:
        if self._pool is None:
            return
        self._pool.shutdown(wait=error is None, cancel_futures=True)
        if error is not None:
            with suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGTERM)
        self._listener.stop()
        import torch

        torch.set_num_threads(self._threads)

    def submit(self, cell: Cell, run: Run) -> None:
        pool = self._pool or self._start()
        self._given[pool.submit(self._work, cell, run)] = cell, run

    def finished(self) -> Iterator[tuple[Cell, Run]]:
        """What is done and was not told of yet; raises what the work has raised."""
        for future in [f for f in self._given if f.done()]:
            _raise(future)
            yield self._given.pop(future)

    def rest(self) -> Iterator[tuple[Cell, Run]]:
        """What was not told of yet, when it is done; this process takes its part from the end of the queue."""
        for future, given in reversed(self._given.items()):
            if future.cancel():
                self._work(*given)
        for future, given in self._given.items():
            if not future.cancelled():
                _raise(future)
            yield given
        self._given.clear()

    def _start(self) -> ProcessPoolExecutor:
        import torch  # not above: see `_begin`

        context = get_context("spawn")  # a fork would inherit locks of torch's threads
        told, self._threads = context.Queue(), torch.get_num_threads()
        torch.set_num_threads(half := max(1, self._threads // 2))
        self._pool = ProcessPoolExecutor(1, context, _begin, (told, half))
        self._pid = self._pool.submit(os.getpid).result()
        self._listener = QueueListener(told, *logging.getLogger().handlers, respect_handler_level=True)
        self._listener.start()
        return self._pool


def _raise(future: Future[None]) -> None:
    """
    Raises:
        UserError: the second process was killed; and whatever the work has raised.
    """
    try:
        future.result()
    except BrokenProcessPool:
        raise UserError(
            "the second process, which analyses, was killed, most likely for want of memory; run the same command again"
        ) from None


def _begin(told: Queue[Any], threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)  # read when numpy and torch are imported, which is after this
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches both; the first process ends this one
    logging.getLogger().addHandler(QueueHandler(told))
    logging.captureWarnings(True)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
