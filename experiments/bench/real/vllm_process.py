"""vLLM in a process and an environment of its own, asked for answers; the other end of `vllm_answers.py`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from experiments.bench.real import vllm_answers
from semcal.errors import UserError
from semcal.sampling.vllm.interpreter import PYTHON, environment_of
from semcal.sampling.vllm.piped_script import Ended, PipedScript


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
        begin = {"folder": str(folder), "dtype": dtype}
        self._script = PipedScript(python, Path(vllm_answers.__file__), begin, environment_of(python, device, threads))
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
        self._script.tell(request)
        return self._answer()["answers"]

    def cpu_seconds(self) -> float:
        """CPU time so far of the process and its children, which do the work."""
        return self._script.cpu_seconds()

    def close(self) -> None:
        """End the process and its children."""
        self._script.close()

    def _answer(self) -> dict[str, Any]:
        try:
            return self._script.hear()
        except Ended as ended:
            raise UserError(f"{ended}; check the environment that {PYTHON} names") from None
