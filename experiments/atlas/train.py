"""The command `semcal train`."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from semcal.errors import UserError, nearest

console = Console()
_NUMBER = re.compile(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+")


def train(
    organism: Annotated[str, typer.Argument(help="A bundled organism: atlas.")],
    stage: Annotated[str, typer.Option(help="base, sft, dpo or grpo.")] = "base",
    out: Annotated[Path, typer.Option(help="Folder for the checkpoints.")] = Path("runs/atlas"),
    start: Annotated[
        Path | None,
        typer.Option("--from", help="Checkpoint to start from; default: the bundled one of the stage before."),
    ] = None,
    preset: Annotated[str, typer.Option(help="cpu (as shipped), or small: 13 M parameters, for a GPU.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Seed of weights, text, pairs and answers.")] = 0,
    set: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a setting of the stage: steps, learning_rate, beta, reward, families, …"),
    ] = None,
) -> None:
    """Train a stage of a bundled organism; the same command resumes an interrupted training."""
    if organism != "atlas":
        raise UserError(f"unknown organism {organism!r}{nearest(organism, ['atlas'])}; expected atlas")
    if importlib.util.find_spec("trl") is None:
        raise UserError('training needs trl; pip install "semcal[organisms]"')
    from experiments.atlas.stages.checkpoints import Progress as Step
    from experiments.atlas.stages.lineage import settings_of, train_stage

    settings = settings_of(stage, preset, **{"seed": seed} | dict(map(_setting, set or [])))
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[facts]}"))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("steps", total=settings.steps, facts="preparing")

        def show(step: Step) -> None:
            facts = [f"loss {step.loss:.3f}", step.said, f"{step.tokens / 1e6:.2f} M tokens"]
            facts = " · ".join([*filter(None, facts), f"{step.seconds_left / 60:.1f} min left"])
            bar.update(task, completed=step.step, facts=facts)

        folder = train_stage(stage, settings, out, start=start, on_progress=show)
    console.print(f"final checkpoint: {folder}", soft_wrap=True)


def _setting(override: str) -> tuple[str, Any]:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override}: write it as key=value, e.g. --set steps=25")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        return key, value
    # YAML reads 1e-5 as text
    return key, float(parsed) if isinstance(parsed, str) and _NUMBER.fullmatch(parsed) else parsed
