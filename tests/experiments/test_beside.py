"""A second process: works on cells beside this one, tells what it logs, raises what it raises."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from experiments.beside import SecondProcess
from semcal.errors import UserError


def count(cell, run):
    with run.open("a") as file:
        file.write(f"{cell} {torch.get_num_threads()}\n")


def complain(cell, _):
    logging.getLogger("semcal.complaints").warning("%s is odd", cell)
    warnings.warn("and rare", stacklevel=1)
    raise UserError(f"{cell} cannot be read")


class AwkwardError(Exception):
    """Cannot be pickled back: it wants two arguments."""

    def __init__(self, what, why):
        super().__init__(f"{what}: {why}")


def fail(*_):
    raise AwkwardError("cell", "reason")


def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def made_there(second, folder):
    """One piece of work, left to the second process until it has come to an end."""
    second.submit("cell 3", folder)
    while second.usable and not list(second.finished()):
        time.sleep(0.01)


def test_every_piece_of_work_is_done_once_by_one_of_two_processes(tmp_path):
    told = []
    with SecondProcess(count) as second:
        for i in range(6):
            second.submit(str(i), tmp_path / "done")
        told += [cell for cell, _ in second.finished()]
        for cell, run, done in second.rest():
            if not done:
                count(cell, run)
            told.append(cell)
    lines = (tmp_path / "done").read_text().splitlines()
    assert sorted(told) == [line.split()[0] for line in sorted(lines)] == list("012345")
    assert {line.split()[1] for line in lines} == {str(torch.get_num_threads())}


def test_what_it_logs_and_raises_arrives_here(tmp_path, caplog):
    with SecondProcess(complain) as second, pytest.raises(UserError, match="cell 3 cannot be read"):
        made_there(second, tmp_path)
    assert "cell 3 is odd" in caplog.text
    assert "and rare" in caplog.text


def test_an_error_that_does_not_survive_pickling_arrives_as_its_traceback(tmp_path):
    with SecondProcess(fail) as second, pytest.raises(RuntimeError, match=r"in fail\n.*\n.*AwkwardError: cell: reason"):
        made_there(second, tmp_path)


def test_a_killed_process_gives_its_cells_back_and_says_so_once(tmp_path, caplog):
    with SecondProcess(die) as second:
        made_there(second, tmp_path)
        second.submit("cell 4", tmp_path)
        assert sorted(second.rest()) == [("cell 3", tmp_path, False), ("cell 4", tmp_path, False)]
    assert caplog.text.count("going on with one") == 1


def test_a_script_without_a_main_guard_goes_on_with_one_process(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\nfrom experiments.beside import SecondProcess\n"
        "from tests.experiments.test_beside import count\n"
        "with SecondProcess(count) as second:\n    second.submit('a', Path(sys.argv[1]))\n    print(list(second.rest()))\n"
    )
    where = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, script, tmp_path / "done"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True, env=where)
    assert ran.stdout.startswith("[('a', ")
    assert "going on with one" in ran.stderr


def interrupted(work, told):
    with SecondProcess(work) as second:
        second.submit("cell", told)
        while not told.is_file() or not told.read_text():
            time.sleep(0.01)
        os.kill(int(told.read_text()), signal.SIGINT)
        time.sleep(0.2)
        os.kill(int(told.read_text()), 0)  # it lives
        raise KeyboardInterrupt


def test_it_ends_with_the_block_that_fails_and_interrupts_do_not_reach_it(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        interrupted(linger, tmp_path / "pid")
    pid = int((tmp_path / "pid").read_text())
    for _ in range(500):
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    pytest.fail("the second process lives on")


def linger(_, run):
    run.write_text(str(os.getpid()))
    time.sleep(60)
