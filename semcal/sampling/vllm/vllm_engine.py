"""vLLM as a process that this one starts, asks and ends."""

from __future__ import annotations

import logging
import os
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.numpy import load_file

from semcal.errors import UserError
from semcal.sampling.records import Answered, Prompt, Sampling
from semcal.sampling.stopping import StopRule
from semcal.sampling.vllm.interpreter import beyond_tested, environment_of
from semcal.sampling.vllm.piped_script import Ended, PipedScript
from semcal.sampling.vllm.vllm_sampling import Reader, VllmSampling

log = logging.getLogger(__name__)

_WORKER = Path(__file__).with_name("vllm_worker.py")
_ROWS, _FEWEST_ROWS = 256, 8  # answers at once: vLLM's own choice, and where halving ends
_LENGTHS = 64  # room for prompt and answer is a multiple of so many tokens


@dataclass(frozen=True)
class VllmModel:
    """What vLLM loads, and where.

    Attributes:
        model: A folder in Hugging Face format, or a Hub id.
        revision: Branch, tag or commit on the Hub.
        dtype: Of weights and products, such as "float32".
        device: "auto", "cpu", "cuda", "cuda:1", or "balanced" for tensor parallelism over all GPUs.
        trust_remote_code: Whether code that comes with the checkpoint may run.
        rows: Answers decoded in one pass; None: as vLLM sees fit.
    """

    model: str
    revision: str | None = None
    dtype: str = "float32"
    device: str = "auto"
    trust_remote_code: bool = False
    rows: int | None = None


class OutOfMemory(Exception):
    """vLLM ran out of memory, or was killed, as an operating system does that runs out of it."""


class VllmEngine(VllmSampling):
    """vLLM in a process, with one model. It starts when `fit` is called first; `close` ends it.

    Args:
        python: An interpreter that has vLLM.
        model: What it loads.
    """

    def __init__(self, python: Path, model: VllmModel) -> None:
        self.python, self.model, self.facts, self.restarts = python, model, dict[str, Any](), 0
        self._script: PipedScript | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="semcal-vllm-")
        self._length, self._rows = 0, model.rows
        self._spent = 0.0  # CPU seconds of processes that have ended

    def fit(self, length: int, context: int | None = None) -> None:
        """Start vLLM, or start it again if it has no room for sequences of so many tokens."""
        if self._script is not None and length <= self._length:
            return
        self._length = min(-(-length // _LENGTHS) * _LENGTHS, context or sys.maxsize)
        self._start()

    def stop(self) -> None:
        """End the process, and with it what it holds of a GPU."""
        if self._script is not None:
            self._spent += self._script.last_cpu_seconds()
            self._script.close()
            self._script = None

    def close(self) -> None:
        """End the process for good; nothing is left of it."""
        self.stop()
        self._folder.cleanup()

    @property
    def pid(self) -> int | None:
        """Of its process."""
        return self._script and self._script.pid

    def cpu_seconds(self) -> float:
        """CPU time so far of all its processes."""
        return self._spent + (self._script.last_cpu_seconds() if self._script else 0.0)

    def sample(
        self,
        prompts: Sequence[Prompt],
        settings: Sampling,
        stop_rule: StopRule,
        reader: Reader | None = None,
        on_answered: Callable[[int], None] = lambda _: None,
    ) -> Iterator[Answered]:
        """As of every vLLM; where it is out of memory, with half the answers at once."""
        left = {p.key: p for p in prompts}
        while left:
            try:
                for answered in super().sample(list(left.values()), settings, stop_rule, reader, on_answered):
                    del left[answered.key]
                    yield answered
            except OutOfMemory as error:
                self._halve(error)

    def forget(self) -> None:
        """Empty vLLM's cache of prompts, so that what was asked before is asked as if for the first time."""
        list(self._replies({"do": "forget"}))

    def _replies(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if self._script is None:  # an error ended it
            self._start()
        script = self._script
        assert script is not None
        script.tell(request | {"folder": self._folder.name})
        try:
            while not (reply := self._heard(script)).get("done"):
                if file := reply.get("read"):
                    found = load_file(file)
                    os.unlink(file)
                    reply["read"] = found["values"], found["token_ids"]
                yield reply
        except BaseException:
            self.stop()  # it may be in the middle of this request
            raise

    def _heard(self, script: PipedScript) -> dict[str, Any]:
        try:
            reply = script.hear()
        except Ended as ended:
            if ended.killed:
                raise OutOfMemory(str(ended)) from ended
            raise UserError(f"{ended}; set engine to hf if it cannot serve this model") from ended
        if "memory" in reply:
            raise OutOfMemory(reply["memory"])
        return reply

    def _start(self) -> None:
        self.stop()
        asked = asdict(self.model) | {"max_model_len": self._length, "max_num_seqs": self._rows}
        env = environment_of(self.python, self.model.device, torch.get_num_threads())
        script = PipedScript(self.python, _WORKER, asked, env)
        try:
            ready = self._heard(script)
        except (OutOfMemory, UserError) as error:
            script.close()
            raise UserError(
                f"{self.model.model} is not served: {error}; {self.python} is its environment (docs/engines.md)"
            ) from error
        except BaseException:
            script.close()
            raise
        if (said := beyond_tested(ready["vllm"])) and not self.facts:
            log.warning("%s", said)
        self._script = script
        self.facts = {"name": "vllm", "version": ready["vllm"], "torch": ready["torch"], "device": ready["device"]}
        self.facts["settings"] = ready["settings"]

    def _halve(self, error: OutOfMemory) -> None:
        self._rows = (self._rows or _ROWS) // 2
        if self._rows < _FEWEST_ROWS:
            raise UserError(
                f"vLLM ran out of memory ({error}) with {2 * self._rows} answers at once; free some memory, or use a "
                "smaller model or dtype"
            ) from error
        log.warning("vLLM ended (%s), perhaps out of memory: starting it with %d answers at once", error, self._rows)
        self.restarts += 1
        self._start()
