"""DPO: preferences between a model's own answers, one correct and one wrong."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from transformers import PreTrainedModel
from trl.trainer.dpo_config import DPOConfig
from trl.trainer.dpo_trainer import DPOTrainer

from experiments.train.conversations import Turn
from experiments.train.tuning import Stage
from semcal.models.checkpoint import Answer


class PreferenceSettings(Protocol):
    """`beta` is the strength of the pull towards the model that the answers were drawn from, which is the reference."""

    @property
    def batch_size(self) -> int: ...
    @property
    def beta(self) -> float: ...


def preference_stage(settings: PreferenceSettings, rows: list[dict[str, Any]], reference: PreTrainedModel) -> Stage:
    """Direct preference optimisation (Rafailov et al. 2023) of a chat model on pairs."""
    arguments = {"per_device_train_batch_size": settings.batch_size, "beta": settings.beta, "max_length": None}
    return Stage(
        rows,
        DPOTrainer,
        DPOConfig,
        arguments,
        given={"ref_model": reference},
        said=lambda logs: f"chosen preferred {logs['rewards/accuracies']:.0%}",
    )


@dataclass(frozen=True)
class Pair:
    """A correct and a wrong answer to one question."""

    turn: Turn
    chosen: str
    rejected: str

    @property
    def row(self) -> dict[str, Any]:
        """The pair in trl's format."""
        answers = {"chosen": self.chosen, "rejected": self.rejected}
        told = {name: [{"role": "assistant", "content": text}] for name, text in answers.items()}
        return {"prompt": self.turn.prompt, **told}


def pair_of(turn: Turn, answers: Sequence[Answer], right: Sequence[bool], rng: np.random.Generator) -> Pair | None:
    """One right and one wrong answer to a question, each as likely as it was sampled; None if all are of one kind."""
    if all(right) or not any(right):
        return None
    drawn = []
    for wanted in (True, False):
        kind = [a for a, r in zip(answers, right, strict=True) if r == wanted]
        counts = np.array([a.count for a in kind], dtype=float)
        drawn.append(kind[rng.choice(len(kind), p=counts / counts.sum())].text.strip())
    return Pair(turn, *drawn)
