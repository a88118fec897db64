"""What every stage after the base shares: settings, where it starts from, and one loop through trl's trainers.

A trainer is given the remaining rows in order and the restored optimiser, and writes nothing itself. So a stage that
was interrupted ends with the same weights as one that was not.
"""

from __future__ import annotations

import json
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from experiments.atlas.stages.checkpoints import MADE, Progress, Training, TrainingState
from experiments.atlas.text import FAMILIES
from experiments.atlas.world import World
from semcal.errors import NonFiniteError, UserError
from semcal.models.checkpoint import LanguageModel
from semcal.questions.question import STYLES
from semcal.seeds import keyed_generator

LONGEST_ANSWER = 48  # tokens


@dataclass(frozen=True)
class TuningSettings:
    """Settings of every stage; a batch is counted in conversations, pairs or questions of `families` and `styles`."""

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
            UserError: not a checkpoint of atlas, or `conversing` and without a chat template.
        """
        model = LanguageModel.load(folder, device=device)
        if not (Path(folder) / MADE).is_file():
            raise UserError(f"{folder} is not a checkpoint of atlas: it has no {MADE}")
        if conversing and not model.has_chat_template:
            raise UserError(f"{folder} has no chat template; train --stage sft first and start from its folder")
        return cls(model, World(json.loads((Path(folder) / MADE).read_text())["world_seed"]))


@dataclass(frozen=True)
class Stage:
    """What a stage trains on, and how.

    Attributes:
        rows: Of the dataset, `batch_size` per step, in the order of training.
        trainer, config: The trainer and its configuration, both of trl.
        arguments: For the configuration, besides those that all stages share.
        given: For the trainer, likewise.
        said: Turns what the trainer logs into what is reported.
    """

    rows: list[dict[str, Any]]
    trainer: Callable[..., Trainer]
    config: Callable[..., TrainingArguments]
    arguments: dict[str, Any]
    given: dict[str, Any] = field(default_factory=dict)
    said: Callable[[dict[str, float]], str] = lambda _: ""


def train_on(
    stage: Stage, source: Source, kept: Training, settings: TuningSettings, on_progress: Callable[[Progress], None]
) -> Path:
    """Train with a trainer of trl; returns the final checkpoint.

    Raises:
        UserError: training diverged.
    """
    model, tokenizer = source.model.model, source.model.tokenizer
    model.requires_grad_(True).train()
    reached, optimizer, schedule = kept.begin(model, tokenizer)
    keeper = _Keeper(source.model, kept, optimizer, reached, stage.said, on_progress)
    if reached.step < settings.steps:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # names that trl's dependencies will change
            config = stage.config(
                output_dir=str(kept.checkpoints / "unfinished"),
                max_steps=settings.steps - reached.step,
                train_sampling_strategy="sequential",
                seed=settings.seed,
                max_grad_norm=1.0,
                logging_steps=1,
                logging_nan_inf_filter=False,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=source.model.device.type == "cpu",
                bf16=False,
                activation_checkpointing=False,
                dataloader_pin_memory=False,
                **stage.arguments,
            )
            trainer = stage.trainer(
                model,
                args=config,
                train_dataset=Dataset.from_list(stage.rows[reached.step * settings.batch_size :]),
                processing_class=tokenizer,
                optimizers=(optimizer, schedule),
                callbacks=[keeper],
                **stage.given,
            )
            trainer.remove_callback(PrinterCallback)
            model.config.use_cache = True  # trl turns it off, and a checkpoint would keep it off
            try:
                trainer.train()
            except NonFiniteError as error:
                raise kept.diverged(keeper.reached.step + 1, str(error)) from None
    return kept.finish(model, tokenizer, keeper.reached)


class _Keeper(TrainerCallback):
    """Watches the loss, keeps checkpoints and reports progress."""

    def __init__(
        self,
        model: LanguageModel,
        kept: Training,
        optimizer: torch.optim.Optimizer,
        reached: TrainingState,
        said: Callable[[dict[str, float]], str],
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.model, self.kept, self.optimizer = model, kept, optimizer
        self.begun = self.reached = reached
        self.said, self.on_progress = said, on_progress

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """What a step draws depends on the step alone, not on whether training was interrupted before it."""
        draws = keyed_generator(self.kept.made["seed"], "tuning", str(self.reached.step))
        torch.manual_seed(int(draws.integers(2**31)))

    def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
        if logs is None or "loss" not in logs:  # the summary at the end
            return
        self.reached = TrainingState(self.reached.step + 1, self.begun.tokens + int(logs.get("num_tokens", 0)))
        model, loss = self.model, float(logs["loss"])
        progress = self.kept.after_step(model.model, model.tokenizer, self.optimizer, loss, self.reached)
        self.on_progress(replace(progress, said=self.said(logs)))
