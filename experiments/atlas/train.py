"""The command `semcal train`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

from semcal.errors import UserError, nearest

console = Console()


def train(
    organism: Annotated[str, typer.Argument(help="A bundled organism: atlas.")],
    stage: Annotated[str, typer.Option(help="base, sft, dpo or grpo.")] = "base",
    out: Annotated[Path, typer.Option(help="Folder for the checkpoints.")] = Path("runs/atlas"),
    start: Annotated[
        Path | None,
        typer.Option("--from", help="Checkpoint to start from; if left out, the bundled one of the stage before."),
    ] = None,
    preset: Annotated[str, typer.Option(help="cpu (as shipped), or small: 13 M parameters, for a GPU.")] = "cpu",
    seed: Annotated[int, typer.Option(help="Seed of weights, text, pairs and answers.")] = 0,
    steps: Annotated[int | None, typer.Option(min=1, help="Training steps; the preset's if left out.")] = None,
    learning_rate: Annotated[float | None, typer.Option(min=0.0)] = None,
    beta: Annotated[float | None, typer.Option(min=0.0, help="dpo, grpo: pull towards the starting model.")] = None,
    reward: Annotated[str | None, typer.Option(help="grpo: correct, graded or brier.")] = None,
    family: Annotated[list[str] | None, typer.Option(help="Train on this family alone; may be repeated.")] = None,
    style: Annotated[list[str] | None, typer.Option(help="Train on this style alone; may be repeated.")] = None,
) -> None:
    """Train a stage of a bundled organism; one that was interrupted goes on when the same command is given again."""
    if organism != "atlas":
        raise UserError(f"unknown organism {organism!r}{nearest(organism, ['atlas'])}; there is atlas")
    if importlib.util.find_spec("trl") is None:
        raise UserError('training needs trl; pip install "semcal[organisms]"')
    from experiments.atlas.stages.checkpoints import Progress as Step
    from experiments.atlas.stages.lineage import settings_of, train_stage
    from experiments.atlas.text import FAMILIES
    from semcal.questions.question import STYLES

    for chosen, known, what in ((family, FAMILIES, "family"), (style, STYLES, "style")):
        for name in chosen or ():
            if name not in known:
                raise UserError(f"unknown {what} {name!r}{nearest(name, known)}; one of {', '.join(known)}")
    settings = settings_of(
        stage,
        preset,
        seed=seed,
        steps=steps,
        learning_rate=learning_rate,
        beta=beta,
        reward=reward,
        families=tuple(family) if family else None,
        styles=tuple(style) if style else None,
    )
    columns = (BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[facts]}"))
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("steps", total=settings.steps, facts="preparing")

        def show(step: Step) -> None:
            facts = [f"loss {step.loss:.3f}", step.said, f"{step.tokens / 1e6:.2f} M tokens"]
            facts = " · ".join([*filter(None, facts), f"{step.seconds_left / 60:.1f} min left"])
            bar.update(task, completed=step.step, facts=facts)

        folder = train_stage(stage, settings, out, start=start, on_progress=show)
    console.print(f"final checkpoint: {folder}", soft_wrap=True)
