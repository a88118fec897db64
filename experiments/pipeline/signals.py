"""Ctrl-C, and the signals by which a scheduler or a closing terminal ends a process: one line, and out within seconds.

Whatever is saved is whole on disk already, so nothing needs to be rescued. What is open is lost and made again: the
portion of questions that is being sampled (`experiments.sample.portions`), the table or figure that is being written.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
PATIENCE_S = 6.0
CONTINUE = "stopped; the same command continues from what was saved last"


class Stopped(BaseException):
    """A signal asked the process to end. It is raised wherever the main thread is.

    Attributes:
        code: Exit code: 128 plus the number of the signal.
        saved: What is on disk, in words; empty if no one has said so.
    """

    def __init__(self, number: int) -> None:
        super().__init__(signal.Signals(number).name)
        self.code, self.saved = 128 + number, ""

    @property
    def line(self) -> str:
        return f"stopped; {self.saved}" if self.saved else CONTINUE


@contextmanager
def stopping() -> Iterator[threading.Event]:
    """Within the block, the first signal raises `Stopped`, and further ones are ignored.

    If the process is still there after `PATIENCE_S` seconds, as in one long matrix product or while a thread waits for
    a server, it ends itself, and says so unless the event that is yielded tells that someone has. A signal that the
    process was started to ignore (`nohup`) stays ignored.
    """
    heard, told = list[int](), threading.Event()

    def stop(number: int, _: FrameType | None) -> None:
        if not heard:
            heard.append(number)
            raise Stopped(number)

    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    threading.Thread(target=_end_in_time, args=(reading, told), daemon=True).start()
    before = {number: signal.getsignal(number) for number in SIGNALS}
    waking = signal.set_wakeup_fd(writing, warn_on_full_buffer=False)
    for number, handler in before.items():
        if handler != signal.SIG_IGN:
            signal.signal(number, stop)
    try:
        yield told
    finally:
        if not heard:  # else the watch goes on until the process is gone
            for number, handler in before.items():
                signal.signal(number, handler)
            signal.set_wakeup_fd(waking)
            os.close(writing)


@contextmanager
def held_back() -> Iterator[Callable[[], None]]:
    """Within the block, a signal is noted and nothing else: for calls of foreign code that breaks off badly when
    something is raised inside it, or that sets handlers of its own, which end with the block.

    Yields a function for where the block may stop: it does what the signal would have done (`stopping`: raises
    `Stopped`), if there was one. So does the end of the block, unless it ends by an error.
    """
    heard = list[int]()
    before = {int(number): signal.getsignal(number) for number in SIGNALS}

    def stop_if_asked() -> None:
        if heard and callable(handler := before[heard[0]]):
            handler(heard.pop(0), None)

    for number, handler in before.items():
        if callable(handler):
            signal.signal(number, lambda n, _: heard.append(n))
    try:
        yield stop_if_asked
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    stop_if_asked()


def _end_in_time(reading: int, told: threading.Event) -> None:
    """Wait for a signal, which Python writes here even while the main thread is busy; then for the process to end."""
    while (number := os.read(reading, 1)) and number[0] not in SIGNALS:
        pass
    if not number:
        os.close(reading)
        return
    time.sleep(PATIENCE_S)
    try:
        if not told.is_set():
            sys.stderr.write(f"semcal: {CONTINUE}\n")
            sys.stderr.flush()
    finally:  # the terminal may be gone
        os._exit(128 + number[0])
