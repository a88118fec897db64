"""Ctrl-C, SIGTERM, SIGHUP: one line, the right exit code, out in time, and the same command goes on."""

from __future__ import annotations

import contextlib
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest

from experiments.config.study import load_study
from experiments.pipeline.progress import Reporter
from experiments.pipeline.run_study import prepare_study, run_study
from experiments.pipeline.signals import CONTINUE, SIGNALS
from experiments.sample import portions
from semcal.runs.claims import holder, part
from tests.experiments.conftest import write_study

ROOT = Path(__file__).parents[2]
SAVED = r"semcal: stopped; llama · colours · concise: (\d+) of 48 questions are saved, and the same command continues"
# `semcal` on a machine so slow that a shard has several portions. It waits to be stopped after ten answers, or at a stage
# of the analysis.
SLOWED = """
import sys, time
from experiments import cli
from experiments.pipeline import progress
from experiments.pipeline.signals import CONTINUE, SIGNALS
from experiments.sample import portions
portions.OPERATIONS_PER_S = {"cpu": 3.6e5}
where, answered = sys.argv.pop(1), []

def wait():
    sys.stderr.write("here\\n")
    sys.stderr.flush()
    while True:
        time.sleep(0.05)

class Waiting(progress.Screen):
    def answered(self, questions):
        super().answered(questions)
        answered.append(questions)
        if len(answered) == 10 and where == "sampling":
            wait()
    def stage(self, cell, what):
        if what == where:
            wait()
        super().stage(cell, what)

progress.Screen = Waiting
cli.main()
"""
# A command whose code loses the exception, as one long matrix product does for a while.
HANGING = """
import sys, time
from experiments.pipeline import signals
signals.PATIENCE_S = 0.5
with signals.stopping():
    said = False
    while True:
        try:
            if not said:
                said = True
                sys.stderr.write("here\\n")
                sys.stderr.flush()
            time.sleep(30)
        except BaseException:
            pass
"""


def heard() -> None:
    """However the tests were started: `nohup` and a shell's background jobs ignore some of the signals."""
    for number in SIGNALS:
        signal.signal(number, signal.SIG_DFL)


def started(code: str, *arguments: str, before: Callable[[], None] = heard) -> subprocess.Popen[str]:
    """A process, once it waits to be stopped."""
    process = subprocess.Popen(
        [sys.executable, "-c", code, *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}, preexec_fn=before,
    )  # fmt: skip
    assert process.stderr
    said = ""
    while not said.endswith("here\n"):
        line = process.stderr.readline()
        assert line, said
        said += line
    return process


def stopped(process: subprocess.Popen[str], number: signal.Signals) -> str:
    """The only line of a process that was sent a signal."""
    process.send_signal(number)
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(number)  # impatience changes nothing
    out, err = process.communicate(timeout=15)
    assert process.returncode == 128 + number, err
    assert "Traceback" not in err + out
    (line,) = (line for line in err.splitlines() if line.startswith("semcal:"))
    return line


@pytest.fixture
def study(checkpoint, tmp_path) -> Path:
    rows = [{"id": f"q{i}", "question": f"the {'red ' * (i % 7)} {i} ?", "answers": ["red"]} for i in range(48)]
    (tmp_path / "colours.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return write_study(
        tmp_path,
        {
            "name": "small",
            "models": [{"path": str(checkpoint), "name": "llama", "device": "cpu"}],
            "datasets": [{"kind": "jsonl", "path": str(tmp_path / "colours.jsonl")}],
            "styles": ["concise"],
            "output": str(tmp_path / "runs"),
            "sampling": {"m": 20, "max_new_tokens": 6, "max_rows": 16},
            "prompting": {"shots": 0, "exemplars": 0},
            "capture": {"positions": []},
            "probes": {"enabled": False},
            "calibration": {"bootstrap": 20, "null_draws": 20, "detail_draws": 10},
        },
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_process_that_cannot_be_interrupted_ends_itself(number):
    assert stopped(started(HANGING), number) == f"semcal: {CONTINUE}"


@pytest.mark.long
def test_an_analysis_that_is_stopped_says_that_the_samples_are_saved(study):
    line = stopped(started(SLOWED, "scoring", "run", str(study)), signal.SIGINT)
    found = re.fullmatch(SAVED, line)
    assert found, line
    assert found[1] == "48"
    (run,) = prepare_study(load_study(study)).runs
    assert run.sampled
    assert not run.calibration()


@pytest.mark.long
def test_a_run_that_was_stopped_goes_on_and_ends_as_if_it_had_not_been(study, monkeypatch):
    def ignoring() -> None:
        heard()
        signal.signal(signal.SIGHUP, signal.SIG_IGN)

    process = started(SLOWED, "sampling", "run", str(study), before=ignoring)
    (run,) = prepare_study(load_study(study)).runs
    (shard,) = run.missing_shards()
    assert holder(run.folder, part(shard)) == f"process {process.pid} on {socket.gethostname()}"
    process.send_signal(signal.SIGHUP)  # as it was started with `nohup`, this stays ignored
    time.sleep(0.3)
    assert process.poll() is None
    found = re.fullmatch(SAVED, stopped(process, signal.SIGTERM))
    assert found
    monkeypatch.setattr(portions, "OPERATIONS_PER_S", {"cpu": 3.6e5})
    broken, whole = (prepare_study(load_study(study, overrides)) for overrides in ([], ["name=whole"]))
    assert 0 < broken.runs[0].questions_saved() == int(found[1]) < 48
    for prepared in (broken, whole):
        run_study(prepared, Reporter())
    (one,), (two,) = broken.runs, whole.runs
    pd.testing.assert_frame_equal(one.samples(), two.samples(), check_exact=True)
    pd.testing.assert_frame_equal(one.classes(), two.classes(), check_exact=True)
    assert one.calibration() == two.calibration()
