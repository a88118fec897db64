"""Commands that set runs side by side, without the model: compare, transfer, verdict."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from experiments.terminal.arguments import Sets, Studies, Targets, Width, loaded
from experiments.terminal.output import output


def compare(targets: Targets, set: Sets = None) -> None:
    """Compare runs with paired tests: all with the first, or pairs in a study or folder that differ in one factor."""
    from experiments.compare.compare_runs import compare_all, equalised
    from experiments.compare.comparison_tables import comparison_tables, explanation, records, temperature_table
    from experiments.compare.pairs import by_temperature
    from experiments.pipeline.looks import check_stored
    from experiments.pipeline.targets import resolve, scored_runs
    from experiments.pipeline.tracking.commands import log_comparisons

    check_stored(resolve(targets, set or []).targets)
    runs, named, left_out = scored_runs(targets, set or [])
    with output().screen() as screen:
        families = [(family[0].cell, equalised(family)) for family in by_temperature(runs)]
        comparisons = compare_all(runs, named, screen.stage)
        screen.finished(comparisons[-1].b)
    for heading, table in comparison_tables(comparisons):
        output().rule()
        output().say(heading)
        output().show(table)
    for cell, matched in families:
        output().rule(f"{cell.label}, by temperature")
        output().say(matched.note)
        output().show(temperature_table(matched))
    output().explain(explanation(comparisons))
    output().record(comparisons=records(comparisons))
    output().left_out(left_out)
    if (tracked := log_comparisons(comparisons)) is not None:
        output().unsynced([tracked])


def transfer(
    targets: Targets,
    layer: Annotated[str | None, typer.Option(help="Hook name in the first run; default: its last layer.")] = None,
    target: Annotated[str, typer.Option(help="classes or b_confidence.")] = "classes",
    out: Annotated[Path, typer.Option(help="Folder for transfer.csv, .png, .svg and .pdf.")] = Path("runs/transfer"),
    width: Width = None,
) -> None:
    """Train a probe on each run, test it on every run: what do datasets, styles, checkpoints and models share?"""
    from experiments.compare.transfer_runs import explanation, transfer_runs, transfer_table, write_transfer
    from experiments.pipeline.targets import scored_runs

    runs, _, left_out = scored_runs(targets)
    found = transfer_runs(runs, layer=layer, target=target)
    output().show(transfer_table(found))
    output().explain(explanation(found))
    output().record(transfer=found)
    write_transfer(found, out, width)
    output().written(out / f"transfer.{suffix}" for suffix in ("csv", "png", "svg", "pdf"))
    output().left_out(left_out)


def verdict(studies: Studies, set: Sets = None, width: Width = None) -> None:
    """Decide each hypothesis on the runs of a study, without the model: holds, fails, undecided, cannot be
    decided or not tested. With other runs or settings by --set than those in the study's folder, the verdict goes to
    looks/ there."""
    found = loaded(studies, set)
    from experiments.config.run_folder import stored_cell
    from experiments.pipeline.looks import study_folder
    from experiments.pipeline.tracking.commands import log_verdict
    from experiments.report.figures.verdict_figure import draw_verdict
    from experiments.report.pages import write_study
    from experiments.report.verdict_tables import as_markdown, verdict_tables
    from experiments.verdict.study_verdict import judge_study, write_verdict
    from semcal.runs.files import replacing
    from semcal.runs.run import Run

    for _, study in found:
        with output().status("reading runs") as status:
            judgement = judge_study(study, status.update)
        for heading, table in verdict_tables(judgement):
            output().say(heading)
            output().show(table)
        for missing in judgement.missing:
            output().remark(missing)
        folder = study_folder(study, set or [])
        with replacing(folder) as staged:
            names = [*write_verdict(judgement, as_markdown(judgement), staged), draw_verdict(judgement, staged, width)]
        if (folder / "report.html").is_file():  # its page shows the verdicts
            runs = [run for run in (Run(cell.folder) for cell in study.cells()) if run.calibration()]
            write_study(study.name, [(stored_cell(run), run) for run in runs], folder, width)
        output().append("verdicts", judgement.to_dict())
        output().written(folder / name for name in names)
        if (workspace := log_verdict(judgement, folder, names)) is not None:
            if workspace:
                output().say(f"workspace in W&B: {workspace}")
            output().unsynced([folder])
