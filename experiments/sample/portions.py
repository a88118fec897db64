"""How many questions of a shard are sampled together before they are kept.

A stop loses the portion that is being sampled, and a run that goes on repeats it. Its samples are then exactly those of
a run that was never stopped, for each portion is sampled on its own: the batch decides how sums are rounded, which on
a large vocabulary, whose tail is full of tokens that are hardly ever drawn, moves some draws to another token. So the
size of a portion follows from the questions before it, and from no clock.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from semcal.models.checkpoint import LanguageModel
from semcal.sampling.decoding.paths import REREAD

TARGET_S = 60.0  # of a machine as slow as assumed here; one question may take longer
OPERATIONS_PER_S = {"cpu": 2e10, "mps": 2e12, "cuda": 2e13}  # on a CPU, of each thread
GROWTH = 3  # a portion has at most so many times the questions before it


@dataclass(frozen=True)
class Portions:
    """The rule for one run.

    Attributes:
        tokens: That may be read and decoded for one portion.
        worst: Tokens that the answers to one question hold at most.
        prefix: Tokens that all prompts begin with and that are read once; 0 where each prompt is read whole.
        reread: Whether every sequence is read again for each of its tokens.
    """

    tokens: float
    worst: int
    prefix: int
    reread: bool = False

    @classmethod
    def of(cls, model: LanguageModel, *, worst: int, prefix: int, path: str, device: str = "") -> Portions:
        """Args as below; `device` is where another process samples the model, if one does."""
        device = device or model.device.type
        rate = OPERATIONS_PER_S.get(device, OPERATIONS_PER_S["cpu"])
        if device == "cpu":
            rate *= torch.get_num_threads()
        # Two operations, a product and a sum, for each parameter and token.
        return cls(TARGET_S * rate / (2 * model.model.num_parameters()), worst, prefix, path == REREAD)

    def cost(self, prompt: int, answers: Sequence[int]) -> float:
        """Tokens to be read and decoded for a question, given the length of its prompt and of its distinct answers."""
        if self.reread:
            return prompt + sum(n * (prompt + n / 2) for n in answers)
        return prompt - self.prefix + sum(answers)

    def next(self, before: Sequence[float], prompts: Sequence[int]) -> int:
        """Number of questions of the next portion, at least one.

        Args:
            before: What each question of the shard so far has cost; the mean is expected of the next ones.
            prompts: Lengths of the prompts that are left, at least one.
        """
        if before:
            expected, most = sum(before) / len(before), GROWTH * len(before)
        else:
            expected, most = self.cost(max(prompts), [self.worst]), len(prompts)
        return max(1, min(len(prompts), most, int(self.tokens / max(expected, 1.0))))
