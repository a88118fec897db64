"""The command `semcal`."""

from __future__ import annotations

import logging
import os
import re
import sys
from collections.abc import Iterable, Sequence
from contextlib import suppress
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.console import Console
from rich.logging import RichHandler
from rich.markup import escape

from experiments.pipeline.progress import Screen, Steps, complaints
from experiments.pipeline.signals import Stopped, stopping
from semcal.errors import UserError, check_packages, nearest

if TYPE_CHECKING:  # each command imports these when it needs them: torch takes seconds
    from experiments.config.study import Cell
    from semcal.runs.run import Run

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Is a language model's confidence in what it means calibrated, and does the model know it before it answers?",
)
# Tables are wide, and in a pipe or a log need not fit into 80 columns.
console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 140)

_ENVIRONMENT = {
    "TOKENIZERS_PARALLELISM": "false",
    # silences the progress bars of libraries, but not their warnings
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_DATASETS_DISABLE_PROGRESS_BARS": "1",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRL_EXPERIMENTAL_SILENCE": "1",
}

Sets = Annotated[list[str] | None, typer.Option("--set", help="Override a key of the study, e.g. sampling.m=20.")]
Targets = Annotated[list[str], typer.Argument(help="Study files, run folders, or folders of runs.")]
Studies = Annotated[list[Path], typer.Argument(help="Study files.")]


def _show_version(wanted: bool) -> None:
    if wanted:
        console.print(f"semcal {metadata.version('semcal')}", highlight=False)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", is_eager=True, callback=_show_version, help="Show the version.")
    ] = False,
) -> None: ...


@app.command()
def run(
    studies: Studies,
    set: Sets = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every cell; count tokens and memory.")] = False,
    json: Annotated[bool, typer.Option("--json", help="With --dry-run: print everything as JSON.")] = False,
) -> None:
    """Run every cell of a study that is not finished yet; print a summary, write figures and pages."""
    if json and not dry_run:
        raise UserError("--json needs --dry-run")
    if dry_run:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when `datasets` is imported; a dry run must not wait for a network
    from experiments.config.study import load_study

    loaded = [load_study(study, set or []) for study in studies]
    from experiments.verdict.testable import untestable

    for study in loaded:
        for note in untestable(study):
            complaints.print(f"[yellow]{escape(f'{study.name}: {note}')}[/yellow]", soft_wrap=True, highlight=False)
    if dry_run:
        from experiments.pipeline.dry_run import dry_run as plan
        from experiments.pipeline.dry_run_table import show_plan

        for study in loaded:
            show_plan(plan(study), console, as_json=json)
        return
    from experiments.pipeline.forecast import Forecast
    from experiments.pipeline.run_study import prepare_study, run_study

    for prepared in [prepare_study(study) for study in loaded]:
        with Screen() as screen:
            run_study(prepared, Forecast(prepared.study, screen, _tell))
        _print_summary(list(zip(prepared.cells, prepared.runs, strict=True)))
        console.print(f"runs, figures and report.html: {prepared.study.folder}", soft_wrap=True)


def _tell(line: str) -> None:
    complaints.print(line, highlight=False, markup=False, soft_wrap=True)


@app.command()
def prompts(
    studies: Studies,
    set: Sets = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Questions per cell.")] = 2,
) -> None:
    """Show what each model will read: a few prompts per cell, with special tokens and token counts."""
    from experiments.config.study import load_dataset, load_study
    from experiments.sample.asked import look
    from experiments.sample.models import model_to_look_at

    for study in [load_study(path, set or []) for path in studies]:
        datasets = {d.name: load_dataset(d, study.prompting.exemplars) for d in study.datasets}
        models = {m.name: model_to_look_at(m) for m in study.models}
        for cell in {(c.model.name, c.dataset.name, c.style): c for c in study.cells()}.values():
            console.rule(f"{cell.model.name} · {cell.dataset.name} · {cell.style}")
            for shown in look(cell, datasets[cell.dataset.name], models[cell.model.name], n):
                facts, _, text = shown.partition("\n")
                console.print(facts, style="bold", highlight=False, markup=False, soft_wrap=True)
                console.print(text + "▌\n", highlight=False, markup=False, soft_wrap=True)


@app.command()
def doctor(
    model: Annotated[str, typer.Argument(help="Folder, Hub id, or atlas:base.")],
    dataset: Annotated[
        str | None, typer.Argument(help="A named dataset or a file of questions; default: general knowledge.")
    ] = None,
    dtype: Annotated[str, typer.Option(help="float32, bfloat16 or float16.")] = "float32",
    device: Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:N, mps or balanced.")] = "auto",
    json: Annotated[bool, typer.Option("--json", help="Print everything as JSON.")] = False,
) -> None:
    """Make the checks of a run on a model and a few questions, before hours are spent; exit code 2 if one fails."""
    from experiments.report.checks_table import checks_table
    from experiments.sample.doctor import examine

    with complaints.status(f"examining {model}") as status:
        found = examine(model, dataset, dtype=dtype, device=device, tell=status.update)
    if json:
        console.print_json(data=found.to_dict())
    else:
        console.print(checks_table(found.to_dict()["checks"]))
        colour = "green" if found.passed else "bold red"
        console.print(f"[{colour}]{escape(f'{model}: {found.verdict}')}[/{colour}]", soft_wrap=True, highlight=False)
    if not found.passed:
        raise typer.Exit(2)


@app.command()
def score(
    targets: Targets,
    set: Sets = None,
    semantics: Annotated[
        str | None,
        typer.Option(
            help="Compare collapsing functions on the same samples: exact,numeric,choice,wordK,entailment:PATH,"
            "embedding:PATH,judge:MODEL@URL,custom:MODULE:NAME. Or sweep: 60 Bs and more that join classes of "
            "the run's own, calibration error against KL gap. The results of the runs stay; a comparison goes beside "
            "them, to looks/."
        ),
    ] = None,
) -> None:
    """Collapse and calibrate again, without the model, and replace the old results once the new ones are complete; with
    other settings by --set, beside them in looks/. Or compare collapsing functions."""
    if semantics is None:
        _again(targets, set or [], "score")
        return
    if semantics == "sweep":
        _sweep(targets, set or [])
        return
    from experiments.config.study import named_semantics
    from experiments.pipeline.targets import sampled_rows
    from experiments.score.compare_semantics import agreement_table, compare, write_agreement

    chosen = named_semantics(semantics)
    found, (rows, left_out) = [], sampled_rows(targets, set or [])
    with Screen() as screen:
        for cell, run in rows:
            agreement = compare(cell, run, chosen, lambda far, c=cell: screen.stage(c, f"reading, {far}"))
            found.append((cell, run, agreement))
            screen.finished(cell)
    for cell, run, agreement in found:
        console.rule(cell.label)
        for table in agreement_table(agreement):
            console.print(table)
        _print_written([write_agreement(agreement, run)])
    _print_left_out(left_out)


def _sweep(targets: Targets, overrides: list[str]) -> None:
    """Every run under many Bs."""
    from experiments.compare.coarser_semantics import relations, sweep
    from experiments.compare.sweep_table import explanation, sweep_table, write_sweep
    from experiments.pipeline.looks import check_stored
    from experiments.pipeline.targets import resolve, sampled_rows
    from experiments.verdict.rules import SMALL_GAP

    check_stored(resolve(targets, overrides))
    rows, left_out = sampled_rows(targets, overrides)
    for cell, run in rows:
        with Screen() as screen:
            found = sweep(cell, run, lambda far, c=cell: screen.stage(c, far))
            screen.finished(cell)
        delta, level = cell.calibration.delta, cell.calibration.level
        over = relations(found, delta=delta, small_gap=SMALL_GAP, level=level)
        console.rule(cell.label)
        console.print(sweep_table(found, over))
        console.print(explanation(found, delta), highlight=False, markup=False, soft_wrap=True)
        _print_written(write_sweep(cell, run, found, over))
    _print_left_out(left_out)


@app.command()
def probe(
    targets: Targets,
    set: Sets = None,
    activations: Annotated[
        Path | None,
        typer.Option(
            help="Another tool's captures instead of the run's own: .safetensors with a tensor [question, d] per layer "
            "and question_ids in its metadata, or .parquet with question_id and a column of lists per layer."
        ),
    ] = None,
) -> None:
    """Fit probes again and replace the old ones once the new ones are complete; with other settings by --set, or
    another tool's activations, beside them in looks/. The model is loaded only for rungs and baselines that read it."""
    _again(targets, set or [], "probe", activations)


@app.command()
def compare(targets: Targets, set: Sets = None) -> None:
    """Compare runs with paired tests: all with the first, or pairs in a study or folder that differ in one factor."""
    from experiments.compare.compare_runs import compare_all, equalised
    from experiments.compare.comparison_tables import comparison_tables, explanation, temperature_table
    from experiments.compare.pairs import by_temperature
    from experiments.pipeline.looks import check_stored
    from experiments.pipeline.targets import resolve, scored_runs

    check_stored(resolve(targets, set or []))
    runs, named, left_out = scored_runs(targets, set or [])
    with Screen() as screen:
        families = [(family[0].cell, equalised(family)) for family in by_temperature(runs)]
        comparisons = compare_all(runs, named, screen.stage)
        screen.finished(comparisons[-1].b)
    for heading, table in comparison_tables(comparisons):
        console.rule()
        console.print(heading, highlight=False, markup=False, soft_wrap=True)
        console.print(table)
    for cell, matched in families:
        console.rule(f"{cell.label}, by temperature")
        console.print(matched.note, highlight=False, soft_wrap=True)
        console.print(temperature_table(matched))
    console.print(explanation(comparisons), highlight=False, markup=False)
    _print_left_out(_not_scored(left_out))


@app.command()
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
    """Change activations before the model answers, sample again with the same seeds, and measure the effect."""
    from experiments.pipeline.targets import resolve
    from experiments.probe.intervene import intervene_run
    from experiments.probe.intervention_plan import KINDS, Wanted
    from experiments.report.intervention_table import EXPLANATION, intervention_table
    from experiments.report.pages import write_report
    from semcal.runs.folder_lock import locked

    if kind not in KINDS:
        raise UserError(f"unknown kind {kind!r}{nearest(kind, KINDS)}; expected one of {', '.join(KINDS)}")
    if (rank and kind != "ablate") or (size and kind != "steer"):
        raise UserError("--rank needs --kind ablate; --size needs --kind steer")
    wanted = Wanted(kind, tuple(rank or Wanted.ranks), tuple(size or Wanted.sizes), random)
    for cell, changed in [row for target in resolve(targets) for row in zip(target.cells(), target.runs, strict=True)]:
        with Screen() as screen, locked(changed.folder):
            found = intervene_run(changed, wanted, layers=layer or (), position=position, n=n, tell=screen.stage)
            screen.stage(cell, "drawing")
            drawn = write_report(cell, changed)
        console.print(intervention_table(found))
        console.print(EXPLANATION, highlight=False, markup=False)
        figures = [f"figures/{name}.png" for name in drawn if name.startswith(f"{kind}-")]
        _print_written(changed.folder / name for name in (*figures, "report.html"))


@app.command()
def transfer(
    targets: Targets,
    layer: Annotated[str | None, typer.Option(help="Hook name in the first run; default: its last layer.")] = None,
    target: Annotated[str, typer.Option(help="classes or b_confidence.")] = "classes",
    out: Annotated[Path, typer.Option(help="Folder for transfer.csv, .png and .svg.")] = Path("runs/transfer"),
) -> None:
    """Train a probe on each run, test it on every run: what do datasets, styles, checkpoints and models share?"""
    from experiments.compare.transfer_runs import explanation, transfer_runs, transfer_table, write_transfer
    from experiments.pipeline.targets import scored_runs

    runs, _, left_out = scored_runs(targets)
    found = transfer_runs(runs, layer=layer, target=target)
    console.print(transfer_table(found))
    console.print(explanation(found), highlight=False, markup=False)
    write_transfer(found, out)
    _print_written(out / f"transfer.{suffix}" for suffix in ("csv", "png", "svg"))
    _print_left_out(_not_scored(left_out))


@app.command()
def tilt(targets: Targets) -> None:
    """Train a low-rank adapter on gold answers by a proper loss, ask again what it has not seen, and compare remedies:
    maps of the confidence, probes, the tilted model. An adapter is a model: path: RUN/looks/tilt/half-1/adapter."""
    from experiments.compare.remedies_side_by_side import as_frame, explanation, remedies_table, side_by_side
    from experiments.pipeline.targets import sampled_rows
    from experiments.pipeline.tilt_run import tilt_run
    from semcal.runs.files import write_atomically

    rows, left_out = sampled_rows(targets, [])
    for cell, run in rows:
        with Screen() as screen:
            found = tilt_run(cell, run, screen)
            screen.stage(cell, "comparing")
            remedied = side_by_side(cell, run, found.before, found.after)
            screen.finished(cell)
        console.rule(cell.label)
        console.print(remedies_table(remedied))
        said = explanation(run, [one.questions for one in found.learnt], found.tokens)
        console.print(said, highlight=False, markup=False, soft_wrap=True)
        table = found.adapters[0].parents[1] / "remedies.csv"
        write_atomically(table, lambda path, remedied=remedied: as_frame(remedied).to_csv(path, index=False))
        _print_written([table, *found.adapters])
    _print_left_out(left_out)


@app.command()
def gate(
    targets: Targets,
    risk: Annotated[list[float] | None, typer.Option(help="Share that may be wrong; repeatable.")] = None,
    delta: Annotated[float, typer.Option(help="Chance that the guarantee of the answers fails.")] = 0.1,
    guarantee: Annotated[
        str, typer.Option(help='"of the answers" given, or "of the questions", answered or not.')
    ] = "of the answers",
) -> None:
    """Answer only when sure enough: the lowest threshold on each confidence of a run that keeps a risk, with a
    guarantee for questions to come. Without the model."""
    from typing import get_args

    from experiments.compare.gates import as_frame, explanation, gates, gates_table, sources
    from experiments.config.run_folder import LOOKS
    from experiments.pipeline.targets import resolve
    from experiments.score.score import RISKS
    from semcal.calibration.inference.risk_control import Guarantee
    from semcal.runs.files import write_atomically

    risks = risk or [*RISKS]
    if guarantee not in get_args(Guarantee):
        raise UserError(f"unknown guarantee {guarantee!r}{nearest(guarantee, get_args(Guarantee))}")
    if (odd := next((x for x in (*risks, delta) if not 0 < x < 1), None)) is not None:
        raise UserError(f"{odd:g} is no share; --risk and --delta lie between 0 and 1, such as 0.1")
    runs = [run for target in resolve(targets) for run in target.runs if run.calibration()]
    if not runs:
        raise UserError(f"{targets[0]}: none of its runs has been scored; `semcal run` its study first")
    for run in runs:
        rows = gates(sources(run), risks, delta=delta, guarantee=guarantee)  # pyright: ignore[reportArgumentType]
        console.rule(run.name)
        console.print(gates_table(rows))
        said = explanation(rows, delta, guarantee)  # pyright: ignore[reportArgumentType]
        console.print(said, highlight=False, markup=False, soft_wrap=True)
        table = run.folder / LOOKS / "gates.csv"
        table.parent.mkdir(exist_ok=True)
        write_atomically(table, lambda path, rows=rows: as_frame(rows).to_csv(path, index=False))
        _print_written([table])


@app.command()
def verdict(studies: Studies, set: Sets = None) -> None:
    """Decide each hypothesis on the runs of a study, without the model: holds, fails, undecided or not tested. With
    other runs or settings by --set than those in the study's folder, the verdict goes to looks/ there."""
    from experiments.config.run_folder import stored_cell
    from experiments.config.study import load_study
    from experiments.pipeline.looks import study_folder
    from experiments.report.pages import write_study
    from experiments.report.verdict_tables import as_markdown, draw_verdict, verdict_tables
    from experiments.verdict.study_verdict import judge_study, write_verdict
    from semcal.runs.files import replacing
    from semcal.runs.run import Run

    for study in [load_study(path, set or []) for path in studies]:
        with complaints.status("reading runs") as status:
            judgement = judge_study(study, status.update)
        for heading, table in verdict_tables(judgement):
            console.print(heading, highlight=False, markup=False, soft_wrap=True)
            console.print(table)
        for missing in judgement.missing:
            console.print(f"[yellow]{escape(missing)}[/yellow]", soft_wrap=True, highlight=False)
        folder = study_folder(study, set or [])
        with replacing(folder) as staged:
            names = [*write_verdict(judgement, as_markdown(judgement), staged), draw_verdict(judgement, staged)]
        if (folder / "report.html").is_file():  # its page shows the verdicts
            rows = [
                (stored_cell(one), one) for one in (Run(Path(c.folder)) for c in study.cells()) if one.calibration()
            ]
            write_study(study.name, rows, folder)
        _print_written(folder / name for name in names)


@app.command()
def report(targets: Targets, set: Sets = None) -> None:
    """Draw figures and pages again from stored results: of runs, and of a study or a folder of runs as one page. With
    other runs by --set than those in the study's folder, that page goes to looks/ there."""
    from experiments.pipeline.looks import check_stored
    from experiments.pipeline.run_study import report_on
    from experiments.pipeline.targets import resolve

    found = resolve(targets, set or [])
    check_stored(found)
    with Screen() as screen:
        reported = [report_on(target, set or [], screen.stage) for target in found]
    for page, left_out in reported:
        _print_written([page])
        _print_left_out(_not_scored(left_out))


@app.command()
def ls(
    folders: Annotated[list[str] | None, typer.Argument(help="Folders to search; default: runs.")] = None,
) -> None:
    """List runs, their state and headline figures."""
    from experiments.pipeline.targets import resolve
    from experiments.report.summary_table import cells_of, text_table

    table = text_table(("run", "state", "n", "smECE", "excess", "KL gap"), [], left=2)
    unreadable = []
    for found in (run for target in resolve(folders or ["runs"]) for run in target.runs):
        if not found.folder.is_dir():
            table.add_row(str(found.folder), "not run", *"————")
            continue
        try:
            text, n = cells_of(found), found.calibration().get("n", "—")
            table.add_row(str(found.folder), _state(found), str(n), text["smece"], text["excess"], text["kl"])
        except UserError as error:
            table.add_row(str(found.folder), "unreadable", *"————")
            unreadable.append(str(error))
    console.print(table)
    _print_left_out(unreadable)


@app.command()
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

        stage = stage or "base"
        settings = settings_of(stage, preset, **given)
        with Steps(console, settings.steps) as bar:
            before = None if start is None else Path(start)
            folder = train_stage(stage, settings, out or Path("runs/atlas"), start=before, on_progress=bar.step)
    console.print(f"final checkpoint: {folder}", soft_wrap=True)


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
    from experiments.train.stage_settings import settings_for
    from experiments.train.training_questions import dataset_config

    settings = settings_for(stage, preset, **given)
    dataset_config(dataset)
    from experiments.train.checkpoints import RECORD
    from experiments.train.train_from import train_from

    made_here = (Path(start) / RECORD).is_file()
    lineage = Path(start).resolve().parent if made_here else Path("runs") / slug(Path(start).name)
    with Steps(console, settings.steps) as bar:
        folder = train_from(start, stage, dataset, settings, out or lineage, on_progress=bar.step, tell=bar.tell)
        bar.note(f"weights are merged; name {folder / 'trained.jsonl'} as exclude of a study's dataset")
    return folder


def _setting(override: str) -> tuple[str, Any]:
    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"--set {override}: expected key=value, e.g. --set steps=25")
    if re.fullmatch(r"[+-]?\d+(\.\d*)?[eE][+-]?\d+", value):
        return key, float(value)  # YAML reads 1e-5 as text
    try:
        return key, yaml.safe_load(value)
    except yaml.YAMLError:
        return key, value


def _again(targets: list[str], overrides: list[str], stage: str, activations: Path | None = None) -> None:
    """Repeat an analysis of study files or run folders; with other settings than theirs, or a file of activations,
    beside their results."""
    from experiments.config.run_folder import stored_cell
    from experiments.pipeline.looks import differs, look, look_folder, reading
    from experiments.pipeline.run_study import analyse, why_not_probed
    from experiments.pipeline.targets import resolve, sampled_rows
    from experiments.report.pages import write_study
    from experiments.sample.models import Models
    from semcal.runs.folder_lock import locked
    from semcal.runs.run import Run

    (rows, left_out), models = sampled_rows(targets, overrides), Models()
    if activations is not None:
        rows = [(reading(cell, activations), found) for cell, found in rows]
    if stage == "probe" and all(why_not := [why_not_probed(cell, found) for cell, found in rows]):
        raise UserError(why_not[0])
    shown = []
    with Screen() as screen:
        for cell, found in rows:
            with locked(found.folder):
                if (overrides or activations) and differs(cell, found):
                    with look(cell, found) as (beside, copied):
                        analyse(beside, copied, screen, models, again=[stage])
                    shown.append((cell, Run(look_folder(cell, found))))
                else:
                    own = stored_cell(found) if overrides else cell
                    analyse(own, found, screen, models, again=[stage])
                    shown.append((own, found))
            screen.finished(cell)
    if all(one.folder == found.folder for (_, one), (_, found) in zip(shown, rows, strict=True)):
        for target in resolve(targets, overrides):
            if target.study is not None and (own := [row for row in shown if row[1] in target.runs]):
                write_study(target.study.name, own, target.folder)
    _print_summary(shown)
    _print_written(one.folder for (_, one), (_, found) in zip(shown, rows, strict=True) if one.folder != found.folder)
    _print_left_out(left_out)


def _print_summary(rows: Sequence[tuple[Cell, Run]]) -> None:
    from experiments.report.summary_table import legend, remarks, summary_rows, text_table

    titles, cells = summary_rows(rows)
    caption = legend(titles, short=True)
    figures = sum(max(map(len, column)) + 2 for column in list(zip(titles, *cells, strict=True))[1:])
    fits = figures + 16 <= console.width  # then names wrap rather than figures
    console.print(text_table(titles, cells, no_wrap=fits, caption=caption))
    for (name, *_), (cell, found) in zip(cells, rows, strict=True):
        for remark in remarks(cell, found):
            console.print(f"[yellow]{name}:[/yellow] {remark}", soft_wrap=True, highlight=False)


def _print_written(paths: Iterable[Path]) -> None:
    for path in paths:
        console.print(f"written: {path}", soft_wrap=True, highlight=False)


def _print_left_out(reasons: Iterable[str]) -> None:
    for reason in reasons:
        console.print(f"[yellow]left out:[/yellow] {escape(reason)}", soft_wrap=True, highlight=False)


def _not_scored(folders: Iterable[Path]) -> list[str]:
    return [f"{folder}: not scored" for folder in folders]


def _state(found: Run) -> str:
    if not found.sampled:
        questions = found.manifest().get("questions", 0)
        return f"sampling {found.questions_saved() / questions:.0%}" if questions else "started"
    if not found.calibration():
        return "sampled"
    return "scored" if found.probes().empty else "finished"


def main() -> None:
    """Entry point: an error that the user can fix is one line on stderr and exit code 2; Ctrl-C and signals that end a
    process are one line and 128 plus the number of the signal (130 for Ctrl-C, 143 for SIGTERM)."""
    for name, value in _ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=complaints, show_time=False, show_path=False)],
    )
    with stopping() as told:
        try:
            check_packages()
            app(standalone_mode=True)
        except UserError as error:
            complaints.print(f"[bold red]semcal:[/bold red] {escape(' '.join(str(error).split()))}")
            raise SystemExit(2) from None
        except Stopped as stopped:
            with suppress(OSError):  # the terminal may be gone
                complaints.print(f"semcal: {stopped.line}", markup=False)
            told.set()
            raise SystemExit(stopped.code) from None


if __name__ == "__main__":
    main()
