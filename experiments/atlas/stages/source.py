"""Where a stage of the bundled lineage starts from, and what all of its stages share."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from experiments.atlas.text import FAMILIES
from experiments.atlas.world import NEARBY, World
from experiments.train.checkpoints import Format, in_bfloat16
from experiments.train.stage_settings import TuningSettings
from semcal.errors import UserError
from semcal.models.checkpoint import LanguageModel

LONGEST_ANSWER = 48  # tokens
FORMAT = Format("atlas.json", in_bfloat16, in_bfloat16)


@dataclass(frozen=True)
class AtlasSettings(TuningSettings):
    """Settings of every stage after the base; questions are of one of the `families`."""

    families: tuple[str, ...] = FAMILIES


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
        model, record = LanguageModel.load(folder, device=device), Path(folder) / FORMAT.record
        if not record.is_file():
            raise UserError(f"{folder} is not a checkpoint of atlas: it has no {FORMAT.record}")
        if conversing and not model.has_chat_template:
            raise UserError(f"{folder} has no chat template; train --stage sft first and start from its folder")
        made = json.loads(record.read_text())
        return cls(model, World(made["world_seed"], made.get("roads", NEARBY)))
