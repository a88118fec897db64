"""A signal that is held back does later what it would have done at once."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator

import pytest

from experiments.pipeline.signals import held_back


@pytest.fixture(autouse=True)
def interrupts() -> Iterator[None]:
    """Ctrl-C does what it does in a process that was started from a terminal, also where tests run side by side."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_a_signal_is_held_back_until_the_block_allows_it():
    with pytest.raises(KeyboardInterrupt), held_back() as stop_if_asked:  # noqa: PT012
        stop_if_asked()
        os.kill(os.getpid(), signal.SIGINT)
        held = True
        stop_if_asked()
        held = False
    assert held


def test_a_signal_is_heeded_at_the_end_of_the_block_at_the_latest():
    with pytest.raises(KeyboardInterrupt), held_back():
        os.kill(os.getpid(), signal.SIGINT)


def test_handlers_that_foreign_code_sets_in_the_block_end_with_it():
    before = signal.getsignal(signal.SIGTERM)
    with held_back():
        signal.signal(signal.SIGTERM, lambda *_: None)
    assert signal.getsignal(signal.SIGTERM) == before
