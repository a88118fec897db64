"""How many questions of a shard are sampled together before they are kept.

A stop loses the portion that is being sampled, and a run that goes on repeats it. Its samples are then exactly those of
a run that was never stopped, for each portion is sampled on its own: the batch decides how sums are rounded, which on
a large vocabulary, whose tail is full of tokens that are hardly ever drawn, moves some draws to another token. So the
size of a portion follows from the questions before it, and from no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from semcal.models.checkpoint import LanguageModel
from semcal.sampling.decoding.paths import REREAD

TARGET_S = 100.0  # of a machine as slow as assumed here; one question may take longer
_WIDE = torch.backends.cpu.get_cpu_capability() == "AVX512"
OPERATIONS_PER_S = {"cpu": 4e10 if _WIDE else 2e10, "mps": 2e12, "cuda": 2e13}  # on a CPU, of each thread
TILES = 2  # times as many on a CPU in bfloat16, where it is multiplied in tiles (AMX)
STEP = 16  # tokens that could be decoded while the weights are read for a step
GROWTH = 3  # a portion has at most so many times the questions before it


@dataclass(frozen=True)
class Cost:
    """What one question takes.

    Attributes:
        tokens: Tokens to be decoded; those that are read count as much as they cost beside these.
        steps: Passes, one after another: the length of its longest answer.
    """

    tokens: float
    steps: int


@dataclass(frozen=True)
class Portions:
    """The rule for one run.

    Attributes:
        tokens: That may be decoded for one portion.
        worst: Lengths of the answers to a question that costs most.
        prefix: Tokens that all prompts begin with and that are read once; 0 where each prompt is read whole.
        reading: Cost of a token of a prompt, which needs no output layer, relative to one that is decoded.
        reread: Whether every sequence is read again for each of its tokens.
    """

    tokens: float
    worst: tuple[int, ...]
    prefix: int
    reading: float = 1.0
    reread: bool = False

    @classmethod
    def of(cls, model: LanguageModel, *, worst: tuple[int, ...], prefix: int, path: str, device: str = "") -> Portions:
        """Args as above; `device` is where another process samples the model, if one does."""
        device = device or model.device.type
        rate = OPERATIONS_PER_S.get(device, OPERATIONS_PER_S["cpu"])
        if device == "cpu":
            rate *= torch.get_num_threads()
            if model.dtype == torch.bfloat16 and torch.cpu._is_amx_tile_supported():
                rate *= TILES
        read, decoded = _weights(model)
        # Two operations, a product and a sum, for each weight and token.
        return cls(TARGET_S * rate / (2 * decoded), worst, prefix, read / decoded, path == REREAD)

    def cost(self, prompt: int, answers: Sequence[int]) -> Cost:
        """Of a question, given the length of its prompt and of its distinct answers."""
        steps = max(answers, default=0)
        if self.reread:
            return Cost(self.reading * (prompt + sum(n * (prompt + n / 2) for n in answers)), steps)
        return Cost(self.reading * (prompt - self.prefix) + sum(answers), steps)

    def next(self, before: Sequence[Cost], prompts: Sequence[int]) -> int:
        """Number of questions of the next portion, at least one.

        Args:
            before: What each question of the shard so far has cost. Of the next ones the mean is expected, and as many
                steps as the longest answer had.
            prompts: Lengths of the prompts that are left, at least one.
        """
        if before:
            expected, steps = sum(c.tokens for c in before) / len(before), max(c.steps for c in before)
            most = GROWTH * len(before)
        else:
            worst = self.cost(max(prompts), self.worst)
            expected, steps, most = worst.tokens, worst.steps, len(prompts)
        return max(1, min(len(prompts), most, int((self.tokens - STEP * steps) / max(expected, 1.0))))


def _weights(model: LanguageModel) -> tuple[int, int]:
    """How many weights a token meets that is read, and one that is decoded."""
    embedding: Any = model.model.get_input_embeddings()
    output: Any = model.model.get_output_embeddings()
    decoded = model.model.num_parameters()
    if output.weight is not embedding.weight:
        decoded -= embedding.weight.numel()  # looked up, not multiplied by
    return decoded - output.weight.numel(), decoded
