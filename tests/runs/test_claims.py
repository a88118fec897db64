"""Two processes and one folder; what a killed process leaves behind."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from safetensors.numpy import save_file

from semcal import UserError
from semcal.runs import claims
from semcal.runs.claims import LOCK, WRITING, claimed, locked, part, writing
from semcal.runs.claims import holder as holder_of
from semcal.runs.files import is_whole, replacing, sweep, write_atomically

ROOT = Path(__file__).parents[2]
HOLDER = """
import sys, time
from pathlib import Path
from semcal.runs.claims import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def holder(tmp_path):
    """Another process that holds the lock."""
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(tmp_path)],
        stdout=subprocess.PIPE, text=True, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert process.stdout
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def test_a_second_process_is_told_which_one_is_at_work_until_that_is_killed(tmp_path, holder):
    said = rf"is in use by process {holder.pid} on {socket.gethostname()}; wait .* and run the same command again"
    with pytest.raises(UserError, match=said), locked(tmp_path):
        pytest.fail("two processes hold one folder")
    holder.kill()
    holder.wait()
    assert (tmp_path / LOCK).is_file()
    with locked(tmp_path):
        assert str(os.getpid()) in (tmp_path / LOCK).read_text()
    assert list(tmp_path.iterdir()) == []


def test_a_part_is_claimed_by_one_process_and_other_parts_are_free(tmp_path, holder):
    with claimed(tmp_path) as ours:
        assert not ours
    zero, one = part("0"), part("1")
    with claimed(tmp_path, zero) as ours, claimed(tmp_path, zero) as again, claimed(tmp_path, one) as other:
        assert (ours, again, other) == (True, False, True)
    holder.kill()
    holder.wait()
    with claimed(tmp_path) as ours:
        assert ours


def test_a_claim_from_another_machine_is_taken_over_when_nobody_touches_it(tmp_path, monkeypatch):
    """Whether its process lives is not known there; its heartbeat is."""
    monkeypatch.setattr(claims, "LEASE_S", 0.6)
    record = "filelock/2\npid=1\nhost=another-machine\nmode=lease\ntoken={}\nduration=0.6\nstart=1\n"
    (tmp_path / LOCK).write_text(record.format("0" * 32))
    with claimed(tmp_path) as ours:
        assert not ours
    assert holder_of(tmp_path) == "process 1 on another-machine"
    for _ in range(5):  # touched within each 0.6 s, as by a living holder
        time.sleep(0.3)
        os.utime(tmp_path / LOCK)
        with claimed(tmp_path) as ours:
            assert not ours
    time.sleep(0.9)
    with claimed(tmp_path) as ours:
        assert ours


def test_a_claim_that_names_nobody_is_left_for_a_moment_and_then_taken_over(tmp_path, monkeypatch):
    """Its process was killed between making the file and writing its name."""
    monkeypatch.setattr(claims, "UNNAMED_S", 0.3)
    for name in (LOCK, WRITING):
        (tmp_path / name).touch()
    with claimed(tmp_path) as ours:
        assert not ours
    with claimed(tmp_path) as ours:
        assert not ours, "its name may still come"
    time.sleep(0.35)
    with claimed(tmp_path) as ours:
        assert not ours, "this one removes it"
    with claimed(tmp_path) as ours, writing(tmp_path):
        assert ours
    assert list(tmp_path.iterdir()) == []


def test_a_claim_is_not_removed_once_it_names_its_holder(tmp_path, monkeypatch, holder):
    monkeypatch.setattr(claims, "UNNAMED_S", 0.1)
    for _ in range(4):
        with claimed(tmp_path) as ours:
            assert not ours
        time.sleep(0.1)
    assert holder_of(tmp_path) == f"process {holder.pid} on {socket.gethostname()}"


@pytest.mark.parametrize("how", ["not to be written", "not there"])
def test_where_nothing_can_be_claimed_nothing_is_refused(tmp_path, monkeypatch, how):
    folder = tmp_path / "missing" if how == "not there" else tmp_path

    def refuses(*_):
        raise PermissionError("read-only")

    if how == "not to be written":
        monkeypatch.setattr(os, "open", refuses)
    with locked(folder), claimed(folder, part("0")) as ours, writing(folder):
        assert ours
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


COUNTER = """
import sys, time
from pathlib import Path
from semcal.runs.claims import writing
folder = Path(sys.argv[1])
for _ in range(100):
    with writing(folder), writing(folder):
        number = int((folder / "number").read_text())
        (folder / "number").write_text(str(number + 1))
"""


def test_what_two_processes_change_at_once_is_changed_twice(tmp_path):
    (tmp_path / "number").write_text("0")
    run = [sys.executable, "-c", COUNTER, str(tmp_path)]
    processes = [subprocess.Popen(run, cwd=ROOT, env=os.environ | {"PYTHONPATH": str(ROOT)}) for _ in range(2)]
    assert [p.wait() for p in processes] == [0, 0]
    assert (tmp_path / "number").read_text() == "200"


def test_an_error_within_the_lock_leaves_no_lock(tmp_path):
    with pytest.raises(KeyError), locked(tmp_path):
        raise KeyError
    with locked(tmp_path):
        pass
    assert list(tmp_path.iterdir()) == []


def leftovers(folder: Path) -> tuple[Path, Path]:
    """The names under which this process would leave a file and a set of files."""
    named = []
    write_atomically(folder / "samples" / "a.parquet", lambda p: (named.append(p), p.write_text("x")))
    with replacing(folder) as staged:
        named.append(staged)
    (folder / "samples" / "a.parquet").unlink()
    return named[0], named[1]


@pytest.mark.parametrize(
    ("process", "host", "age", "stays"),
    [
        pytest.param("gone", "here", 0, False, id="of a process that is gone"),
        pytest.param("alive", "here", 1e6, True, id="of a living process"),
        pytest.param("gone", "elsewhere", 60, True, id="of another machine, just now"),
        pytest.param("gone", "elsewhere", 1e5, False, id="of another machine, long ago"),
    ],
)
def test_temporary_files_are_removed_when_their_process_is_gone(tmp_path, holder, process, host, age, stays):
    file, folder = leftovers(tmp_path)
    ended = subprocess.Popen([sys.executable, "-c", ""])
    ended.wait()
    number = holder.pid if process == "alive" else ended.pid
    place = socket.gethostname() if host == "here" else "another-machine"

    def of(path: Path) -> Path:
        return path.with_name(path.name.replace(f"{os.getpid()}@{socket.gethostname()}", f"{number}@{place}"))

    of(folder).mkdir(parents=True)
    of(file).parent.mkdir(exist_ok=True)
    (of(folder) / "x").write_text("")
    of(file).write_text("")
    for path in (of(file), of(folder)):
        then = path.stat().st_mtime - age
        os.utime(path, (then, then))
    (tmp_path / "samples" / ".mine.tmp").write_text("a file of the user's")
    sweep(tmp_path)
    assert of(file).exists() == of(folder).exists() == stays
    assert (tmp_path / "samples" / ".mine.tmp").exists()


@pytest.mark.parametrize("kind", ["parquet", "safetensors"])
def test_a_file_that_was_cut_anywhere_is_not_whole(tmp_path, kind):
    path = tmp_path / f"a.{kind}"
    if kind == "parquet":
        pd.DataFrame({"x": range(1000)}).to_parquet(path)
    else:
        save_file({"x": np.arange(1000)}, path)
    assert is_whole(path)
    size = path.stat().st_size
    for left in (0, 1, 7, 8, 12, size // 2, size - 8, size - 1):
        cut = tmp_path / f"cut.{kind}"
        shutil.copy(path, cut)
        os.truncate(cut, left)
        assert not is_whole(cut), left
    (tmp_path / f"zeros.{kind}").write_bytes(bytes(size))
    assert not is_whole(tmp_path / f"zeros.{kind}")
    assert not is_whole(tmp_path / f"missing.{kind}")
