"""A sampler that has its answers drawn by vLLM: token ids in, distinct token sequences with counts out.

vLLM ends an answer at tokens and, where a stop string may cross tokens, at text; where an answer ends is then decided
by the same `StopRule` as everywhere, from the token ids. Activations come from the passes that the samples come from.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from safetensors.numpy import load_file

from semcal.errors import UserError
from semcal.positions import block_of
from semcal.sampling.engine import refuse
from semcal.sampling.records import LENGTH, STOP, Answered, Outcome, Prompt, Sample, Sampling
from semcal.sampling.stopping import StopRule
from semcal.sampling.vllm.interpreter import beyond_tested, environment_of
from semcal.sampling.vllm.piped_script import Ended, PipedScript
from semcal.seeds import keyed_generator

log = logging.getLogger(__name__)

PATH = "vllm"  # among the ways of decoding that a manifest names
_WORKER = Path(__file__).with_name("vllm_worker.py")
_ROWS, _FEWEST_ROWS = 256, 8  # answers at once: vLLM's own choice, and where halving ends
_LENGTHS = 64  # room for prompt and answer is a multiple of so many tokens


class Reader(Protocol):
    """Says what is to be read of each prompt, and keeps it (`probes.activations.engine_capture.EngineCapture`)."""

    layers: tuple[str, ...]

    def places(self, key: str) -> list[int]: ...

    def keep(self, key: str, values: np.ndarray, token_ids: np.ndarray) -> None: ...


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


class VllmEngine:
    """vLLM with one model. It starts when `fit` is called first; `close` ends it.

    Args:
        python: An interpreter that has vLLM.
        model: What it loads.

    Attributes:
        facts: Its versions, device and settings, for a manifest; empty before it has started.
        restarts: How often it was started again with half the answers at once.
    """

    def __init__(self, python: Path, model: VllmModel) -> None:
        self.python, self.model, self.facts, self.restarts = python, model, dict[str, Any](), 0
        self._script: PipedScript | None = None
        self._folder = tempfile.TemporaryDirectory(prefix="semcal-vllm-")
        self._length, self._rows = 0, model.rows
        self._spent = 0.0  # CPU seconds of processes that have ended

    def fit(self, length: int, context: int | None = None) -> None:
        """Start vLLM, or start it again if it has no room for sequences of so many tokens.

        Args:
            length: Tokens of the longest prompt and its answer.
            context: The most that the model can attend to; None where that is far away.

        Raises:
            UserError: it does not start, as with a model that it cannot serve.
        """
        if self._script is not None and length <= self._length:
            return
        self._length = min(-(-length // _LENGTHS) * _LENGTHS, context or sys.maxsize)
        self._start()

    def stop(self) -> None:
        """End the process, and with it what it holds of a GPU; it starts again when it is asked next."""
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
        """M answers to every prompt, in the order in which questions finish; `fit` comes before.

        Args:
            prompts: With distinct keys.
            reader: Is given the activations of each prompt before its answers are.
            on_answered: Called with the number of questions just finished.

        Raises:
            NonFiniteError: NaN or infinity in log-probabilities or activations, naming question and token or layer.
            UserError: vLLM ended, or is out of memory with few answers at once.
        """
        left = {p.key: p for p in prompts}
        while left:
            try:
                for answered in self._sampled(list(left.values()), settings, stop_rule, reader):
                    del left[answered.key]
                    on_answered(1)
                    yield answered
            except OutOfMemory as error:
                self._halve(error)

    def first_tokens(
        self, prompts: Sequence[Prompt], settings: Sampling
    ) -> list[tuple[dict[int, int], dict[int, float]]]:
        """[prompt] of m first tokens how often each was drawn, and the log-probabilities that vLLM states for the
        likeliest ones and for those."""
        asked = [{"ids": p.ids, "seed": _seed(settings, p.key)} for p in prompts]
        found: list[Any] = [None] * len(prompts)
        for reply in self._replies({"do": "first_tokens", "prompts": asked, "params": _law(settings)}):
            found[reply["question"]] = dict(reply["drawn"]), dict(reply["stated"])
        return found

    def forget(self) -> None:
        """Empty vLLM's cache of prompts, so that what was asked before is asked as if for the first time."""
        list(self._replies({"do": "forget"}))

    def _sampled(
        self, prompts: list[Prompt], settings: Sampling, rule: StopRule, reader: Reader | None
    ) -> Iterator[Answered]:
        late = []
        for prompt, answers in self._asked(prompts, settings, rule, reader, stop=_across_tokens(rule)):
            found = _ended(answers, settings, rule)
            if found is None:
                late.append(prompt)
            else:
                yield _checked(prompt.key, found)
        # vLLM saw a stop string where the tokens hold none. Without its help the same seeds draw the same tokens, and
        # more of them.
        for prompt, answers in self._asked(late, settings, rule, None, stop=[]):
            found = _ended(answers, settings, rule)
            if found is None:
                raise UserError(
                    f"vLLM ends an answer to question {prompt.key!r} before its end; set engine to hf, and report this"
                )
            yield _checked(prompt.key, found)

    def _asked(
        self, prompts: list[Prompt], settings: Sampling, rule: StopRule, reader: Reader | None, *, stop: list[str]
    ) -> Iterator[tuple[Prompt, list[Any]]]:
        if not prompts:
            return
        questions = [
            {"ids": p.ids, "seed": _seed(settings, p.key), "read": reader.places(p.key) if reader else []}
            for p in prompts
        ]
        ends = torch.nonzero(rule.certain).flatten().tolist()
        how = {"max_tokens": settings.max_new_tokens, "stop_token_ids": ends, "stop": stop, "detokenize": bool(stop)}
        hooks = [(block_of(name), name.endswith("hook_resid_pre")) for name in (reader.layers if reader else ())]
        request = {"do": "sample", "questions": questions, "hooks": hooks, "folder": self._folder.name}
        for reply in self._replies(request | {"params": _law(settings) | how}):
            prompt = prompts[reply["question"]]
            if reader is not None and reply["read"]:
                found = load_file(reply["read"])
                os.unlink(reply["read"])
                reader.keep(prompt.key, found["values"], found["token_ids"])
            yield prompt, reply["answers"]

    def _replies(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if self._script is None:  # an error ended it
            self._start()
        script = self._script
        assert script is not None
        script.tell(request)
        try:
            while not (reply := self._heard(script)).get("done"):
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


def _seed(settings: Sampling, key: str) -> int:
    return int(keyed_generator(settings.seed, key, "vllm").integers(2**62))


def _law(settings: Sampling) -> dict[str, Any]:
    """How answers are drawn, in vLLM's names; every other knob is neutral."""
    return {
        "n": settings.m,
        "temperature": settings.temperature,
        "top_k": settings.top_k or 0,
        "top_p": settings.top_p or 1.0,
    }


def _across_tokens(rule: StopRule) -> list[str]:
    """The stop strings that more than one token may complete: a single character lies in one token."""
    return [s for s in rule.stop if len(s) > 1 or not s.isascii() or s == " "]


def _ended(answers: Sequence[Any], settings: Sampling, rule: StopRule) -> dict[Outcome, int] | None:
    """The distinct answers and their counts, each up to where it ends; None if one was broken off before."""
    found: dict[tuple[int, ...], Outcome] = {}
    counts = Counter[tuple[int, ...]]()
    for ids, stated, count in answers:
        end = rule.end(ids)
        if end is None and len(ids) < settings.max_new_tokens:
            return None
        whole = tuple(ids if end is None else ids[:end])
        logprob = math.fsum(stated[: len(whole)]) if all(map(math.isfinite, stated)) else math.nan
        found.setdefault(whole, Outcome(whole, logprob, LENGTH if end is None else STOP))
        counts[whole] += count
    return {found[ids]: count for ids, count in counts.items()}


def _checked(key: str, found: dict[Outcome, int]) -> Answered:
    """Raises NonFiniteError where vLLM states a log-probability that is none."""
    if any(not math.isfinite(s.logprob) for s in found):
        refuse(key, 0)
    order = sorted(found.items(), key=lambda item: (-item[1], item[0].ids))
    return Answered(key, tuple(Sample(s.ids, s.logprob, s.finish, count) for s, count in order))
