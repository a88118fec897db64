"""A second process: works on cells beside this one, tells what it logs, raises what it raises. Imports little: each test
starts a process that imports it again."""

from __future__ import annotations

import logging
import os
import signal
import time

import pytest

from experiments.beside import SecondProcess
from semcal.errors import UserError


def count(cell, run):
    with run.open("a") as file:
        file.write(f"{cell}\n")


def complain(cell, run):
    logging.getLogger("semcal.complaints").warning("%s is odd", cell)
    raise UserError(f"{cell} cannot be read")


def die(cell, run):
    os.kill(os.getpid(), signal.SIGKILL)


def test_every_piece_of_work_is_done_once_by_one_of_two_processes(tmp_path):
    done = tmp_path / "done"
    with SecondProcess(count) as second:
        for i in range(6):
            second.submit(str(i), done)
        told = [*second.finished(), *second.rest()]
    assert sorted(cell for cell, _ in told) == sorted(done.read_text().split()) == list("012345")


def test_what_it_logs_and_raises_arrives_here(tmp_path, caplog):
    with pytest.raises(UserError, match="cell 3 cannot be read"), SecondProcess(complain) as second:
        second.submit("cell 3", tmp_path)
        wait_for(second)
    assert "cell 3 is odd" in caplog.text


def test_a_killed_process_is_one_line(tmp_path):
    with pytest.raises(UserError, match="want of memory; run the same command again"), SecondProcess(die) as second:
        second.submit("cell", tmp_path)
        wait_for(second)


def wait_for(second):
    """Until there is something to tell; `rest` would do here what has not begun there."""
    while not list(second.finished()):
        time.sleep(0.01)
