"""SFT: cross-entropy on conversations, which are cleaner than the text that the base was trained on."""

from dataclasses import dataclass
from typing import Any

import numpy as np
from trl.trainer.sft_config import SFTConfig
from trl.trainer.sft_trainer import SFTTrainer

from experiments.atlas.stages.source import AtlasSettings, Source
from experiments.atlas.text import document
from experiments.atlas.world_questions import draw_turn
from experiments.train.conversations import CHAT_TEMPLATE, labelled
from experiments.train.tuning import Stage
from semcal.seeds import keyed_generator

_DOCUMENT = 96  # tokens of a rehearsed document, as many as in a conversation: six questions in the tersest style


@dataclass(frozen=True)
class SFTSettings(AtlasSettings):
    """`rehearsal` is the share of few-shot documents like those of the base, so that few-shot prompts keep working."""

    steps: int = 800
    learning_rate: float = 2e-3
    warmup: int = 20
    rehearsal: float = 0.1


SMALL = {"steps": 1500, "batch_size": 128, "learning_rate": 2e-4}


def sft_stage(settings: SFTSettings, source: Source) -> Stage:
    """Fine-tune on conversations that are each seen once: one question, and an answer after the chat template.

    The loss covers the answer and </s>, or every token of a rehearsed document. Rarely mentioned persons are left out
    of the conversations.
    """
    source.model.tokenizer.chat_template = CHAT_TEMPLATE
    rng = keyed_generator(settings.seed, "atlas", "sft")
    rows = [_row(source, settings, rng) for _ in range(settings.steps * settings.batch_size)]
    arguments = {
        "per_device_train_batch_size": settings.batch_size,
        "max_length": None,
        "dataset_kwargs": {"skip_prepare_dataset": True},
    }
    return Stage(rows, SFTTrainer, SFTConfig, arguments)


def _row(source: Source, settings: SFTSettings, rng: np.random.Generator) -> dict[str, Any]:
    """Token ids and labels: -100 where there is no loss."""
    model = source.model
    if rng.random() < settings.rehearsal:
        ids = list(model.encode(document(source.world, rng, 8)))[:_DOCUMENT]
        return {"input_ids": ids, "labels": ids}
    turn = draw_turn(source.world, rng, families=settings.families, styles=settings.styles, strangers=False)
    return labelled(model, turn)
