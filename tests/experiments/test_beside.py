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


def complain(cell, _):
    logging.getLogger("semcal.complaints").warning("%s is odd", cell)
    raise UserError(f"{cell} cannot be read")


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def test_every_piece_of_work_is_done_once_by_one_of_two_processes(tmp_path):
    done = tmp_path / "done"
    with SecondProcess(count) as second:
        for i in range(6):
            second.submit(str(i), done)
        told = [*second.finished(), *second.rest()]
    assert sorted(cell for cell, _ in told) == sorted(done.read_text().split()) == list("012345")


def made_there(work, folder):
    """One piece of work, left to the second process."""
    with SecondProcess(work) as second:
        second.submit("cell 3", folder)
        while not list(second.finished()):
            time.sleep(0.01)


def test_what_it_logs_and_raises_arrives_here(tmp_path, caplog):
    with pytest.raises(UserError, match="cell 3 cannot be read"):
        made_there(complain, tmp_path)
    assert "cell 3 is odd" in caplog.text


def test_a_killed_process_is_one_line(tmp_path):
    with pytest.raises(UserError, match="want of memory; run the same command again"):
        made_there(die, tmp_path)
