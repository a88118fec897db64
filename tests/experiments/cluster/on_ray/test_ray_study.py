"""A study on a real cluster of three nodes on this machine: nodes and drivers that die lose nothing; and what is
refused in a line. Run by `make test-ray`."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import yaml

from experiments.cluster.on_ray import ray_study
from experiments.cluster.on_ray.ray_places import Node, Place, connected, fitting, gpus_for, place_for
from experiments.cluster.on_ray.ray_places import _refused as refused
from experiments.config.study import load_study
from experiments.pipeline.progress import Reporter
from experiments.pipeline.run_study import prepare_study, run_study
from semcal import Run, UserError
from semcal.runs.claims import WRITING
from tests.experiments.cluster.on_ray.ray_nodes import SMALL, two_nodes
from tests.experiments.conftest import questions_in, study_of, write_study

pytest.importorskip("ray", reason="needs the extra: pip install 'semcal[ray]'")
ON_A_CLUSTER = pytest.mark.ray
CELLS, QUESTIONS = 2, 48


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
    driver = subprocess.Popen(command, cwd=Path(__file__).parents[4])
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
