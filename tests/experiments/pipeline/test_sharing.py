"""Several processes run one study: they share the work, and a process that is killed loses none of it."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from contextlib import ExitStack
from pathlib import Path
from threading import RLock
from typing import Any

import pandas as pd
import pytest
from tqdm import tqdm

from experiments.cluster.share import Share
from experiments.config.study import load_study
from experiments.pipeline import run_study as pipeline
from experiments.pipeline.progress import Reporter
from experiments.pipeline.run_study import merge_study, prepare_study, run_study
from semcal import Run, UserError
from semcal.runs.claims import CLAIMS, WRITING, claimed, part
from semcal.runs.failure import failure_of
from tests.experiments.conftest import questions_in, run_dict, study_of, write_study

FORK = multiprocessing.get_context("fork")  # torch is loaded once


def work(file: Path, log: Path, name: str, slow: float, share: Share | None = None) -> None:
    """Run a study as one of several processes; writes down how many questions it answered."""
    tqdm.set_lock(RLock())  # forked processes share the lock of progress bars, and one that is killed may hold it

    class Counting(Reporter):
        def answered(self, questions: int) -> None:
            time.sleep(slow)
            with log.open("a") as stream:
                stream.write(f"{name} {questions}\n")

    pipeline.WAIT_S = 0.05
    run_study(prepare_study(load_study(file)), Counting(), share)


def start(file: Path, log: Path, name: str, slow: float = 0.0):
    process = FORK.Process(target=work, args=(file, log, name, slow))
    process.start()
    return process


def answered(log: Path) -> dict[str, int]:
    """Who -> questions answered."""
    if not log.is_file():
        return {}
    lines = pd.DataFrame([line.split() for line in log.read_text().splitlines()], columns=["who", "n"])
    return lines.astype({"n": int}).groupby("who")["n"].sum().to_dict()


@pytest.fixture(scope="module")
def alone(checkpoint, tmp_path_factory) -> dict[str, Any]:
    """A study of two cells of 48 questions in 12 shards each, finished by one process; not to be changed."""
    folder = tmp_path_factory.mktemp("alone")
    study = study_of(checkpoint, questions_in(folder), folder) | {"styles": ["concise", "sentence"]}
    study["sampling"]["shard_size"] = 4
    study["probes"]["enabled"] = False
    run_dict(folder, study)
    return study


@pytest.fixture
def study(alone, tmp_path) -> Path:
    """The same study in another folder, where nothing has been done."""
    return write_study(tmp_path, alone | {"output": str(tmp_path / "runs")})


def assert_as_alone(folder: Path, study: dict[str, Any]) -> None:
    runs = sorted(p for p in (folder / "runs" / "small").glob("*__*"))
    assert len(runs) == len(list((Path(study["output"]) / "small").glob("*__*")))
    for shared, alone in ((Run.open(p), Run.open(Path(study["output"]) / "small" / p.name)) for p in runs):
        pd.testing.assert_frame_equal(shared.samples(), alone.samples())
        pd.testing.assert_frame_equal(shared.table(), alone.table())
        assert shared.calibration() == alone.calibration()
        assert shared.unchanged().changed == shared.unchanged().unknown == ()
        for hook in alone.activations("last_prompt_token").layers:
            ours, theirs = (run.activations("last_prompt_token").layer(hook) for run in (shared, alone))
            assert (ours == theirs).all()
    left = [
        p for p in (folder / "runs" / "small").rglob("*") if p.is_file() and (CLAIMS in p.parts or p.name[0] == ".")
    ]
    assert {p.name for p in left} <= {WRITING}


def test_two_processes_share_the_shards_of_a_study(study, alone, tmp_path):
    log = tmp_path / "shared.log"
    processes = [start(study, log, str(i), slow=0.02) for i in range(2)]
    for process in processes:
        process.join()
    assert [p.exitcode for p in processes] == [0, 0]
    done = answered(log)
    assert sum(done.values()) == 96, "nothing is done twice"
    assert min(done.values()) >= 24, done
    assert_as_alone(tmp_path, alone)


@pytest.mark.long
def test_processes_that_are_killed_lose_nothing(study, alone, tmp_path):
    log, draw = tmp_path / "shared.log", pd.Series([0.31, 0.12, 0.22, 0.05, 0.4, 0.17])
    workers = [start(study, log, str(i), slow=0.01) for i in range(3)]
    for kill, wait in enumerate(draw):
        time.sleep(wait)
        victim = workers.pop(0)
        assert victim.pid
        os.kill(victim.pid, signal.SIGKILL)
        victim.join()
        workers.append(start(study, log, f"after-{kill}", slow=0.01))
    for worker in workers:
        worker.join()
    assert [w.exitcode for w in workers] == [0, 0, 0]
    assert_as_alone(tmp_path, alone)
    assert sum(answered(log).values()) <= 96 + 6 * 4, "at most a shard is repeated for each kill"


def test_jobs_of_an_array_each_sample_their_share_and_merging_does_the_rest(study, alone, tmp_path):
    log = tmp_path / "shared.log"
    for i in (0, 2):
        work(study, log, str(i), 0.0, Share(i, 3))
    prepared = prepare_study(load_study(study))
    with pytest.raises(UserError, match=r"llama · colours · concise lacks 4 of 12 shards; .* run the jobs that sample"):
        merge_study(prepared, Reporter())
    assert not any(run.calibration() for run in prepared.runs)
    for i in range(4):  # another number of jobs: what is there stays
        work(study, log, f"again-{i}", 0.0, Share(i, 4))
    merge_study(prepared, Reporter())
    assert sum(answered(log).values()) == 96
    assert_as_alone(tmp_path, alone)


@pytest.fixture(scope="module")
def with_two_bs(checkpoint, tmp_path_factory) -> dict[str, Any]:
    """A study of two styles and two Bs each, in 12 shards a style, finished by one process; not to be changed."""
    folder = tmp_path_factory.mktemp("two-bs")
    study = study_of(checkpoint, questions_in(folder), folder) | {"styles": ["concise", "sentence"]}
    study["semantics"] = [{"kind": "exact"}, {"kind": "kth-word", "k": 1}]
    study["sampling"]["shard_size"] = 4
    study["probes"]["enabled"] = False
    run_dict(folder, study)
    return study


def test_what_cells_of_two_bs_share_is_not_sampled_for_the_second_while_another_is_at_it(
    with_two_bs, tmp_path, monkeypatch
):
    monkeypatch.setattr(pipeline, "WAIT_S", 0.05)
    prepared = prepare_study(load_study(write_study(tmp_path, with_two_bs | {"output": str(tmp_path / "runs")})))
    first, second = prepared.runs[:2]
    shard = Run.open(Path(with_two_bs["output"]) / "small" / first.name).shard_keys()[3]
    another = ExitStack()
    assert another.enter_context(claimed(first.folder, part(shard)))

    class Hears(Reporter):
        questions = 0

        def answered(self, questions: int) -> None:
            self.questions += questions

        def left(self, cell: Any, what: str) -> None:
            if cell == prepared.cells[0] and what.startswith("sampled by"):  # when everything else is done
                assert not second.sampled
                another.close()

    run_study(prepared, reporter := Hears())
    assert reporter.questions == 96
    assert_as_alone(tmp_path, with_two_bs)


def test_what_cells_of_two_bs_share_is_in_one_share(with_two_bs, tmp_path):
    study, log = write_study(tmp_path, with_two_bs | {"output": str(tmp_path / "runs")}), tmp_path / "shared.log"
    for i in range(2):
        work(study, log, str(i), 0.0, Share(i, 2))
    assert answered(log) == {"0": 48, "1": 48}
    merge_study(prepare_study(load_study(study)), Reporter())
    assert_as_alone(tmp_path, with_two_bs)


def test_a_model_that_is_loaded_is_said_to_be_once(study):
    class Hears(Reporter):
        def __init__(self) -> None:
            self.stages = list[str]()

        def stage(self, cell: Any, what: str) -> None:  # noqa: ARG002
            self.stages.append(what)

    run_study(prepare_study(load_study(study)), reporter := Hears())
    assert reporter.stages[0] == "loading llama"
    assert reporter.stages.count("loading llama") == 1


def test_what_a_cell_failed_of_is_left_in_its_folder_until_it_is_taken_up_again(study):
    class Fails(Reporter):
        def answered(self, questions: int) -> None:  # noqa: ARG002
            raise RuntimeError("no memory is left")

    prepared = prepare_study(load_study(study))
    with pytest.raises(RuntimeError):
        run_study(prepared, Fails())
    first, second = prepared.runs
    assert failure_of(first.folder).endswith(": no memory is left")
    assert failure_of(second.folder) == ""
    run_study(prepared, Reporter())
    assert failure_of(first.folder) == ""
