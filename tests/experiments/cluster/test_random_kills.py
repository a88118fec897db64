"""Processes that are killed at random moments lose no question, do none twice, and leave no torn file. Run by
`make test-kills` (30 kills, of everything that works on a study at once) and `make test-faults` (these, and 20
repetitions with 2 and 4 processes)."""

from __future__ import annotations

import multiprocessing
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from threading import RLock
from typing import Any

import numpy as np
import pandas as pd
import psutil
import pytest
import torch
from tqdm import tqdm

from experiments.config.study import load_study
from experiments.pipeline import run_study as pipeline
from experiments.pipeline.progress import Reporter
from experiments.pipeline.run_study import prepare_study, run_study
from semcal import Run
from semcal.runs.claims import CLAIMS, LOCK, WRITING, claimed, part
from tests.experiments.cluster.on_ray.ray_nodes import SMALL, two_nodes
from tests.experiments.conftest import questions_in, study_of, write_study

pytestmark = pytest.mark.faults
SERVER = multiprocessing.get_context("forkserver")  # loads torch once, and knows nothing of the threads of Ray
SERVER.set_forkserver_preload([__name__, "experiments.cluster.on_ray.ray_study"])
STARTED: list[Any] = []
KILLS, REPETITIONS, PATIENCE_S = 30, 20, 120.0
ON_RAY = ("ray worker", "node", "driver")


class Slow(Reporter):
    """Takes its time over what is answered, while its shard is claimed."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds

    def answered(self, questions: int) -> None:  # noqa: ARG002
        time.sleep(self._seconds)


def work(file: Path, slow: float, drawn: bool, address: str | None = None) -> None:
    """Run a study as one process of several; with an address, as the driver of its cluster of Ray.

    With one thread each, as Ray gives its workers: sums are rounded by their number.
    """
    torch.set_num_threads(1)
    tqdm.set_lock(RLock())  # forked processes share the lock of progress bars, and one that is killed may hold it
    if not drawn:
        pipeline.write_report = lambda _, run: (run.folder / "report.html").write_text("not drawn in this test")
    prepared = prepare_study(load_study(file))
    if address is None:
        pipeline.WAIT_S = 0.05
        run_study(prepared, Slow(slow))
    else:
        from experiments.cluster.on_ray import ray_study

        ray_study.WAIT_S = 0.05
        ray_study.run_on_ray(prepared, Reporter(), address)


@pytest.fixture(autouse=True)
def none_left() -> Iterator[None]:
    """Processes of a test that failed end with it."""
    yield
    for process in STARTED:
        if process.is_alive():
            process.kill()
    STARTED.clear()


def start(*args: Any) -> Any:
    process = SERVER.Process(target=work, args=args)
    process.start()
    STARTED.append(process)
    return process


def kill(process: int, by: signal.Signals = signal.SIGKILL) -> None:
    with suppress(ProcessLookupError):
        os.kill(process, by)


def join_all(processes: list[Any]) -> None:
    until = time.monotonic() + PATIENCE_S
    for process in processes:
        process.join(max(0.0, until - time.monotonic()))
    assert [p.exitcode for p in processes] == [0] * len(processes)


def assert_as_alone(folder: Path, alone: Path) -> None:
    """Every table and every activation is what one process made of the study, and no file is torn or left over."""
    runs = sorted(folder.glob("*__*"))
    assert [r.name for r in runs] == sorted(p.name for p in alone.glob("*__*"))
    for ours, theirs in ((Run.open(p), Run.open(alone / p.name)) for p in runs):
        assert ours.samples().groupby("question_id")["count"].sum().eq(theirs.config()["sampling"]["m"]).all()
        for name in ("samples", "questions", "classes", "table", "probes", "probe_losses"):
            same: dict[str, Any] = {"obj": f"{ours.name} {name}", "check_exact": True}
            pd.testing.assert_frame_equal(getattr(ours, name)(), getattr(theirs, name)(), **same)
        assert ours.calibration() == theirs.calibration()
        assert ours.unchanged().changed == ours.unchanged().unknown == ()
        assert ours.shard_keys() == theirs.shard_keys()
        assert {p.stem for p in (ours.folder / "samples").iterdir()} == set(ours.shard_keys())
        for hook in theirs.activations("last_prompt_token").layers:
            a, b = (run.activations("last_prompt_token").layer(hook) for run in (ours, theirs))
            assert (a == b).all()
    left = [p for p in folder.rglob("*") if p.is_file() and (CLAIMS in p.parts or p.name[0] == ".")]
    assert {p.name for p in left} <= {WRITING}


def as_alone(checkpoint: Path, folder: Path, settings: Callable[[Path, Path], dict[str, Any]]) -> Path:
    """The folder of a study that one process has run."""
    work(write_study(folder, settings(checkpoint, folder)), 0.0, False)
    return folder / "runs" / "small"


# ---- processes that share a folder -----------------------------------------------------------------------------------


def two_cells(checkpoint: Path, folder: Path) -> dict[str, Any]:
    """In 12 shards each."""
    found = study_of(checkpoint, questions_in(folder), folder)
    found["sampling"] |= {"shard_size": 4}
    return found | {"styles": ["concise", "sentence"], "probes": {"enabled": False}}


@pytest.fixture(scope="module")
def two_alone(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return as_alone(checkpoint, tmp_path_factory.mktemp("alone"), two_cells)


@pytest.mark.parametrize("seed", range(REPETITIONS))
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_killed_at_random_moments_lose_nothing(processes, seed, checkpoint, two_alone, tmp_path):
    chance = np.random.default_rng([processes, seed])
    how = (write_study(tmp_path, two_cells(checkpoint, tmp_path)), 0.01, False)
    workers = [start(*how) for _ in range(processes)]
    for _ in range(chance.integers(2, 6)):
        time.sleep(chance.uniform(0, 1.5))
        victim = workers.pop(chance.integers(len(workers)))
        kill(victim.pid)
        victim.join()
        workers.append(start(*how))
    join_all(workers)
    assert_as_alone(tmp_path / "runs" / "small", two_alone)


# ---- workers, nodes, drivers and lock holders ------------------------------------------------------------------------


def four_cells(checkpoint: Path, folder: Path) -> dict[str, Any]:
    """In 24 shards each, which two and two cells share; with probes."""
    found = study_of(checkpoint, questions_in(folder), folder)
    found["sampling"] |= {"shard_size": 2, "m": 30}
    return found | {"styles": ["concise", "sentence"], "semantics": [{"kind": "exact"}, {"kind": "mention"}]}


@pytest.fixture(scope="module")
def four_alone(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return as_alone(checkpoint, tmp_path_factory.mktemp("alone"), four_cells)


@pytest.fixture
def cluster() -> Iterator[Any]:
    pytest.importorskip("ray", reason="needs the extra: pip install 'semcal[ray]'")
    with two_nodes() as started:
        yield started


def holders(folder: Path, name: str) -> list[int]:
    """The processes, other than this one, that have claims of a name or pattern on runs or parts of them."""
    found = set()
    for path in folder.glob(f"*__*/{name}"):
        with suppress(OSError):
            found |= {int(pid) for pid in re.findall(r"^pid=(\d+)$", path.read_text(), re.MULTILINE)}
    return sorted(found - {os.getpid()})


def ray_workers() -> list[int]:
    found = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            if process.cmdline()[:1] and process.cmdline()[0].startswith("ray::ShardWorker"):
                found.append(process.pid)
    return found


def found_within(seconds: float, look: Callable[[], list[int]]) -> list[int]:
    until = time.monotonic() + seconds
    while not (found := look()) and time.monotonic() < until:
        time.sleep(0.005)
    return found


def test_thirty_random_kills_of_workers_nodes_drivers_and_lock_holders(cluster, checkpoint, four_alone, tmp_path):
    """Shards are let go a few at a time, so that there is work at hand whenever something is killed, and the last one of
    each cell at the end, so that nothing ends before."""
    chance = np.random.default_rng(20)
    file, folder = write_study(tmp_path, four_cells(checkpoint, tmp_path)), tmp_path / "runs" / "small"
    runs = prepare_study(load_study(file)).runs
    with ExitStack() as held:
        kept = []
        for run in runs:
            *keys, last = Run(four_alone / run.name).shard_keys()
            assert held.enter_context(claimed(run.folder, part(last)))
            for key in keys:
                kept.append(held.enter_context(ExitStack()))
                assert kept[-1].enter_context(claimed(run.folder, part(key)))
        chance.shuffle(kept)
        lived = Life(cluster, file, folder, chance)
        kinds = ["worker"] * 10 + ["holder"] * 11 + ["ray worker"] * 3 + ["node"] * 3 + ["driver"] * 3
        for number, kind in enumerate(chance.permutation(kinds)):
            lived.kill(kind, kept[number * len(kept) // KILLS : (number + 1) * len(kept) // KILLS])
    join_all([*lived.workers, lived.driver])
    work(file, 0.0, False)  # the same command once more clears away what those left that were killed last
    assert lived.killed == KILLS
    assert_as_alone(folder, four_alone)


def let_go(kept: list[ExitStack]) -> None:
    for claim in kept:
        claim.close()


class Life:
    """Two processes and a driver of Ray that work on a study; each that is killed is started again."""

    def __init__(self, cluster: Any, file: Path, folder: Path, chance: np.random.Generator) -> None:
        self._cluster, self._folder, self._chance = cluster, folder, chance
        self._worker, self._driver = (file, 0.1, False), (file, 0.0, False, cluster.address)
        self.workers = [start(*self._worker) for _ in range(2)]
        self.driver = start(*self._driver)
        self.killed = 0

    def kill(self, kind: str, kept: list[ExitStack]) -> None:
        """Kill one of a kind, once these shards are let go."""
        self.killed += 1
        if kind in ON_RAY:
            at_work = self._at_work_on_ray(kept)
        else:
            at_work = []
            let_go(kept)
            time.sleep(self._chance.uniform(0, 1))
        if kind == "node":
            self._cluster.remove_node(self._chance.choice(sorted(self._cluster.worker_nodes, key=str)), False)
            self._cluster.add_node(num_cpus=1, object_store_memory=SMALL["object_store_memory"])
        elif kind == "driver":
            kill(self.driver.pid)
        elif kind == "ray worker":
            kill(self._chance.choice(at_work))
        else:
            name = self._chance.choice([f"{CLAIMS}/*", WRITING, LOCK])
            found = found_within(1.0, lambda: holders(self._folder, name)) if kind == "holder" else []
            kill(self._chance.choice(found or [w.pid for w in self.workers]))
        self._replace()

    def _at_work_on_ray(self, kept: list[ExitStack]) -> list[int]:
        """The workers of Ray that are at work on these shards, which it alone can take."""
        for worker in self.workers:
            kill(worker.pid, signal.SIGSTOP)
        let_go(kept)
        found = found_within(PATIENCE_S, lambda: sorted({*holders(self._folder, f"{CLAIMS}/*")} & {*ray_workers()}))
        for worker in self.workers:
            kill(worker.pid, signal.SIGCONT)
        assert found, f"no worker of Ray has begun a shard in {PATIENCE_S} s"
        return found

    def _replace(self) -> None:
        time.sleep(0.05)
        for at, worker in enumerate(self.workers):
            if worker.exitcode is not None:
                assert worker.exitcode == -signal.SIGKILL
                self.workers[at] = start(*self._worker)
        if self.driver.exitcode is not None:
            assert self.driver.exitcode == -signal.SIGKILL
            self.driver = start(*self._driver)
