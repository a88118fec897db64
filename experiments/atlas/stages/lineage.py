"""The stages of the lineage by name, and settings for the machine at hand."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.atlas.stages import base as training
from experiments.atlas.stages import dpo as preferences
from experiments.atlas.stages import grpo as reinforcement
from experiments.atlas.stages import sft as supervised
from experiments.atlas.stages.checkpoints import Progress
from experiments.atlas.stages.tuning import Source
from experiments.atlas.weights import bundled
from semcal.errors import UserError, nearest
from semcal.models.checkpoint import pick_device

STAGES = {
    "base": (training.TrainingSettings, training.SMALL),
    "sft": (supervised.SFTSettings, supervised.SMALL),
    "dpo": (preferences.DPOSettings, preferences.SMALL),
    "grpo": (reinforcement.GRPOSettings, reinforcement.SMALL),
}
STARTS = {"sft": "base", "dpo": "sft", "grpo": "sft"}  # stage -> the stage it starts from
PRESETS = ("cpu", "small")


def settings_of(stage: str, preset: str, **given: Any) -> Any:
    """The settings of a stage: those of the preset, and what is given on top (None is not given).

    "cpu" is what the shipped checkpoints were made with, "small" trains some 13 M parameters on a GPU.

    Raises:
        UserError: unknown stage or preset, a setting that the stage has not.
    """
    for name, known, what in ((stage, STAGES, "stage"), (preset, PRESETS, "preset")):
        if name not in known:
            raise UserError(f"unknown {what} {name!r}{nearest(name, known)}; one of {', '.join(known)}")
    kind, small = STAGES[stage]
    wanted = {key: value for key, value in given.items() if value is not None}
    fields = {f.name for f in dataclasses.fields(kind)}
    for key in wanted:
        if key not in fields:
            raise UserError(f"stage {stage} has no {key.replace('_', ' ')}; leave it out")
    return kind(**(small if preset == "small" else {}) | wanted)


def train_stage(
    stage: str,
    settings: Any,
    out: Path,
    *,
    start: Path | None = None,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Path:
    """Train a stage into `out`; returns the folder of its final checkpoint.

    Args:
        settings: Of this stage (`settings_of`).
        start: The checkpoint to start from; the bundled one of the stage before, if left out.

    Raises:
        UserError: `base` from a checkpoint; a start that does not fit; as the stages themselves.
    """
    if stage == "base":
        if start is not None:
            raise UserError("stage base is trained from nothing; leave --from out")
        return training.train_base(settings, out, device=str(pick_device("auto")), on_progress=on_progress)
    source = Source.open(start or bundled(STARTS[stage]), conversing=stage != "sft")
    train = {"sft": supervised.train_sft, "dpo": preferences.train_dpo, "grpo": reinforcement.train_grpo}[stage]
    return train(settings, source, out, on_progress=on_progress)
