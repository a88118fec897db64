"""What large studies and many workers cost: CPU seconds and memory of the driver, the overhead of a shard, throughput.

Every case runs in a process of its own, so that its memory is its own; CPU seconds are those of that process, and of
those it started.
"""

from __future__ import annotations

import heapq
import json
import multiprocessing
import os
import random
import resource
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import psutil
import torch

from experiments.bench.timing import Skipped
from experiments.cluster.on_ray.ray_places import connected
from experiments.cluster.on_ray.ray_worker import Answer
from experiments.cluster.on_ray.shard_queue import Alike, Begin, ShardQueue, Work
from experiments.config.study import Study
from experiments.pipeline.progress import Reporter
from experiments.pipeline.run_study import prepare_study, run_study
from semcal.questions.load_dataset import load_dataset
from semcal.runs.claims import claimed, part

MODELS, DATASETS, STYLES, QUESTIONS = 30, 6, ("concise", "sentence", "cot"), 1000  # 540 cells
MILLION, SHARDS, WORKERS, CALLS = 1_000_000, 100_000, 64, 500
PER_SHARD_S, FLAT_BYTES = 0.002, 2**26
ASKED = 400  # questions whose sampling is timed
_WORDS = [f"word{i}" for i in range(5000)]


@dataclass(frozen=True)
class Scaled:
    """One case.

    Attributes:
        units: What was done so often: cells, questions, shards or answers.
        wall_s, cpu_s: For all of them.
        peak_bytes: Of the process that did it; 0 where it does not matter.
        per_unit_ms: CPU time.
        holds: Whether it is within its limits, if it has any.
    """

    case: str
    units: int
    wall_s: float
    cpu_s: float
    peak_bytes: int
    per_unit_ms: float
    holds: bool = True

    @property
    def line(self) -> str:
        return (
            f"{self.case}: {self.cpu_s:.2f} CPU s, {self.wall_s:.2f} s, {self.per_unit_ms:.3g} ms a unit, "
            f"{self.peak_bytes / 2**30:.2f} GiB"
        )

    def to_dict(self) -> dict[str, object]:
        return asdict(self)


def scale_cases(device: str = "auto") -> Iterator[Scaled | Skipped]:  # noqa: ARG001
    """All of them, the short ones first."""
    yield simulated()
    yield claims()
    yield ray_calls()
    yield resolved()
    yield from shared()
    yield million()


def in_process(case: str, units: int, run: Callable[[], Any], *, cpu_s: float = 1e9, peak: int = 2**62) -> Scaled:
    """Run something in a process of its own. `cpu_s`, `peak`: its limits."""
    began = time.perf_counter()
    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    assert child.pid
    _, status, used = os.wait4(child.pid, 0)
    wall, cpu, most = time.perf_counter() - began, used.ru_utime + used.ru_stime, used.ru_maxrss * 1024
    if status:
        raise RuntimeError(f"{case}: the process ended with {os.waitstatus_to_exitcode(status)}")
    return Scaled(case, units, wall, cpu, most, 1e3 * cpu / units, cpu <= cpu_s and most <= peak)


# ---- the driver ------------------------------------------------------------------------------------------------------


def simulated(shards: int = SHARDS) -> Scaled:
    """A study of so many shards, by workers that take exponential times: what the driver decides."""
    chance, cells = random.Random(0), shards // 100
    process, grown = psutil.Process(), 0
    cpu, began = time.process_time(), time.perf_counter()
    left = ShardQueue([Alike(f"model {c % 20}", (c,), 100) for c in range(cells)])
    held: list[str | None] = [None] * WORKERS
    events: list[tuple[float, int, Work | None]] = [(0.0, worker, None) for worker in range(WORKERS)]
    holding, done, early = Counter[str](), 0, 0
    while not left.finished:
        now, worker, work = heapq.heappop(events)
        if isinstance(work, Begin):
            left.begun(work, [f"{i:05d}" for i in range(100)])
        elif work is not None:
            left.sampled(work)
            done += 1
        if not early and done >= shards // 4:
            early = process.memory_info().rss
        if (found := left.next(held[worker], holding)) is not None:
            if (before := held[worker]) is not None:
                holding[before] -= 1
            held[worker] = found[0]
            holding[found[0]] += 1
        heapq.heappush(events, (now + chance.expovariate(1.0), worker, found and found[1]))
    used, wall = time.process_time() - cpu, time.perf_counter() - began
    grown = process.memory_info().rss - early
    holds = used / shards <= PER_SHARD_S and grown <= FLAT_BYTES
    return Scaled(f"driver, {shards:,} shards simulated", shards, wall, used, max(0, grown), 1e3 * used / shards, holds)


def resolved() -> Scaled:
    """The grid of the paper: every cell checked and its folder opened."""
    with tempfile.TemporaryDirectory() as folder:
        datasets = []
        for number in range(DATASETS):
            path = Path(folder) / f"questions-{number}.jsonl"
            _write_questions(path, QUESTIONS + 100)
            datasets.append({"kind": "jsonl", "path": str(path), "n": QUESTIONS})
        models = [{"path": "atlas:base", "name": f"model-{i}", "device": "cpu"} for i in range(MODELS)]
        study = Study.model_validate(
            {"name": "grid", "models": models, "datasets": datasets, "styles": STYLES, "output": folder}
        )
        cells = len(study.cells())
        case = f"{cells} cells of {QUESTIONS:,} questions resolved"
        return in_process(case, cells, lambda: prepare_study(study), cpu_s=20, peak=10**9)


def million(questions: int = MILLION) -> Scaled:
    """A table of so many questions."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "questions.jsonl"
        _write_questions(path, questions)
        case = f"{questions:,} questions read"
        return in_process(case, questions, lambda: load_dataset(path), cpu_s=60, peak=4 * 10**9)


def _write_questions(path: Path, n: int) -> None:
    chance = random.Random(path.name)
    with path.open("w") as stream:
        for i in range(n):
            text = f"{' '.join(chance.choices(_WORDS, k=12)).capitalize()} in {1900 + i % 120}?"
            answer = " ".join(chance.choices(_WORDS, k=2)).title()
            row = {"id": f"q{i}", "question": text, "answers": [answer, answer.upper()], "group": f"g{i // 2}"}
            stream.write(json.dumps(row) + "\n")


# ---- the overhead of a shard -----------------------------------------------------------------------------------------


def claims(shards: int = CALLS) -> Scaled:
    """A claim on a shard, taken and given back."""

    def claim() -> None:
        with tempfile.TemporaryDirectory() as folder:
            for i in range(shards):
                with claimed(Path(folder), part(f"{i:05d}")) as ours:
                    assert ours

    return in_process("claims", shards, claim)


class _Idle:
    """A worker that has nothing to do."""

    def sample(self, cell: int, shard: str, start: dict[str, bytes]) -> Answer:  # noqa: ARG002
        return Answer()


def ray_calls(shards: int = CALLS) -> Scaled | Skipped:
    """A call to an actor of Ray on this machine and its answer: CPU of the driver, which waits for each."""
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        return Skipped("Ray", "pip install 'semcal[ray]'")
    with connected(None):
        actor = ray.remote(_Idle).remote()
        ray.get(actor.sample.remote(0, "", {}))
        cpu, began = time.process_time(), time.perf_counter()
        for i in range(shards):
            ray.get(ray.wait([actor.sample.remote(i, f"{i:05d}", {})])[0][0])
        used, wall = time.process_time() - cpu, time.perf_counter() - began
    return Scaled("Ray", shards, wall, used, 0, 1e3 * used / shards, used / shards <= PER_SHARD_S)


# ---- throughput ------------------------------------------------------------------------------------------------------


def shared() -> Iterator[Scaled]:
    """One study sampled by one process with all threads, and by 1, 2 and 4 with their share of the cores."""
    cores = os.cpu_count() or 1
    for workers, threads in ((1, cores), (1, 1), (2, max(1, cores // 2)), (4, max(1, cores // 4))):
        yield _shared(workers, threads)


def _shared(workers: int, threads: int) -> Scaled:
    with tempfile.TemporaryDirectory() as folder:
        study = Study.model_validate(
            {
                "name": "shared",
                "models": [{"path": "atlas:base", "name": "atlas", "device": "cpu"}],
                "datasets": [{"kind": "atlas", "family": "facts", "n": ASKED}],
                "styles": ["cot"],
                "output": folder,
                "sampling": {"shard_size": ASKED // 16},
                "capture": {"positions": []},
                "probes": {"enabled": False},
                "calibration": {"bootstrap": 10, "null_draws": 10, "detail_draws": 10},
            }
        )
        fork = multiprocessing.get_context("fork")

        def work() -> None:
            torch.set_num_threads(threads)
            run_study(prepare_study(study), Reporter())

        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        processes = [fork.Process(target=work) for _ in range(workers)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
            assert process.exitcode == 0
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
        wall = time.perf_counter() - began
    case = f"{workers} process{'es' if workers > 1 else ''} of {threads} thread{'s' if threads > 1 else ''}"
    return Scaled(f"{ASKED} questions, {case}", ASKED, wall, cpu, 0, 1e3 * cpu / ASKED)
