"""SFT: cross-entropy on a cleaner part of the world's text, in conversations."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from experiments.atlas.conversation import CHAT_TEMPLATE, draw_turn
from experiments.atlas.stages.checkpoints import Progress
from experiments.atlas.stages.tuning import Loop, Source, TuningSettings, train_on
from experiments.atlas.text import document
from semcal.seeds import keyed_generator

_DOCUMENT = 96  # tokens of a rehearsed document, as many as in a conversation: six questions in the tersest style


@dataclass(frozen=True)
class SFTSettings(TuningSettings):
    """`rehearsal` is the share of few-shot documents as the base was trained on, so that such prompts keep working."""

    steps: int = 800
    learning_rate: float = 2e-3
    warmup: int = 20
    rehearsal: float = 0.1


SMALL = {"steps": 1500, "batch_size": 128, "learning_rate": 2e-4}


def train_sft(
    settings: SFTSettings,
    source: Source,
    out: Path,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Path:
    """Fine-tune on conversations that are each seen once: one question, and its answer behind the chat template.

    The loss is on the answer and its </s>; of a rehearsed document it is on every token. Persons who are hardly ever
    written about are left out of the curated part.

    Raises:
        UserError: as `Source.training` and `train_on`.
    """
    kept = source.training("sft", settings, out)
    if kept.finished:
        return kept.final
    source.model.tokenizer.chat_template = CHAT_TEMPLATE
    rng = keyed_generator(settings.seed, "atlas", "sft")
    rows = [_row(source, settings, rng) for _ in range(settings.steps * settings.batch_size)]

    def trainer(loop: Loop) -> SFTTrainer:
        config = SFTConfig(
            **loop.arguments,
            per_device_train_batch_size=settings.batch_size,
            max_length=None,
            dataset_kwargs={"skip_prepare_dataset": True},
        )
        return SFTTrainer(
            source.model.model,
            args=config,
            train_dataset=loop.rows,
            processing_class=source.model.tokenizer,
            **loop.given,
        )

    return train_on(
        rows,
        source,
        kept,
        settings,
        trainer,
        rows_a_step=settings.batch_size,
        said=lambda _: "",
        on_progress=on_progress,
    )


def _row(source: Source, settings: SFTSettings, rng: np.random.Generator) -> dict[str, Any]:
    """Token ids, and the labels of those that the loss is on."""
    model = source.model
    if rng.random() < settings.rehearsal:
        ids = list(model.encode(document(source.world, rng, 8)))[:_DOCUMENT]
        return {"input_ids": ids, "labels": ids}
    turn = draw_turn(source.world, rng, families=settings.families, styles=settings.styles, strangers=False)
    prompt = model.encode_rendered(model.render_chat(turn.asked))
    whole = model.encode_rendered(model.render_chat(turn.whole, answered=True))
    return {"input_ids": list(whole), "labels": [-100] * len(prompt) + list(whole[len(prompt) :])}
