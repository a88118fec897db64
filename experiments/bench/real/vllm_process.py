"""vLLM in a process and an environment of its own, asked for answers; the other end of `vllm_answers.py`."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import psutil

from experiments.bench.real import vllm_answers
from semcal.errors import UserError

PYTHON = "SEMCAL_VLLM"  # names the interpreter of an environment that has vLLM


def vllm_python() -> Path:
    """The interpreter of vLLM's environment.

    Raises:
        UserError: none is named, or there is none.
    """
    named = os.environ.get(PYTHON)
    if not named:
        raise UserError(f"{PYTHON} is not set; set it to the python of an environment that has vLLM")
    if not os.access(named, os.X_OK) or not Path(named).is_file():
        raise UserError(f"{PYTHON} is {named}, which is no program; set it to the python of an environment with vLLM")
    return Path(named).absolute()  # not resolved: the link lies in the environment, and its target does not


class Vllm:
    """vLLM with one model, ready to answer; use it in a `with`, which ends the process.

    Args:
        python: An interpreter that has vLLM.
        folder: The model, in Hugging Face format.
        dtype: Of weights and products, such as "float32".
        device: "cpu" or "cuda".
        threads: Number of threads, on a CPU.

    Raises:
        UserError: vLLM does not start; the message ends with its last words.
    """

    def __init__(self, python: Path, folder: Path, dtype: str, *, device: str, threads: int) -> None:
        self._said = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115
        self._process = subprocess.Popen(
            [str(python), "-I", vllm_answers.__file__, str(folder), dtype],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._said,
            text=True,
            env=environment_of(python, device, threads),
        )
        try:
            self._answer()
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Vllm:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def ask(
        self, prompts: Sequence[Sequence[int]], n: int, max_tokens: int, ends: Sequence[int]
    ) -> list[list[list[int]]]:
        """[prompt][sample][token]: n answers to every prompt, each with the token that ended it.

        Raises:
            UserError: vLLM has died.
        """
        request = {"prompts": [list(p) for p in prompts], "n": n, "max_tokens": max_tokens, "ends": list(ends)}
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
        except BrokenPipeError:
            pass  # `_answer` says why
        return self._answer()["answers"]

    def cpu_seconds(self) -> float:
        """CPU time so far of the process and its children, which do the work."""
        root = psutil.Process(self._process.pid)
        times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
        return sum(t.user + t.system for t in times)

    def close(self) -> None:
        """End the process and its children."""
        try:
            tree = psutil.Process(self._process.pid).children(recursive=True)
        except psutil.NoSuchProcess:
            tree = []
        assert self._process.stdin is not None
        try:
            self._process.stdin.close()
            self._process.wait(30)
        except (BrokenPipeError, subprocess.TimeoutExpired):
            self._process.kill()
            self._process.wait()
        for process in tree:
            try:
                process.kill()
            except psutil.NoSuchProcess:
                continue
        self._said.close()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            self._said.seek(0)
            words = [text.strip() for text in self._said if text.strip()]
            errors = [text for text in words if "Error" in text]
            last = (errors or words or ["it said nothing"])[-1]
            raise UserError(f"vLLM ended by itself ({last[-160:]}); check the environment that {PYTHON} names")
        return json.loads(line)


def environment_of(python: Path, device: str, threads: int) -> dict[str, str]:
    """All threads for vLLM, which keeps one core free by default, and the OpenMP library that its manual asks for."""
    env = os.environ | {"VLLM_NO_USAGE_STATS": "1", "HF_HUB_OFFLINE": "1"}
    if device != "cpu":
        return env
    env |= {"CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": str(threads), "VLLM_CPU_NUM_OF_RESERVED_CPU": "0"}
    openmp = python.parent.parent / "lib" / "libiomp5.so"
    return env | {"LD_PRELOAD": str(openmp)} if openmp.exists() else env
