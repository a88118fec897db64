"""The stages of the lineage by name, and settings for the machine at hand."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

from experiments.atlas.stages import arms, base, dpo, grpo, sft
from experiments.atlas.stages.source import FORMAT, Source
from experiments.atlas.text import FAMILIES
from experiments.atlas.weights import bundled
from experiments.train.checkpoints import Progress, Training
from experiments.train.stage_settings import settings_with
from experiments.train.tuning import train_on
from semcal.errors import UserError, nearest
from semcal.models.checkpoint import pick_device
from semcal.questions.question import STYLES

STAGES = {
    "base": (base.TrainingSettings, base.SMALL),
    "arm": (arms.ArmSettings, {}),
    "sft": (sft.SFTSettings, sft.SMALL),
    "dpo": (dpo.DPOSettings, dpo.SMALL),
    "grpo": (grpo.GRPOSettings, grpo.SMALL),
}
STARTS = {"arm": "base", "sft": "base", "dpo": "sft", "grpo": "sft"}  # stage -> the stage it starts from
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
    defaults = kind(**(small if preset == "small" else {}))
    return settings_with(stage, defaults, given, {"families": FAMILIES, "styles": STYLES}, {})


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
    source = Source.open(start or bundled(STARTS[stage]), conversing=stage not in ("arm", "sft"))
    if stage == "arm":
        return arms.train_arm(settings, source, out, on_progress)
    made = {"stage": stage, "from": source.model.weights_hash, "world_seed": source.world.seed}
    kept = Training(made | dataclasses.asdict(settings), checkpoints=out / stage, final=out / stage, written=FORMAT)
    if kept.finished:
        return kept.final
    build = {"sft": sft.sft_stage, "dpo": dpo.dpo_stage, "grpo": grpo.grpo_stage}[stage]
    training, model = build(settings, source), source.model
    return train_on(training, model.model.requires_grad_(True), model.tokenizer, kept, on_progress)
