"""Which shard a free worker does next: everything once, and a model loaded as rarely as possible."""

from __future__ import annotations

import heapq
from collections import Counter

import numpy as np
import pytest

from experiments.cluster.on_ray.shard_queue import Alike, Begin, Sample, ShardQueue, Work


def sampled_by(groups: list[Alike], shards: int, workers: int, *, deaths: float = 0.0, seed: int = 0):
    """Workers that take exponential times do all of it; some die at a shard, and a new one comes. Returns who did what
    in which order, and how often a model was loaded."""
    left, rng, done = ShardQueue(groups), np.random.default_rng(seed), list[tuple[int, Work]]()
    held: dict[int, str | None] = dict.fromkeys(range(workers))
    events: list[tuple[float, int, Work | None]] = [(0.0, w, None) for w in held]
    loads, born = 0, workers
    while not left.finished:
        now, worker, work = heapq.heappop(events)
        if isinstance(work, Begin):
            first = work.cell in {g.cells[0] for g in groups}
            left.begun(work, [f"{i}" for i in range(shards)] if first else [])
        elif work is not None and rng.random() < deaths:
            left.back(work)
            del held[worker]
            worker, born = born, born + 1
            held[worker] = None
        elif work is not None:
            left.sampled(work)
        found = left.next(held[worker], Counter(m for m in held.values() if m))
        if found is None:
            heapq.heappush(events, (now + 0.1, worker, None))
            continue
        loads += found[0] != held[worker]
        held[worker] = found[0]
        done.append((worker, found[1]))
        heapq.heappush(events, (now + rng.exponential(), worker, found[1]))
    return done, loads


@pytest.mark.parametrize("workers", [1, 3, 8])
def test_everything_is_done_once_and_cells_that_share_samples_wait_for_the_first(workers):
    groups = [Alike(f"m{i % 3}", (2 * i, 2 * i + 1), shards=5) for i in range(9)]
    done, _ = sampled_by(groups, shards=5, workers=workers)
    times = Counter(work for _, work in done)
    assert set(times.values()) == {1}
    assert times.keys() == {Begin(c) for c in range(18)} | {Sample(2 * i, f"{s}") for i in range(9) for s in range(5)}
    order = [work for _, work in done]
    assert all(order.index(Begin(2 * i + 1)) > order.index(Sample(2 * i, "4")) for i in range(9))


def test_one_worker_loads_each_model_once():
    groups = [Alike(f"m{i % 4}", (i,), shards=3) for i in range(20)]
    assert sampled_by(groups, shards=3, workers=1)[1] == 4


def test_workers_spread_over_models_before_they_share_one():
    groups = [Alike(f"m{i}", (i,), shards=40) for i in range(4)]
    done, loads = sampled_by(groups, shards=40, workers=4)
    assert {work.cell for _, work in done[:4]} == {0, 1, 2, 3}
    assert loads <= 4 + 4, "at the end a worker may help with another's model"


def test_what_a_dead_worker_had_in_hand_is_done_by_another():
    done, _ = sampled_by([Alike("m", (0,), shards=50)], shards=50, workers=3, deaths=0.3)
    again = Counter(work for _, work in done)
    assert again.keys() == {Begin(0)} | {Sample(0, f"{s}") for s in range(50)}
    assert max(again.values()) > 1


def test_a_cell_whose_beginning_failed_is_begun_again():
    left = ShardQueue([Alike("m", (0, 1), shards=1)])
    assert left.next(None, {}) == ("m", Begin(0))
    assert left.next("m", {"m": 2}) is None
    left.back(Begin(0))
    assert left.next("m", {"m": 1}) == ("m", Begin(0))
    assert left.begun(Begin(0), [])
    assert not left.finished
    assert left.next("m", {"m": 1}) == ("m", Begin(1))
    assert left.begun(Begin(1), [])
    assert left.finished
