"""Commands that run or train a model on what is stored: intervene, tilt, train."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments.terminal.arguments import Targets
from experiments.terminal.output import output
from semcal.errors import UserError, nearest

if TYPE_CHECKING:
    from experiments.pipeline.progress import Steps
    from experiments.train.checkpoints import Progress


def intervene(
    targets: Targets,
    kind: Annotated[str, typer.Option(help="ablate, steer or patch.")] = "ablate",
    layer: Annotated[
        list[str] | None,
        typer.Option(help="Block number or captured hook; repeatable; default: the last layer."),
    ] = None,
    position: Annotated[
        str, typer.Option(help="Position to change; activations must have been captured there.")
    ] = "last_prompt_token",
    rank: Annotated[list[int] | None, typer.Option(min=1, help="Rank of the ablated subspace; repeatable.")] = None,
    size: Annotated[list[float] | None, typer.Option(help="Steering size in standard deviations; repeatable.")] = None,
    random: Annotated[int, typer.Option(min=0, help="Random controls of each kind per intervention.")] = 20,
    n: Annotated[int, typer.Option("-n", "--n", min=2, help="Maximum number of questions to intervene on.")] = 300,
) -> None:
    """Change activations before the model answers, sample again with the same seeds, and measure the effect. Of several
    runs, those that allow none are left out."""
    from experiments.probe.intervention_plan import KINDS, Wanted

    if kind not in KINDS:
        raise UserError(f"unknown kind {kind!r}{nearest(kind, KINDS)}; expected one of {', '.join(KINDS)}")
    if (rank and kind != "ablate") or (size and kind != "steer"):
        raise UserError("--rank needs --kind ablate; --size needs --kind steer")
    from experiments.config.run_folder import stored_cell
    from experiments.pipeline.targets import resolve
    from experiments.probe.intervene import intervene_run
    from experiments.report.intervention_table import EXPLANATION, intervention_table
    from experiments.report.pages import write_report
    from semcal.runs.claims import locked

    wanted = Wanted(kind, tuple(rank or Wanted.ranks), tuple(size or Wanted.sizes), random)
    resolved = resolve(targets)
    runs = [run for target in resolved.targets for run in target.runs]
    left_out, explained = [*resolved.left_out], False
    with output().screen(len(runs)) as screen:
        for run in runs:
            try:
                cell = stored_cell(run)
                with locked(run.folder):
                    found = intervene_run(run, wanted, layers=layer or (), position=position, n=n, tell=screen.stage)
                    screen.stage(cell, "drawing")
                    drawn = write_report(cell, run)
                screen.finished(cell)
            except UserError as error:
                if len(runs) == 1:
                    raise
                left_out.append(str(error))
                continue
            output().rule(cell.label)
            output().show(intervention_table(found))
            output().append("runs", {"folder": run.folder, "interventions": found})
            figures = [f"figures/{name}.png" for name in drawn if name.startswith(f"{kind}-")]
            output().written(run.folder / name for name in (*figures, "report.html"))
            explained = True
    if not explained:
        raise UserError(left_out[len(resolved.left_out)])
    output().explain(EXPLANATION)
    output().left_out(left_out)


def tilt(targets: Targets) -> None:
    """Train low-rank adapters on gold answers by a proper loss, each on half of the questions, ask each the other half,
    and compare remedies: maps of the confidence, probes, the tilted model. Then train one on all: the tilted model to
    ask other questions, path: RUN/adapter. Of several runs, those that allow none are left out."""
    from experiments.compare.remedies_side_by_side import as_frame, explanation, remedies_table, side_by_side
    from experiments.pipeline.targets import sampled_rows
    from experiments.pipeline.tilt_run import tilt_run
    from semcal.runs.files import write_atomically
    from semcal.runs.run import REMEDIES

    rows, left_out = sampled_rows(targets, [])
    refused: list[str] = []
    for cell, run in rows:
        try:
            with output().screen() as screen:
                found = tilt_run(cell, run, screen)
                screen.stage(cell, "comparing")
                remedied, missing = side_by_side(cell, run, found.before, found.after)
                screen.finished(cell)
        except UserError as error:
            if len(rows) == 1:
                raise
            refused.append(str(error))
            continue
        output().rule(cell.label)
        output().show(remedies_table(remedied))
        output().explain(explanation(run, remedied, [one.questions for one in found.learnt], found.tokens))
        left_out += missing
        output().append("runs", {"folder": run.folder, "remedies": as_frame(remedied)})
        table = run.folder / REMEDIES
        write_atomically(table, lambda path, remedied=remedied: as_frame(remedied).to_csv(path, index=False))
        output().written([table, *found.adapters, found.whole])
    if len(refused) == len(rows):
        raise UserError(refused[0])
    output().left_out([*left_out, *refused])


def train(
    organism: Annotated[str | None, typer.Argument(help="A bundled organism (atlas); none with --from.")] = None,
    stage: Annotated[
        str | None, typer.Option(help="base or arm (atlas only; base is its default), sft, dpo or grpo.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for the stages; default: where the model of --from lies if it was trained here."),
    ] = None,
    start: Annotated[
        str | None,
        typer.Option(
            "--from", help="Model to start from, a folder or Hub id; for atlas by default the bundled stage before."
        ),
    ] = None,
    dataset: Annotated[
        str | None,
        typer.Option(help="With --from: a named dataset, NAME:FILE for its original file, or a table of your own."),
    ] = None,
    preset: Annotated[str, typer.Option(help="cpu; or for a GPU: gpu, and for atlas small (13 M parameters).")] = "cpu",
    seed: Annotated[int, typer.Option(help="Seed of weights, text, pairs and answers.")] = 0,
    set: Annotated[
        list[str] | None,
        typer.Option("--set", help="Override a setting of the stage: steps, learning_rate, beta, reward, styles, …"),
    ] = None,
) -> None:
    """Train a stage of a model on a dataset, or of a bundled organism; the same command resumes a training."""
    if organism not in (None, "atlas"):
        raise UserError(f"unknown organism {organism!r}{nearest(organism, ['atlas'])}; expected atlas, or --from MODEL")
    if find_spec("trl") is None or find_spec("peft") is None:
        raise UserError('training needs trl and peft; pip install "semcal[organisms]"')
    given = {"seed": seed} | dict(map(_setting, set or []))
    if organism is None:
        folder = _train_from(start, stage, dataset, out, preset, given)
    else:
        if dataset is not None:
            raise UserError("atlas is trained on its own questions; leave --dataset out, or leave out atlas")
        from experiments.atlas.stages.lineage import settings_of, train_stage
        from experiments.pipeline.progress import Steps

        stage = stage or "base"
        settings, lineage = settings_of(stage, preset, **given), out or Path("runs/atlas")
        with Steps(output().console, settings.steps) as bar, _tracked(f"atlas {stage}", lineage, bar) as step:
            before = None if start is None else Path(start)
            folder = train_stage(stage, settings, lineage, start=before, on_progress=step)
    output().say(f"final checkpoint: {folder}")
    output().record(checkpoint=folder)
    output().unsynced([folder.parent])


@contextmanager
def _tracked(name: str, folder: Path, bar: Steps) -> Iterator[Callable[[Progress], None]]:
    """A step of training for the bar and for W&B."""
    from experiments.pipeline.tracking.commands import training_tracked

    with training_tracked(name, folder) as log:

        def step(progress: Progress) -> None:
            bar.step(progress)
            log(progress)

        yield step


def _train_from(
    start: str | None, stage: str | None, dataset: str | None, out: Path | None, preset: str, given: dict[str, Any]
) -> Path:
    """A stage of any model."""
    for option, value, what in (
        ("--from", start, "a model, or the organism atlas"),
        ("--stage", stage, "sft, dpo or grpo"),
        ("--dataset", dataset, "a named dataset or a table of questions"),
    ):
        if value is None:
            raise UserError(f"{option} is missing: expected {what}, e.g. --from MODEL --stage sft --dataset triviaqa")
    assert start
    assert stage
    assert dataset
    from experiments.config.settings import slug
    from experiments.pipeline.progress import Steps
    from experiments.train.stage_settings import settings_for
    from experiments.train.training_questions import dataset_config

    settings = settings_for(stage, preset, **given)
    dataset_config(dataset)
    from experiments.train.checkpoints import RECORD
    from experiments.train.train_from import train_from

    made_here = (Path(start) / RECORD).is_file()
    lineage = Path(start).resolve().parent if made_here else Path("runs") / slug(Path(start).name)
    into = out or lineage
    with Steps(output().console, settings.steps) as bar, _tracked(f"{stage} {dataset}", into, bar) as step:
        folder = train_from(start, stage, dataset, settings, into, on_progress=step, tell=bar.tell)
        bar.note(f"weights are merged; name {folder / 'trained.jsonl'} as exclude of a study's dataset")
    return folder


def _setting(override: str) -> tuple[str, Any]:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override}: expected key=value, e.g. --set steps=25")
    if re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return key, float(value)  # YAML reads 1e-5 as text
    import yaml

    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        return key, value
