"""A cluster of Ray: joined, or refused in a line; how many workers fit into it, and how many GPUs a model takes."""

from __future__ import annotations

import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from experiments.config.study import Cell, Study
from experiments.pipeline.signals import Stopped, held_back
from semcal.errors import UserError

CPU_ONLY = 0  # GPUs of a worker whose model needs none
_KV_OF_WEIGHTS = 0.25  # room for keys and values that sampling is to have at least; it uses what there is
_USABLE = 0.9  # of the memory of a GPU
_REACHED_WITHIN_S, _JOINED_WITHIN_S, _LOOKED_WITHIN_S = 5.0, 60.0, 120.0
_LOOK_S = 1.0  # at whether a signal has come
_JOIN = "import sys, ray; ray.init(address=sys.argv[1], log_to_driver=False)"


@dataclass(frozen=True)
class Node:
    """What a node of the cluster has."""

    id: str
    cpus: int
    gpus: int


@dataclass(frozen=True)
class Place:
    """What one worker takes."""

    cpus: int
    gpus: int


@contextmanager
def connected(address: str | None) -> Iterator[Callable[[], None]]:
    """Within the block, this process is a driver of the cluster at an address (HOST:PORT, or "auto"); without one, of
    the cluster of RAY_ADDRESS or of this machine, or else of one that is started here and ends with the block.

    Signals are held back in the block, as Ray aborts if its calls are broken off; what is yielded lets them stop it.

    Raises:
        UserError: Ray is not installed, or of another version than the cluster's; no cluster at the address.
    """
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # else it warns
    try:
        import ray  # pyright: ignore[reportMissingImports]
    except ImportError:
        raise UserError("--ray needs a package: pip install 'semcal[ray]'") from None
    if known := address or os.environ.get("RAY_ADDRESS"):
        _check_answers(known)
        _check_joins(known)
    try:
        with held_back():
            try:
                ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR, include_dashboard=None)
            except SystemExit:  # by the handler of SIGTERM that Ray sets
                raise Stopped(signal.SIGTERM) from None
            except Exception as error:  # Ray raises anything, Exception itself among them
                raise _refused(address, str(error)) from error
        with held_back() as stop_if_asked:  # a second time, since Ray has set that handler
            yield stop_if_asked
    finally:
        with held_back():
            ray.shutdown()


def _check_answers(address: str | None) -> None:
    """Ray itself waits for a minute."""
    host, _, port = (address or "").removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return
    try:
        socket.create_connection((host or "127.0.0.1", int(port)), _REACHED_WITHIN_S).close()
    except OSError as error:
        raise UserError(
            f"--ray {address}: nothing answers there ({error.strerror or error}); start a cluster by `ray start "
            "--head` and give the address that it shows, or write --ray local"
        ) from None


def _check_joins(address: str) -> None:
    """Join in a process of its own, which can be ended: where something else answers, Ray waits for minutes, heeds no
    signal, and may abort."""
    try:
        tried = subprocess.run(
            [sys.executable, "-c", _JOIN, address],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_JOINED_WITHIN_S,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise UserError(
            f"--ray {address}: something answers there, but no cluster of Ray within {_JOINED_WITHIN_S:.0f} s; give "
            "the address that `ray start --head` shows (its port is 6379 where none was chosen)"
        ) from None
    if tried.returncode:
        raise _refused(address, tried.stderr)


def _refused(address: str | None, text: str) -> UserError:
    """What to do about what Ray says, which may be a whole traceback."""
    if "InvalidAuthToken" in text or "AuthenticationError" in text:
        return UserError(
            f"--ray {address or 'local'}: the cluster asks for a token, and this process has none or another one; set "
            "RAY_AUTH_MODE=token, and RAY_AUTH_TOKEN_PATH to a copy of the head's ~/.ray/auth_token if this account "
            "has another"
        )
    found = re.findall(r"Ray: ([\w.+]+)\s+Python: ([\w.]+)", text)
    if len(found) == 2 and found[0] != found[1]:
        (theirs, python), (ours, own) = found
        if theirs != ours:
            return UserError(f"the cluster runs Ray {theirs}, here is {ours}; pip install 'ray=={theirs}'")
        return UserError(f"the cluster runs Python {python}, here is {own}; install semcal with Python {python}")
    return UserError(
        f"--ray {address or 'local'}: no cluster of Ray could be joined ({one_line(text)}); `ray status` "
        "shows whether one runs, `ray start --head` starts one"
    )


def one_line(text: str) -> str:
    """Of a traceback, its last line, which names the error; anything else as it is, but not longer than 300."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    traced = "Traceback (" in text or "ray::" in text
    return " ".join((lines[-1] if traced else " ".join(lines)).split())[:300]


def nodes() -> list[Node]:
    """The nodes that are alive."""
    import ray  # pyright: ignore[reportMissingImports]

    return [
        Node(n["NodeID"], int(n["Resources"].get("CPU", 0)), int(n["Resources"].get("GPU", 0)))
        for n in ray.nodes()
        if n["Alive"]
    ]


def place_for(gpus: int, alive: Sequence[Node], cores: int | None) -> Place:
    """What a worker takes whose model needs so many GPUs: with them its share of the cores of a node; without any, all
    cores of the smallest node, or `cores`."""
    if not gpus:
        return Place(cores or max(1, min((n.cpus for n in alive if n.cpus), default=1)), CPU_ONLY)
    share = min((n.cpus * gpus // n.gpus for n in alive if n.gpus >= gpus), default=1)
    return Place(max(1, min(cores or share, share)), gpus)


def fitting(place: Place, alive: Sequence[Node]) -> int:
    """How many workers fit into the nodes."""
    return sum(min(n.cpus // place.cpus, n.gpus // place.gpus if place.gpus else n.cpus) for n in alive)


def gpus_of(
    study: Study, cells: Sequence[Cell], alive: Sequence[Node], stop_if_asked: Callable[[], None]
) -> dict[str, int]:
    """Model -> number of GPUs that it takes, by the estimate of a dry run.

    Raises:
        UserError: no node has as many as a model takes.
    """
    local = [m for m in study.models if not m.is_served and m.device != "cpu"]
    needed = {m.name for m in local} & {c.model.name for c in cells}
    found = {m.name: CPU_ONLY for m in study.models}
    if not needed or not (most := max((n.gpus for n in alive), default=0)):
        if demanding := next((m for m in local if m.name in needed and m.device != "auto"), None):
            raise UserError(f"{demanding.name}: device is {demanding.device}, and no node of the cluster has a GPU")
        return found
    memory = _memory_of_a_gpu(alive, stop_if_asked)
    for name, parts in _estimates(study, needed).items():
        found[name] = gpus = gpus_for(parts, memory)
        if gpus > most:
            raise UserError(
                f"{name} takes {gpus} GPUs of {memory / 2**30:.0f} GiB, and the largest node has {most}; add a node "
                "with more, or set its dtype to bfloat16"
            )
    return found


def gpus_for(parts: Mapping[str, int], memory: int) -> int:
    """The least power of two of GPUs, of so many bytes each, that hold the parts that a dry run counts: 1, 2, 4 and 8
    fill nodes of 8 without a rest."""
    kv = min(parts["kv"], int(_KV_OF_WEIGHTS * parts["weights"]))
    needed, gpus = parts["weights"] + parts["temporaries"] + kv, 1
    while gpus * memory * _USABLE < needed:
        gpus *= 2
    return gpus


def _estimates(study: Study, names: set[str]) -> dict[str, dict[str, int]]:
    """Model -> what a dry run counts for it on a GPU, in its style with the longest answers."""
    from experiments.pipeline.dry_run import dry_run

    models = [m.model_copy(update={"device": "cuda"}) for m in study.models if m.name in names]
    style = max(study.styles, key=study.sampling.length)
    planned = dry_run(study.model_copy(update={"models": models, "styles": [style]}))
    found: dict[str, dict[str, int]] = {}
    for p in planned:
        if p.memory is None:
            raise UserError(
                f"{p.cell.model.name}: its configuration is not on this machine, so nobody knows how many GPUs it "
                "takes; `semcal prompts` the study first, which fetches it"
            )
        known = found.setdefault(p.cell.model.name, p.memory)
        found[p.cell.model.name] = {part: max(size, known[part]) for part, size in p.memory.items()}
    return found


def _memory_of_a_gpu(alive: Sequence[Node], stop_if_asked: Callable[[], None]) -> int:
    """Of the smallest one, in bytes.

    Raises:
        UserError: none is free.
    """
    import ray  # pyright: ignore[reportMissingImports]
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy  # pyright: ignore[reportMissingImports]

    looks: list[Any] = [
        ray.remote(_gpu_memory)
        .options(num_cpus=0, num_gpus=1, scheduling_strategy=NodeAffinitySchedulingStrategy(n.id, soft=False))
        .remote()
        for n in alive
        if n.gpus
    ]
    until, done, waiting = time.monotonic() + _LOOKED_WITHIN_S, [], looks
    while waiting and time.monotonic() < until:
        done, waiting = ray.wait(looks, num_returns=len(looks), timeout=_LOOK_S)
        stop_if_asked()
    for look in waiting:
        ray.cancel(look)
    if not done:
        raise UserError("no GPU of the cluster is free; `ray status` shows who holds them: wait, or stop them")
    return min(ray.get(done))


def _gpu_memory() -> int:
    import torch

    return torch.cuda.get_device_properties(0).total_memory
