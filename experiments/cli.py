"""The command `semcal`."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.logging import RichHandler
from rich.table import Table

from experiments.atlas.train import train
from experiments.pipeline.progress import Screen, complaints
from semcal.errors import UserError

if TYPE_CHECKING:  # imported by each command when it needs them: torch takes seconds
    from experiments.config.study import Cell
    from semcal.runs.run import Run

app = typer.Typer(
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    help="Is a language model's confidence in what it means earned, and does it know it before it speaks?",
)
# Tables are wide; where nobody looks (a pipe, a log) they need not fit a window of 80 columns.
console = Console(width=None if sys.stdout.isatty() or "COLUMNS" in os.environ else 140)

Sets = Annotated[list[str] | None, typer.Option("--set", help="Override a key of the study, e.g. sampling.m=20.")]
Targets = Annotated[list[str], typer.Argument(help="A study file, or run folders (or folders of them).")]


@app.command()
def run(
    study: Annotated[Path, typer.Argument(help="A study file.")],
    set: Sets = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check every cell, estimate its cost.")] = False,
    json: Annotated[bool, typer.Option("--json", help="With --dry-run: all of it as JSON.")] = False,
) -> None:
    """Run every cell of a study that is not finished yet; print a summary, write figures and pages."""
    if json and not dry_run:
        raise UserError("--json goes with --dry-run")
    if dry_run:
        os.environ["HF_HUB_OFFLINE"] = "1"  # read when `datasets` is imported; a plan must not wait for a network
        from experiments.config.parsing import load_study
        from experiments.pipeline.dry_run import dry_run as look_ahead
        from experiments.pipeline.dry_run_table import show_plan

        show_plan(look_ahead(load_study(study, set or [])), console, as_json=json)
        return
    from experiments.config.parsing import load_study
    from experiments.pipeline.run_study import prepare_study, run_study

    prepared = prepare_study(load_study(study, set or []))
    with Screen() as screen:
        run_study(prepared, screen)
    _print_summary(list(zip(prepared.cells, prepared.runs, strict=True)))
    console.print(f"runs, figures and report.html: {prepared.study.folder}", soft_wrap=True)


@app.command()
def prompts(
    study: Annotated[Path, typer.Argument(help="A study file.")],
    set: Sets = None,
    n: Annotated[int, typer.Option("-n", min=1, help="Questions a cell.")] = 2,
) -> None:
    """What each model will really read: a few prompts a cell, with special tokens and token counts."""
    from experiments.config.datasets import load_dataset
    from experiments.config.parsing import load_study
    from experiments.sample.models import model_to_look_at
    from experiments.sample.prompting import look

    read = load_study(study, set or [])
    datasets = {d.name: load_dataset(d, read.prompting.exemplars) for d in read.datasets}
    models = {m.name: model_to_look_at(m) for m in read.models}
    for cell in {(c.model.name, c.dataset.name, c.style): c for c in read.cells()}.values():
        console.rule(f"{cell.model.name} · {cell.dataset.name} · {cell.style}")
        for told in look(cell, datasets[cell.dataset.name], models[cell.model.name], n):
            facts, _, text = told.partition("\n")
            console.print(facts, style="bold", highlight=False, markup=False, soft_wrap=True)
            console.print(text + "▌\n", highlight=False, markup=False, soft_wrap=True)


@app.command()
def score(
    targets: Targets,
    set: Sets = None,
    semantics: Annotated[
        str | None,
        typer.Option(
            help="Compare Bs on the same samples: exact,numeric,choice,wordK,entailment:PATH,embedding:PATH,"
            "judge:MODEL@URL,custom:MODULE:NAME. The runs stay as they are."
        ),
    ] = None,
) -> None:
    """Collapse and calibrate again, without the model; or compare collapsing functions."""
    if semantics is None:
        _again(targets, set or [], "score")
        return
    from experiments.config.parsing import named_semantics
    from experiments.score.compare_semantics import agreement_table, compare

    chosen = named_semantics(semantics)
    found = []
    with Screen() as screen:
        for cell, its in _sampled(targets, set or []):
            found.append((cell, compare(cell, its, chosen, lambda far, c=cell: screen.stage(c, f"reading, {far}"))))
            screen.finished(cell)
    for cell, agreement in found:
        console.rule(cell.label)
        for table in agreement_table(agreement):
            console.print(table)


@app.command()
def probe(targets: Targets, set: Sets = None) -> None:
    """Fit probes again; the model is loaded only for rungs and baselines that read it."""
    _again(targets, set or [], "probe")


@app.command()
def compare(targets: Targets, set: Sets = None) -> None:
    """Runs side by side, with paired tests: all against the first, or the sensible pairs of a study or folder."""
    from experiments.compare.compare_runs import compare_all, equalised
    from experiments.compare.pairs import by_temperature, chosen_runs
    from experiments.report.comparison_tables import comparison_tables, explanation, temperature_table

    runs, named, left_out = chosen_runs(targets, set or [])
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
    for folder in left_out:
        console.print(f"[yellow]{folder}:[/yellow] not finished, left out", soft_wrap=True, highlight=False)


@app.command()
def intervene(
    folder: Annotated[Path, typer.Argument(metavar="RUN", help="A finished run folder.")],
    kind: Annotated[str, typer.Option(help="ablate, steer or patch.")] = "ablate",
    layer: Annotated[
        list[str] | None,
        typer.Option(help="A block's number, or a captured hook; may be repeated. The last if left out."),
    ] = None,
    position: Annotated[
        str, typer.Option(help="Where activations were captured, and are changed.")
    ] = "last_prompt_token",
    rank: Annotated[list[int] | None, typer.Option(min=1, help="Of the subspace to ablate; may be repeated.")] = None,
    size: Annotated[
        list[float] | None, typer.Option(help="To steer by, in standard deviations; may be repeated.")
    ] = None,
    random: Annotated[int, typer.Option(min=0, help="Random controls of each sort, for every intervention.")] = 20,
    n: Annotated[int, typer.Option("-n", "--n", min=2, help="Questions to intervene on, at most.")] = 300,
) -> None:
    """Change what the model knows before it answers, sample again with the same seeds, and measure what that did."""
    from experiments.pipeline.cell import stored_cell
    from experiments.probe.intervene import intervene_run
    from experiments.probe.intervention_plan import KINDS, Wanted
    from experiments.report.intervention_table import EXPLANATION, intervention_table
    from experiments.report.run_page import write_report
    from semcal.errors import nearest
    from semcal.runs.run import Run

    if kind not in KINDS:
        raise UserError(f"unknown kind {kind!r}{nearest(kind, KINDS)}; one of {', '.join(KINDS)}")
    if (rank and kind != "ablate") or (size and kind != "steer"):
        raise UserError("--rank goes with --kind ablate, --size with --kind steer")
    wanted = Wanted(kind, tuple(rank or Wanted.ranks), tuple(size or Wanted.sizes), random)
    changed = Run.open(folder)
    with Screen() as screen:
        found = intervene_run(changed, wanted, layers=layer or (), position=position, n=n, tell=screen.stage)
        screen.stage(stored_cell(changed), "drawing")
        drawn = write_report(stored_cell(changed), changed)
    console.print(intervention_table(found))
    console.print(EXPLANATION, highlight=False, markup=False)
    for name in (name for name in drawn if name.startswith(f"{kind}-")):
        console.print(f"figure: {changed.folder / 'figures' / name}.png", soft_wrap=True, highlight=False)
    console.print(f"page: {changed.folder / 'report.html'}", soft_wrap=True, highlight=False)


@app.command()
def transfer(
    targets: Targets,
    layer: Annotated[str | None, typer.Option(help="Hook name; the last layer if left out.")] = None,
    target: Annotated[str, typer.Option(help="classes, or b_confidence where runs share no classes.")] = "classes",
    out: Annotated[Path, typer.Option(help="Folder for transfer.csv, .png and .svg.")] = Path("runs/transfer"),
) -> None:
    """Train a linear probe on each run and test it on each: what is read alike across datasets, styles, checkpoints."""
    from experiments.compare.pairs import chosen_runs
    from experiments.compare.transfer_runs import explanation, transfer_runs, transfer_table, write_transfer

    runs, _, left_out = chosen_runs(targets, [])
    found = transfer_runs(runs, layer=layer, target=target)
    console.print(transfer_table(found.cells))
    console.print(explanation(found), highlight=False, markup=False)
    write_transfer(found, out)
    console.print(f"transfer.csv, transfer.png, transfer.svg: {out}", soft_wrap=True)
    for folder in left_out:
        console.print(f"[yellow]{folder}:[/yellow] not finished, left out", soft_wrap=True, highlight=False)


@app.command()
def verdict(study: Annotated[Path, typer.Argument(help="A study file, run to its end.")], set: Sets = None) -> None:
    """Decide each hypothesis on a study's runs, without the model: holds, fails, undecided or not tested."""
    from experiments.config.parsing import load_study
    from experiments.report.verdict_tables import as_markdown, draw_verdict, verdict_tables
    from experiments.verdict.study_verdict import judge_study, write_verdict

    with complaints.status("reading runs") as status:
        judgement = judge_study(load_study(study, set or []), status.update)
    for heading, table in verdict_tables(judgement):
        console.print(heading, highlight=False, markup=False, soft_wrap=True)
        console.print(table)
    for lacking in judgement.missing:
        console.print(f"[yellow]{_escaped(lacking)}[/yellow]", soft_wrap=True, highlight=False)
    for path in (*write_verdict(judgement, as_markdown(judgement)), draw_verdict(judgement)):
        console.print(f"written: {path}", soft_wrap=True, highlight=False)


@app.command()
def report(targets: Targets, set: Sets = None) -> None:
    """Draw figures and pages again: of runs, and of a study (or a folder of runs) as one page."""
    from experiments.report.write_reports import report_on

    with Screen() as screen:
        reported = [report_on(target, set or [], screen.stage) for target in targets]
    for page, left_out in reported:
        console.print(f"page: {page}", soft_wrap=True, highlight=False)
        for folder in left_out:
            console.print(f"[yellow]{folder}:[/yellow] not scored, left out", soft_wrap=True, highlight=False)


@app.command()
def ls(folder: Annotated[Path, typer.Argument(help="Where to look for runs.")] = Path("runs")) -> None:
    """Runs, their state and headline figures."""
    from experiments.pipeline.run_study import find_runs
    from experiments.report.summary_table import cells_of, headline

    table = Table()
    for title in ("run", "state", "n", "smECE", "excess", "KL explained"):
        table.add_column(title, overflow="fold", justify="left" if title in ("run", "state") else "right")
    for found in find_runs([folder]):
        figures = headline(found)
        text = cells_of(figures)
        state = _state(found)
        table.add_row(str(found.folder), state, str(figures["n"] or "—"), text["smece"], text["excess"], text["kl"])
    console.print(table)


app.command()(train)


def _sampled(targets: list[str], overrides: list[str]) -> list[tuple[Cell, Run]]:
    """The cells of study files and run folders, with their runs.

    Raises:
        UserError: one that has not been sampled to its end.
    """
    from experiments.config.parsing import is_study_file, load_study
    from experiments.pipeline.cell import open_cell, stored_cell
    from experiments.pipeline.run_study import find_runs

    cells: list[Cell] = []
    for target in targets:
        if is_study_file(target):
            cells += load_study(target, overrides).cells()
        elif overrides:
            raise UserError("--set goes with a study file, not with run folders")
        else:
            cells += [stored_cell(found) for found in find_runs([target])]
    found = []
    for cell in cells:
        if not (Path(cell.folder) / "config.yaml").is_file():
            raise UserError(f"{cell.folder} has not been run yet; `semcal run` its study first")
        run = open_cell(cell)
        if missing := run.missing_shards() or (["all"] if not run.shard_keys() else []):
            raise UserError(
                f"{run.folder} is not sampled to its end ({len(missing)} shards missing); `semcal run` its study first"
            )
        found.append((cell, run))
    return found


def _again(targets: list[str], overrides: list[str], what: str) -> None:
    """Redo an analysis for a study file or for run folders."""
    from experiments.config.parsing import is_study_file
    from experiments.pipeline.run_study import analyse
    from experiments.report.write_reports import refresh_study
    from experiments.sample.models import Models

    rows, models = _sampled(targets, overrides), Models()
    with Screen() as screen:
        for cell, found in rows:
            analyse(cell, found, screen, models, again=[what])
    for study in filter(is_study_file, targets):
        refresh_study(study, overrides)
    _print_summary(rows)


def _print_summary(rows: Sequence[tuple[Cell, Run]]) -> None:
    from experiments.report.summary_table import labels, remarks, summary

    names = labels([cell for cell, _ in rows])
    console.print(summary([(name, found) for name, (_, found) in zip(names, rows, strict=True)]))
    for name, (cell, found) in zip(names, rows, strict=True):
        for remark in remarks(cell, found):
            console.print(f"[yellow]{name}:[/yellow] {remark}", soft_wrap=True, highlight=False)


def _state(found: Run) -> str:
    if not found.sampled:
        keys, missing = found.shard_keys(), found.missing_shards()
        return f"sampling {1 - len(missing) / len(keys):.0%}" if keys else "begun"
    if not found.calibration():
        return "sampled"
    return "scored" if found.probes().empty else "finished"


def main() -> None:
    """Entry point: what a user can mend is one line on stderr and exit code 2; Ctrl-C is 130."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    logging.basicConfig(
        level=logging.WARNING,
        format="%(message)s",
        handlers=[RichHandler(console=complaints, show_time=False, show_path=False)],
    )
    try:
        _quiet()
        app(standalone_mode=True)
    except UserError as error:
        complaints.print(f"[bold red]semcal:[/bold red] {_escaped(' '.join(str(error).split()))}")
        raise SystemExit(2) from None
    except SystemExit as ended:
        if ended.code == 130:  # typer's answer to Ctrl-C
            complaints.print("semcal: stopped; what was finished is kept, run the same command again to go on")
        raise


def _escaped(text: str) -> str:
    from rich.markup import escape

    return escape(text)


def _quiet() -> None:
    """Progress bars of our own are enough; libraries keep their warnings."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")


if __name__ == "__main__":
    main()
