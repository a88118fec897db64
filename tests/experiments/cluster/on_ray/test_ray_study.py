"""A study on a real cluster of three nodes on this machine: nodes and drivers that die lose nothing; and what is
refused in a line. Run by `make test-ray`."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from experiments.cluster.on_ray import ray_places, ray_study
from experiments.cluster.on_ray.ray_places import Node, Place, connected, fitting, gpus_for, one_line, place_for
from experiments.cluster.on_ray.ray_places import _refused as refused
from experiments.cluster.on_ray.ray_worker import ShardWorker
from experiments.config.study import load_study
from experiments.pipeline.progress import Reporter
from experiments.pipeline.run_study import prepare_study, run_study
from experiments.sample.sample_cell import sample_cell
from semcal import Run, UserError
from semcal.runs.claims import WRITING
from semcal.runs.failure import failure_of
from tests.experiments.cluster.on_ray.ray_nodes import SMALL, two_nodes
from tests.experiments.conftest import questions_in, study_of, write_study

pytest.importorskip("ray", reason="needs the extra: pip install 'semcal[ray]'")
ON_A_CLUSTER = pytest.mark.ray
CELLS, QUESTIONS = 2, 48
ROOT = Path(__file__).parents[4]


class Counting(Reporter):
    """Counts answered questions, and does something when there are so many."""

    def __init__(self, at: int = -1, do: Any = None) -> None:
        self.questions, self._at, self._do = 0, at, do

    def answered(self, questions: int) -> None:
        self.questions += questions
        if self._do is not None and self.questions >= self._at:
            self._do, do = None, self._do
            do()


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    import ray

    with two_nodes() as started:
        yield started
        ray.shutdown()


@pytest.fixture(scope="module")
def alone(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same study, run by one process without a cluster; the folder of its runs."""
    folder = tmp_path_factory.mktemp("alone")
    run_study(prepare_study(load_study(write_study(folder, study(checkpoint, folder)))), Reporter())
    return folder / "runs" / "small"


def study(checkpoint: Path, folder: Path) -> dict[str, Any]:
    """Two cells of 48 questions in 24 shards each."""
    found = study_of(checkpoint, questions_in(folder), folder)
    found["sampling"] |= {"shard_size": 2}
    return found | {"styles": ["concise", "sentence"], "probes": {"enabled": False}}


@pytest.fixture
def file(checkpoint: Path, tmp_path: Path) -> Path:
    return write_study(tmp_path, study(checkpoint, tmp_path))


def assert_as_alone(file: Path, alone: Path) -> None:
    runs = sorted((file.parent / "runs" / "small").glob("*__*"))
    assert [r.name for r in runs] == sorted(p.name for p in alone.glob("*__*"))
    for ours, theirs in ((Run.open(p), Run.open(alone / p.name)) for p in runs):
        pd.testing.assert_frame_equal(ours.samples(), theirs.samples())
        pd.testing.assert_frame_equal(ours.questions(), theirs.questions())
        pd.testing.assert_frame_equal(ours.table(), theirs.table())
        assert ours.calibration() == theirs.calibration()
        assert ours.unchanged().changed == ours.unchanged().unknown == ()
        assert {c["outcome"] for c in ours.manifest()["checks"]} <= {"passed", "not made"}
        for hook in theirs.activations("last_prompt_token").layers:
            a, b = (run.activations("last_prompt_token").layer(hook) for run in (ours, theirs))
            assert (a == b).all()
    hidden = {p.name for p in (file.parent / "runs").rglob(".*") if p.is_file()}
    assert hidden <= {WRITING}
    assert (file.parent / "runs" / "small" / "report.html").is_file()


@ON_A_CLUSTER
def test_a_node_that_is_killed_loses_nothing(cluster, file, alone):
    victim = sorted(cluster.worker_nodes, key=str)[0]
    raw = yaml.safe_load(file.read_text()) | {"tracking": {"wandb": "offline"}}
    write_study(file.parent, raw)
    reporter = Counting(at=20, do=lambda: cluster.remove_node(victim, allow_graceful=False))
    try:
        ray_study.run_on_ray(prepare_study(load_study(file)), reporter, cluster.address)
    finally:
        cluster.add_node(num_cpus=1, object_store_memory=SMALL["object_store_memory"])
    assert reporter.questions == CELLS * QUESTIONS, "nothing is counted twice"
    assert_as_alone(file, alone)
    tracked = [p.parent.parent.name for p in file.parent.glob("runs/small/*/wandb/offline-run-*")]
    assert sorted(tracked) == sorted(p.name for p in alone.glob("*__*")), "each cell is a run of W&B"


@ON_A_CLUSTER
def test_a_driver_that_is_killed_is_continued_by_the_next(cluster, file, alone):
    command = [sys.executable, "-m", "tests.experiments.cluster.on_ray.test_ray_study", str(file), cluster.address]
    driver = subprocess.Popen(command, cwd=ROOT)
    saved = 0
    try:
        while saved < 6:
            assert driver.poll() is None, "it ended before it was killed"
            saved = len(list(file.parent.glob("runs/small/*/samples/*.parquet")))
            time.sleep(0.01)
    finally:
        driver.kill()
        driver.wait()
    reporter = Counting()
    ray_study.run_on_ray(prepare_study(load_study(file)), reporter, cluster.address)
    assert 0 < reporter.questions <= CELLS * QUESTIONS - 2 * saved, "what was saved is not done again"
    assert_as_alone(file, alone)


@ON_A_CLUSTER
def test_without_a_shared_folder_results_come_back_as_bytes(cluster, file, alone, monkeypatch):
    """Workers look for the driver's token where they do not find it; they may be stopped in between."""

    @contextmanager
    def nowhere(_: Path) -> Iterator[str]:
        yield "/no/such/folder/token"

    monkeypatch.setattr(ray_study, "_token", nowhere)

    def stop() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        ray_study.run_on_ray(prepare_study(load_study(file)), Counting(at=20, do=stop), cluster.address)
    reporter = Counting()
    ray_study.run_on_ray(prepare_study(load_study(file)), reporter, cluster.address)
    assert 0 < reporter.questions <= CELLS * QUESTIONS - 20
    assert_as_alone(file, alone)


@ON_A_CLUSTER
def test_what_a_worker_refuses_names_its_log(cluster, file):
    raw = yaml.safe_load(file.read_text())
    raw["capture"] = {"hooks": ["blocks.99.hook_resid_post"]}
    with pytest.raises(UserError, match=r"blocks\.99.* \(on .*, log /.*\)"):
        ray_study.run_on_ray(prepare_study(load_study(write_study(file.parent, raw))), Reporter(), cluster.address)


@contextmanager
def occupied(address: str) -> Iterator[None]:
    """Within the block, someone else holds all cores of the cluster."""
    import ray

    class Holding: ...

    ray.init(address=address, log_to_driver=False)
    try:
        actor: Any = ray.remote(Holding).options(num_cpus=1)
        holding = [actor.remote() for _ in range(2)]
        ray.get([each.__ray_ready__.remote() for each in holding])
        yield
    finally:
        ray.shutdown()


@contextmanager
def driven(file: Path, address: str) -> Iterator[subprocess.Popen[str]]:
    """`semcal run` by itself; what it says goes to said.txt."""
    command = [sys.executable, "-m", "experiments.cli", "run", str(file), "--ray", address]
    with (file.parent / "said.txt").open("w") as said:
        driver = subprocess.Popen(command, cwd=ROOT, stdout=said, stderr=said, text=True)
    try:
        yield driver
    finally:
        driver.kill()
        driver.wait()


def wait_for(driver: subprocess.Popen[str], so_far: Callable[[], bool]) -> None:
    while not so_far():
        assert driver.poll() is None, "it ended too early"
        time.sleep(0.05)


@ON_A_CLUSTER
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_ends_the_driver_with_a_line_and_the_same_command_continues(cluster, file, alone, number):
    said = file.parent / "said.txt"
    with occupied(cluster.address), driven(file, cluster.address) as driver:
        wait_for(driver, lambda: "waiting for workers: 0 of 2 joined" in said.read_text())
        assert ended(driver, number) == 128 + number
    assert said.read_text().splitlines()[-1].startswith("semcal: stopped; ")
    with driven(file, cluster.address) as driver:
        wait_for(driver, lambda: len(list(file.parent.glob("runs/small/*/samples/*.parquet"))) > 2)
        assert ended(driver, number) == 128 + number
    text = said.read_text()
    assert re.fullmatch(
        r"semcal: stopped; \d+ of \d+ shards of the cells that were begun are saved, and the same command continues",
        text.splitlines()[-1],
    )
    assert "Traceback" not in text
    with driven(file, cluster.address) as driver:
        assert driver.wait() == 0, said.read_text()
    assert_as_alone(file, alone)


def ended(driver: subprocess.Popen[str], number: int) -> int:
    driver.send_signal(number)
    return driver.wait()


def breaking(log: Path, times: int) -> type:
    """Workers of which so many fail over the first shard of the first cell as nobody foresaw."""

    class Breaking(ShardWorker):
        def sample(self, cell: int, shard: str, start: dict[str, bytes]) -> Any:
            from experiments.cluster.on_ray import ray_worker

            def broken(*given: Any) -> None:
                failures = log.read_text().count("\n") if log.exists() else 0
                if cell == 0 and shard.startswith("00000") and failures < times:
                    with log.open("a") as stream:
                        stream.write(f"{os.getpid()}\n")
                    raise RuntimeError("CUDA error: device-side assert triggered")
                sample_cell(*given)

            ray_worker.sample_cell = broken
            return super().sample(cell, shard, start)

    return Breaking


@ON_A_CLUSTER
def test_what_nobody_foresaw_in_a_worker_is_tried_by_others_and_then_named(cluster, file, alone, monkeypatch):
    failures = file.parent / "failures.txt"
    monkeypatch.setattr(ray_study, "ShardWorker", breaking(failures, ray_study.TRIES))
    said = r"shard 00000\S*: 3 workers failed at it, the last on .*, log (\S+); RuntimeError: CUDA error: device-side assert"
    with pytest.raises(UserError, match=said) as found:
        ray_study.run_on_ray(prepare_study(load_study(file)), Reporter(), cluster.address)
    assert "Traceback" not in str(found.value)
    workers = failures.read_text().split()
    assert len(set(workers)) == ray_study.TRIES, "none was kept"
    log = re.search(said, str(found.value))
    assert log
    assert "RuntimeError: CUDA error" in Path(log[1]).read_text()
    assert any("device-side assert" in failure_of(p) for p in file.parent.glob("runs/small/*__*"))
    ray_study.run_on_ray(prepare_study(load_study(file)), Reporter(), cluster.address)
    assert_as_alone(file, alone)


@ON_A_CLUSTER
def test_a_cluster_that_asks_for_a_token_is_told_from_one_that_is_not_there(tmp_path, monkeypatch):
    token = tmp_path / "token"
    token.write_text("0123456789abcdef0123456789abcdef")
    for name, value in {"HOME": str(tmp_path), "RAY_AUTH_TOKEN_PATH": str(token), "RAY_AUTH_MODE": "token"}.items():
        monkeypatch.setenv(name, value)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    start = ["start", "--head", "--block", f"--port={port}", "--num-cpus=0", "--include-dashboard=false"]
    with tempfile.TemporaryDirectory(prefix="ray-", ignore_cleanup_errors=True) as short:  # for paths of sockets
        head = subprocess.Popen(
            [str(Path(sys.executable).with_name("ray")), *start, f"--temp-dir={short}", "--disable-usage-stats"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            join = [sys.executable, "-c", JOIN, f"127.0.0.1:{port}"]
            until = time.monotonic() + 60
            while subprocess.run(join, cwd=ROOT, capture_output=True, check=False).returncode:
                assert time.monotonic() < until, "a token does not help"
            monkeypatch.delenv("RAY_AUTH_MODE")
            tried = subprocess.run(join, cwd=ROOT, capture_output=True, text=True, check=False)
        finally:
            head.terminate()
            head.wait()
    assert "asks for a token" in tried.stderr
    assert "RAY_AUTH_MODE=token" in tried.stderr


JOIN = """
import sys
from experiments.cluster.on_ray.ray_places import connected, nodes
with connected(sys.argv[1]):
    assert nodes()
"""


def test_where_something_else_listens_a_line_says_so_in_time(monkeypatch):
    monkeypatch.setattr(ray_places, "_JOINED_WITHIN_S", 2.0)
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        said = r"something answers there, but no cluster of Ray within 2 s; .* `ray start --head`"
        with pytest.raises(UserError, match=said):
            connected(f"127.0.0.1:{other.getsockname()[1]}").__enter__()


def test_of_a_traceback_the_last_line_is_told():
    traced = "\x1b[36mray::ShardWorker.sample()\x1b[39m (pid=1)\n  File x\nRuntimeError: CUDA error\n"
    assert one_line(traced) == "RuntimeError: CUDA error"
    assert one_line("The actor died.\n  Its node has died.") == "The actor died. Its node has died."


def test_where_no_cluster_answers_a_line_says_so():
    with pytest.raises(UserError, match=r"--ray 127\.0\.0\.1:9: nothing answers there .* `ray start --head`"):
        connected("127.0.0.1:9").__enter__()


def test_another_version_of_ray_is_named_with_the_remedy():
    """The message is made by Ray's own comparison."""
    from ray._private.utils import check_version_info

    with pytest.raises(RuntimeError) as found:
        check_version_info({"ray_version": "2.9.1", "python_version": sys.version.split()[0]}, "127.0.0.1")
    assert "pip install 'ray==2.9.1'" in str(refused("127.0.0.1:6379", str(found.value)))


@pytest.mark.parametrize(
    ("billions", "gib", "gpus"), [(8, 80, 1), (32, 80, 2), (72, 80, 4), (72, 139, 2), (405, 80, 16)]
)
def test_the_size_of_a_model_says_how_many_gpus_it_takes(billions, gib, gpus):
    parts = {"weights": billions * 2 * 10**9, "temporaries": 2 * 10**9, "kv": 10**12}
    assert gpus_for(parts, gib * 2**30) == gpus


def test_workers_fill_the_nodes_and_share_their_cores():
    two = [Node("a", 64, 8), Node("b", 32, 4)]
    assert place_for(4, two, None) == Place(32, 4)
    assert fitting(Place(32, 4), two) == 3
    assert place_for(0, [Node("a", 8, 0), Node("b", 4, 0)], None) == Place(4, 0)
    assert fitting(Place(4, 0), [Node("a", 8, 0), Node("b", 4, 0)]) == 3


if __name__ == "__main__":  # a driver that is to be killed
    ray_study.run_on_ray(prepare_study(load_study(sys.argv[1])), Reporter(), sys.argv[2])
