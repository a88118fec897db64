"""A real cluster of Ray on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

SMALL: dict[str, Any] = {"object_store_memory": 80 * 2**20, "include_dashboard": False}


@contextmanager
def two_nodes() -> Iterator[Any]:
    """A head without cores, and two nodes with one each."""
    from ray.cluster_utils import Cluster

    quick = {"health_check_period_ms": 500, "health_check_timeout_ms": 500, "health_check_failure_threshold": 4}
    quick |= {"worker_niceness": 0, "memory_monitor_refresh_ms": 0}  # what else runs here is not to matter
    started = Cluster(initialize_head=True, head_node_args={**SMALL, "num_cpus": 0, "_system_config": quick})
    try:
        for _ in range(2):
            started.add_node(num_cpus=1, object_store_memory=SMALL["object_store_memory"])
        yield started
    finally:
        started.shutdown()
