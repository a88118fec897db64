"""The stages of the lineage by name, and settings for the machine at hand."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.atlas.stages import base, dpo, grpo, sft
from experiments.atlas.stages.checkpoints import Progress, Training
from experiments.atlas.stages.tuning import Source, train_on
from experiments.atlas.text import FAMILIES
from experiments.atlas.weights import bundled
from semcal.errors import UserError, nearest
from semcal.models.checkpoint import pick_device
from semcal.questions.question import STYLES

STAGES = {
    "base": (base.TrainingSettings, base.SMALL),
    "sft": (sft.SFTSettings, sft.SMALL),
    "dpo": (dpo.DPOSettings, dpo.SMALL),
    "grpo": (grpo.GRPOSettings, grpo.SMALL),
}
STARTS = {"sft": "base", "dpo": "sft", "grpo": "sft"}  # stage -> the stage it starts from
PRESETS = ("cpu", "small")


def settings_of(stage: str, preset: str, /, **given: Any) -> Any:
    """The settings of a stage: those of the preset, replaced by those given.

    "cpu" is what the shipped checkpoints were made with; "small" trains some 13 M parameters on a GPU.

    Raises:
        UserError: unknown stage, preset or setting; a value of the wrong type.
    """
    for name, known, what in ((stage, STAGES, "stage"), (preset, PRESETS, "preset")):
        if name not in known:
            raise UserError(f"unknown {what} {name!r}{nearest(name, known)}; expected one of {', '.join(known)}")
    kind, small = STAGES[stage]
    defaults = dataclasses.asdict(kind())
    for key, value in given.items():
        if key not in defaults:
            raise UserError(f"stage {stage} has no setting {key!r}{nearest(key, defaults)}; leave it out")
        given[key] = _checked(key, value, defaults[key])
    return kind(**(small if preset == "small" else {}) | given)


def _checked(key: str, value: Any, default: Any) -> Any:
    """A value of the type of its default."""
    if isinstance(default, tuple):
        names = (value,) if isinstance(value, str) else tuple(value)
        known = {"families": FAMILIES, "styles": STYLES}[key]
        for name in names:
            if name not in known:
                raise UserError(f"{key}: unknown name {name!r}{nearest(str(name), known)}; one of {', '.join(known)}")
        return names
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not type(default) or (isinstance(value, int | float) and value < 0):
        raise UserError(f"{key} is {value!r}; expected a value such as {default!r}")
    return value


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
        start: Checkpoint to start from; default: the bundled one of the stage before.

    Raises:
        UserError: `base` with a checkpoint to start from; an unsuitable start; `out` was started with different
            settings; training diverged.
    """
    if stage == "base":
        if start is not None:
            raise UserError("stage base is trained from scratch; leave --from out")
        return base.train_base(settings, out, device=str(pick_device("auto")), on_progress=on_progress)
    source = Source.open(start or bundled(STARTS[stage]), conversing=stage != "sft")
    made = {"stage": stage, "from": source.model.weights_hash, "world_seed": source.world.seed}
    kept = Training(made | dataclasses.asdict(settings), checkpoints=out / stage, final=out / stage)
    if kept.finished:
        return kept.final
    build = {"sft": sft.sft_stage, "dpo": dpo.dpo_stage, "grpo": grpo.grpo_stage}[stage]
    return train_on(build(settings, source), source, kept, settings, on_progress)
