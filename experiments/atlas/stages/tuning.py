"""What every stage after the base shares: settings, where it starts from, and one loop through trl's trainers.

A trainer is given the rows that are still to be trained on, in order, and an optimiser as it stood; it writes nothing
itself. So a stage that was interrupted ends with the weights that it would have ended with.
"""

from __future__ import annotations

import json
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback

from experiments.atlas.stages.checkpoints import MADE, Progress, Stand, Training, adamw, scheduled, warm_cosine
from experiments.atlas.text import FAMILIES
from experiments.atlas.world import World
from semcal.errors import NonFiniteError, UserError
from semcal.models.checkpoint import LanguageModel
from semcal.questions.question import STYLES
from semcal.seeds import keyed_generator

LONGEST_ANSWER = 48  # tokens


@dataclass(frozen=True)
class TuningSettings:
    """Settings of every stage; a batch is counted in conversations, pairs or questions.

    `families` and `styles` are those that the stage trains on.
    """

    seed: int = 0
    steps: int = 100
    batch_size: int = 32
    learning_rate: float = 1e-4
    warmup: int = 10
    weight_decay: float = 0.0
    families: tuple[str, ...] = FAMILIES
    styles: tuple[str, ...] = STYLES
    checkpoints: int = 6


@dataclass(frozen=True)
class Source:
    """The checkpoint that a stage starts from, and the world it knows."""

    model: LanguageModel
    world: World

    @classmethod
    def open(cls, folder: Path, *, conversing: bool, device: str = "auto") -> Source:
        """
        Raises:
            UserError: no checkpoint of atlas, or, where it has to be one that converses, one without a chat template.
        """
        model = LanguageModel.load(folder, device=device)
        if not (Path(folder) / MADE).is_file():
            raise UserError(f"{folder} is not a checkpoint of atlas: it has no {MADE}")
        if conversing and not model.has_chat_template:
            raise UserError(f"{folder} has no chat template; train --stage sft first and start from its folder")
        return cls(model, World(json.loads((Path(folder) / MADE).read_text())["world_seed"]))

    def training(self, stage: str, settings: TuningSettings, out: Path) -> Training:
        """The training of this stage from here in `out/STAGE`.

        Raises:
            UserError: the folder holds one of other settings.
        """
        made = {"stage": stage, "from": self.model.weights_hash, "world_seed": self.world.seed} | asdict(settings)
        folder = out / stage
        return Training(made, checkpoints=folder, final=folder, steps=settings.steps, n=settings.checkpoints)


@dataclass(frozen=True)
class Loop:
    """What a stage hands to its trainer.

    Attributes:
        rows: Those still to be trained on, one optimiser step after the other.
        arguments: For the trainer's configuration.
        given: For the trainer itself: optimiser, schedule, callbacks.
    """

    rows: Dataset
    arguments: dict[str, Any]
    given: dict[str, Any]


def train_on(
    rows: list[dict[str, Any]],
    source: Source,
    kept: Training,
    settings: TuningSettings,
    trainer: Callable[[Loop], Trainer],
    *,
    rows_a_step: int,
    said: Callable[[dict[str, float]], str],
    on_progress: Callable[[Progress], None],
) -> Path:
    """Train through a trainer of trl, in the order of the rows; returns the final checkpoint.

    Args:
        rows: What the dataset holds, `settings.steps` times `rows_a_step` of them.
        trainer: Builds the trainer for a loop; its model is that of the source.
        rows_a_step: Rows of the dataset to a step.
        said: From what the trainer logs to what is worth saying.

    Raises:
        UserError: training diverged.
    """
    model, stand = source.model, kept.stand()
    model.model.requires_grad_(True).train()
    optimizer = adamw(model.model, settings.learning_rate, settings.weight_decay)
    kept.restore(model.model, optimizer)
    schedule = scheduled(optimizer, warm_cosine(settings.warmup, settings.steps), stand.step)
    if stand.step == 0:
        kept.checkpoint(model.model, model.tokenizer, stand)
    keeper = _Keeper(model, kept, settings, optimizer, stand, said, on_progress)
    arguments = {
        "output_dir": str(kept.checkpoints / "unfinished"),
        "max_steps": settings.steps - stand.step,
        "train_sampling_strategy": "sequential",
        "seed": settings.seed,
        "max_grad_norm": 1.0,
        "logging_steps": 1,
        "logging_nan_inf_filter": False,
        "save_strategy": "no",
        "report_to": "none",
        "disable_tqdm": True,
        "use_cpu": model.device.type == "cpu",
        "bf16": False,
        "activation_checkpointing": False,
        "dataloader_pin_memory": False,
    }
    left = Dataset.from_list(rows[stand.step * rows_a_step :])
    if stand.step < settings.steps:
        loop = Loop(left, arguments, {"optimizers": (optimizer, schedule), "callbacks": [keeper]})
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # names that trl's dependencies will change
            built = trainer(loop)
            built.remove_callback(PrinterCallback)
            model.model.config.use_cache = True  # which trl turns off, and a checkpoint would keep off
            try:
                built.train()
            except NonFiniteError as error:
                raise kept.diverged(keeper.stand.step + 1, str(error)) from None
    return kept.finish(model.model, model.tokenizer, keeper.stand)


class _Keeper(TrainerCallback):
    """Watches the loss, keeps checkpoints and reports progress."""

    def __init__(
        self,
        model: LanguageModel,
        kept: Training,
        settings: TuningSettings,
        optimizer: torch.optim.Optimizer,
        stand: Stand,
        said: Callable[[dict[str, float]], str],
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.model, self.kept, self.settings, self.optimizer = model, kept, settings, optimizer
        self.begun = self.stand = stand
        self.said, self.on_progress = said, on_progress
        self.started = time.monotonic()

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """What a step draws depends on the step alone, not on how the training came to it."""
        draws = keyed_generator(self.settings.seed, "tuning", str(self.stand.step))
        torch.manual_seed(int(draws.integers(2**31)))

    def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
        if logs is None or "loss" not in logs:  # the summary at the end
            return
        step, loss = self.stand.step + 1, float(logs["loss"])
        tokens = self.begun.tokens + int(logs.get("num_tokens", 0))
        self.stand = Stand(step, tokens)
        self.kept.after_step(self.model.model, self.model.tokenizer, self.optimizer, loss, self.stand)
        seconds = time.monotonic() - self.started
        left = seconds / (step - self.begun.step) * (self.settings.steps - step)
        self.on_progress(Progress(step, self.settings.steps, loss, tokens, seconds, left, self.said(logs)))
