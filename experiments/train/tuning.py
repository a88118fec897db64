"""What every stage after the base shares: one loop through trl's trainers.

A trainer is given the remaining rows in order and the restored optimiser, and writes nothing itself. So a stage that
was interrupted ends with the same weights as one that was not. What it logs is kept in `steps.jsonl`, a line a step.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
import trl.trainer.utils
from datasets import Dataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase, PrinterCallback, Trainer, TrainerCallback
from transformers import TrainingArguments as Arguments

from experiments.train.checkpoints import Progress, Training, TrainingState
from experiments.train.step_log import LOG, add_to_log, cut_log
from semcal.errors import NonFiniteError
from semcal.seeds import keyed_generator


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
    config: Callable[..., Arguments]
    arguments: dict[str, Any]
    given: dict[str, Any] = field(default_factory=dict)
    said: Callable[[dict[str, float]], str] = lambda _: ""


def train_on(
    stage: Stage,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    kept: Training,
    on_progress: Callable[[Progress], None],
) -> Path:
    """Train what requires gradients of a model with a trainer of trl; returns the final checkpoint.

    Args:
        kept: Of settings that are TuningSettings.

    Raises:
        UserError: training diverged.
    """
    steps, batch, seed = kept.made["steps"], kept.made["batch_size"], kept.made["seed"]
    model.train()
    reached, optimizer, schedule = kept.begin(model, tokenizer)
    keeper = _Keeper(kept, reached, stage.said, on_progress)
    if reached.step < steps:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # names that trl's dependencies will change
            config = stage.config(
                output_dir=str(kept.checkpoints / "unfinished"),
                max_steps=steps - reached.step,
                train_sampling_strategy="sequential",
                seed=seed,
                max_grad_norm=1.0,
                logging_steps=1,
                logging_nan_inf_filter=False,
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
                use_cpu=next(model.parameters()).device.type == "cpu",
                bf16=False,
                activation_checkpointing=False,
                dataloader_pin_memory=False,
                **stage.arguments,
            )
            trainer = stage.trainer(
                model,
                args=config,
                train_dataset=Dataset.from_list(stage.rows[reached.step * batch :]),
                processing_class=tokenizer,
                optimizers=(optimizer, schedule),
                callbacks=[keeper],
                **stage.given,
            )
            trainer.remove_callback(PrinterCallback)
            model.config.use_cache = True  # trl turns it off, and a checkpoint would keep it off
            try:
                with _labels_alone():
                    trainer.train()
            except NonFiniteError as error:
                raise kept.diverged(keeper.reached.step + 1, str(error)) from None
    return kept.finish(keeper.reached)


@contextmanager
def _labels_alone() -> Iterator[None]:
    """trl puts every position, prompt and padding included, through the output layer where there is no Triton, lest
    shapes vary; with a large vocabulary that is most of a step on a CPU. Here only labelled positions are."""
    scoring, name = trl.trainer.utils, "_use_triton"
    before = getattr(scoring, name, None)
    if before is None:  # another version of trl
        yield
        return
    setattr(scoring, name, lambda _: True)
    try:
        yield
    finally:
        setattr(scoring, name, before)


class _Keeper(TrainerCallback):
    """Watches the loss, keeps checkpoints and what is logged, and reports progress."""

    def __init__(
        self,
        kept: Training,
        reached: TrainingState,
        said: Callable[[dict[str, float]], str],
        on_progress: Callable[[Progress], None],
    ) -> None:
        self.kept, self.begun, self.reached = kept, reached, reached
        self.said, self.on_progress = said, on_progress
        self.log = kept.checkpoints / LOG
        cut_log(self.log, reached.step)

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        """What a step draws depends on the step alone, not on whether training was interrupted before it."""
        draws = keyed_generator(self.kept.made["seed"], "tuning", str(self.reached.step))
        torch.manual_seed(int(draws.integers(2**31)))

    def on_log(self, *_: Any, logs: dict[str, float] | None = None, **__: Any) -> None:
        if logs is None or "loss" not in logs:  # the summary at the end
            return
        self.reached = TrainingState(self.reached.step + 1, self.begun.tokens + int(logs.get("num_tokens", 0)))
        add_to_log(self.log, self.reached.step, logs)
        progress = self.kept.after_step(float(logs["loss"]), self.reached)
        self.on_progress(replace(progress, said=self.said(logs)))
