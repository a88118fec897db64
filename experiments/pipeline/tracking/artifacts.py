"""The artifacts of a cell, each made from the one before: questions, samples, classes, probes; and the checkpoint."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from experiments.config.study import Cell
from semcal.runs.files import content_key
from semcal.runs.run import Run

if TYPE_CHECKING:  # it takes a second
    import wandb

STAGES = {
    "questions": ("questions.parquet", "aliases.json"),
    "samples": ("samples/*.parquet",),
    "classes": ("classes.parquet", "calibration.json", "intermediate.parquet"),
    "probes": ("probes.parquet", "probe_losses.parquet", "probe_confidence.parquet", "probe_predictions.parquet"),
}
_LONGEST_NAME = 128  # W&B refuses longer ones


def stage_artifact(cell: Cell, run: Run, stage: str) -> wandb.Artifact | None:
    """What a stage of `STAGES` wrote; the same content is the same version of the same name. None before the stage."""
    found = (path for pattern in STAGES[stage] for path in sorted(run.folder.glob(pattern)))
    files = [path for path in found if ".partial" not in path.name]
    if not files:
        return None
    about = {"study": cell.study, "run": run.name, "samples_key": run.manifest()["samples_key"]}
    made = _artifact(f"{stage}--{cell.study}--{run.name}", stage, about)
    for path in files:
        # Shards of samples are never written over, so W&B need not copy them.
        policy = "immutable" if stage == "samples" else "mutable"
        made.add_file(str(path), name=path.relative_to(run.folder).as_posix(), policy=policy)
    return made


def checkpoint_artifact(cell: Cell, run: Run) -> wandb.Artifact:
    """The model as a reference; nothing of it is uploaded, and other weights at the same place are a new version."""
    manifest, path = run.manifest(), str(run.manifest()["model"])
    keys = ("revision", "weights_hash", "tokenizer_hash", "adapter", "base", "quantised", "dtype")
    about: dict[str, Any] = {"model": path} | {key: manifest.get(key) for key in keys}
    made = _artifact(f"model--{cell.model.name}", "model", about)
    with made.new_file("checkpoint.json") as file:
        json.dump(about, file, indent=1)
    made.add_reference(_address(path, manifest.get("revision")), name="weights", checksum=False)
    return made


def verdict_artifact(study: str, folder: Path, names: Iterable[str]) -> wandb.Artifact:
    made = _artifact(f"verdict--{study}", "verdict", {"study": study})
    for name in names:
        made.add_file(str(folder / name), name=name)
    return made


def _artifact(name: str, kind: str, about: dict[str, Any]) -> wandb.Artifact:
    import wandb

    name = re.sub(r"[^\w.-]+", "-", name, flags=re.ASCII)
    if len(name) > _LONGEST_NAME:
        name = f"{name[: _LONGEST_NAME - 9]}-{content_key(name)[:8]}"
    return wandb.Artifact(name, type=kind, metadata=about)


def _address(model: str, revision: str | None) -> str:
    """Where a checkpoint is: of a folder or file, of a server, of the Hub."""
    if Path(model).exists():
        return Path(model).resolve().as_uri()
    if model.startswith(("http://", "https://")):
        return model
    return f"https://huggingface.co/{model}/tree/{revision or 'main'}"
