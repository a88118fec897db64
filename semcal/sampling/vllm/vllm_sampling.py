"""Sampling by vLLM, wherever it runs: token ids in, distinct token sequences with counts out.

vLLM ends an answer at tokens and, where a stop string may cross tokens, at text; where an answer ends is then decided
by the same `StopRule` as everywhere, from the token ids. Activations come from the passes that the samples come from.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Protocol

import numpy as np
import torch

from semcal.errors import UserError
from semcal.positions import block_of
from semcal.sampling.engine import refuse
from semcal.sampling.records import LENGTH, STOP, Answered, Outcome, Prompt, Sample, Sampling
from semcal.sampling.stopping import StopRule
from semcal.seeds import keyed_generator

PATH = "vllm"  # among the ways of decoding that a manifest names


class Reader(Protocol):
    """Says what is to be read of each prompt, and keeps it (`probes.activations.engine_capture.EngineCapture`)."""

    layers: tuple[str, ...]

    def places(self, key: str) -> list[int]: ...

    def keep(self, key: str, values: np.ndarray, token_ids: np.ndarray) -> None: ...


class VllmSampling(ABC):
    """vLLM with one model.

    Attributes:
        facts: Its versions, device and settings, for a manifest; empty before it is known.
        restarts: How often it was started again with half the answers at once.
    """

    facts: dict[str, Any]
    restarts = 0

    @property
    def remedy(self) -> str:
        """What to do if what it computes is not what the model computes, in words."""
        return "use engine hf, and report this"

    @abstractmethod
    def fit(self, length: int, context: int | None = None) -> None:
        """See that sequences of so many tokens have room; comes before all else.

        Args:
            length: Tokens of the longest prompt and its answer.
            context: The most that the model can attend to; None where that is far away.

        Raises:
            UserError: vLLM cannot be had, as with a model that it cannot serve.
        """

    @abstractmethod
    def stop(self) -> None:
        """Let go of what it holds; it is had again when it is asked next."""

    @abstractmethod
    def cpu_seconds(self) -> float:
        """CPU time so far of all its processes, as far as they are known."""

    @abstractmethod
    def _replies(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        """Answers to a request as `vllm_worker` describes it, where `read` holds what was read: None, or [place, hook,
        d_model] float32 and the [place] token ids."""

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
        for answered in self._sampled(list(prompts), settings, stop_rule, reader):
            on_answered(1)
            yield answered

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
        request = {"do": "sample", "questions": questions, "hooks": hooks, "params": _law(settings) | how}
        for reply in self._replies(request):
            prompt = prompts[reply["question"]]
            if reader is not None and reply["read"] is not None:
                reader.keep(prompt.key, *reply["read"])
            yield prompt, reply["answers"]


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
