# ruff: noqa: F811 (fixtures of another file)
"""Commands on a study that another process is sampling or analysing at that moment: right figures of what is finished,
or one line; and the other process ends as if it had been alone."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import pytest
import yaml

from experiments.config.study import load_study
from experiments.pipeline.progress import Reporter
from experiments.pipeline.run_study import prepare_study, run_study
from semcal import Run
from tests.experiments.conftest import write_study
from tests.experiments.pipeline.test_cli import semcal
from tests.hostile.test_analysis_keeps_results import finished  # noqa: F401

# Runs a study and waits, each time that something has happened so many times in its second cell, until it is told to go
# on.
PROCESS = """
import sys
import torch
torch.set_num_threads(1)  # as in this process, which analyses again: sums depend on it in their last digits
from experiments.config.study import load_study
from experiments.pipeline.progress import Reporter
from experiments.pipeline.run_study import prepare_study, run_study
import experiments.report.pages
experiments.report.pages.run_figures = lambda *_: {}
path, *points = sys.argv[1:]

class Waiting(Reporter):
    cells = 0
    seen = {}
    def sampling(self, cell, n, done):
        self.cells += 1
    def answered(self, n):
        self._see("sampling")
    def stage(self, cell, words):
        self._see(words.split(",")[0])
    def _see(self, what):
        if self.cells == 2:
            self.seen[what] = self.seen.get(what, 0) + 1
            if f"{what} {self.seen[what]}" in points:
                print("waiting", flush=True)
                sys.stdin.readline()

run_study(prepare_study(load_study(path)), Waiting())
print("finished", flush=True)
"""
POINTS = ("sampling 7", "scoring 1")
COMMANDS = {
    "ls": ["ls", "RUNS"],
    "report": ["report", "STUDY"],
    "report of a run": ["report", "LIVE"],
    "score": ["score", "STUDY"],
    "score of a run": ["score", "LIVE"],
    "score beside": ["score", "STUDY", "--set", "calibration.bootstrap=30"],
    "score by several": ["score", "STUDY", "--semantics", "exact,numeric"],
    "probe": ["probe", "STUDY"],
    "probe of a run": ["probe", "LIVE"],
    "compare": ["compare", "STUDY"],
    "verdict": ["verdict", "STUDY"],
    "transfer": ["transfer", "RUNS"],
    "intervene": ["intervene", "LIVE", "-n", "4"],
}


@pytest.fixture(scope="module")
def study(finished, tmp_path_factory) -> Path:
    """A study of two cells, sampled in shards of five questions."""
    folder = tmp_path_factory.mktemp("live")
    settings = yaml.safe_load(finished.read_text())
    settings["styles"] = ["concise", "sentence"]
    settings["sampling"]["shard_size"] = 5
    return write_study(folder, settings | {"output": str(folder / "runs")})


@contextmanager
def another(study: Path) -> Iterator[Callable[[], None]]:
    """Another process, and what lets it go on to the next point of its second cell; it ends as it should when the block
    does."""
    command = [sys.executable, "-c", PROCESS, str(study), *POINTS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        said, given = process.stdout, process.stdin

        def go_on(awaited: str = "waiting\n") -> None:
            given.write("\n")
            given.flush()
            assert said.readline() == awaited

        try:
            assert said.readline() == "waiting\n"
            yield go_on
            go_on("finished\n")
            assert process.wait() == 0
        finally:
            process.kill()


def results(runs: list[Run]) -> list:
    return [
        (run.calibration(), run.samples().to_json(), run.class_table().sampled_counts.tolist(), run.probes().to_json())
        for run in runs
    ]


def runs_of(study: Path) -> list[Run]:
    return [Run.open(folder) for folder in sorted((study.parent / "runs" / "small").glob("*__*"))]


@pytest.fixture(scope="module")
def alone(study) -> list:
    """The results of the study without anyone else, by this process: it analyses again what the other has sampled."""
    other = study.parent / "alone"
    other.mkdir()
    path = write_study(other, yaml.safe_load(study.read_text()) | {"output": str(other / "runs")})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("experiments.report.pages.run_figures", lambda *_: {})
        run_study(prepare_study(load_study(path)), Reporter())
    return results(runs_of(path))


@pytest.mark.long
def test_commands_on_a_study_in_progress_are_right_or_one_line(study, alone, monkeypatch, capsys):
    top = study.parent / "runs"

    def tried(where: str) -> None:
        first, live = runs_of(study)
        before = first.calibration(), first.samples()
        names = {"STUDY": study, "RUNS": top / "small", "LIVE": live.folder}
        said = {}
        for name, command in COMMANDS.items():
            given = [str(names.get(word, word)) for word in command]
            code, out, err = semcal(monkeypatch, capsys, *given)
            assert "Traceback" not in out + err, (where, name)
            assert code in (0, 2), (where, name, code)
            assert code == 0 or len(re.findall(r"semcal: ", err)) == 1, (where, name, err)
            said[name] = code, " ".join((out + err).split())
        assert first.calibration() == before[0], where
        pd.testing.assert_frame_equal(first.samples(), before[1])
        assert said["ls"][0] == said["report"][0] == 0
        for name in ("score of a run", "probe of a run"):
            assert said[name][0] == 2
            assert ("not fully sampled" if where == "sampling" else "in use by process") in said[name][1], said[name]
        assert ("sampling " in said["ls"][1]) == (where == "sampling"), json.dumps(said)
        for looks in top.glob("small/*/looks"):  # made anew at the next point
            shutil.rmtree(looks)

    with another(study) as go_on:
        tried("sampling")
        go_on()
        tried("scoring")
    assert results(runs_of(study)) == alone
    assert all(not run.unchanged().changed for run in runs_of(study))
