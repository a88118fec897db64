"""Commands that analyse stored samples and activations again, without the model where they can: score, probe, gate."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from experiments.terminal.arguments import Sets, Targets, Width
from experiments.terminal.headline_figures import print_summary, run_records
from experiments.terminal.output import output
from semcal.errors import UserError, nearest

if TYPE_CHECKING:
    from semcal.runs.run import Run


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
    width: Width = None,
) -> None:
    """Collapse and calibrate again, without the model, and replace the old results once the new ones are complete; with
    other settings by --set, beside them in looks/. Or compare collapsing functions."""
    if width is not None and semantics != "sweep":
        raise UserError(
            "--width is for the figure of --semantics sweep; `semcal report RUN --width` draws those of a run"
        )
    if semantics is None:
        _again(targets, set or [], "score")
    elif semantics == "sweep":
        _sweep(targets, set or [], width)
    else:
        _under(semantics, targets, set or [])


def _under(semantics: str, targets: list[str], overrides: list[str]) -> None:
    """Every run under a few Bs."""
    from experiments.config.study import named_semantics
    from experiments.pipeline.targets import sampled_rows
    from experiments.score.compare_semantics import agreement_table, compare, write_agreement

    chosen = named_semantics(semantics)
    found, (rows, left_out) = [], sampled_rows(targets, overrides)
    with output().screen(len(rows)) as screen:
        for cell, run in rows:
            agreement = compare(cell, run, chosen, lambda far, c=cell: screen.stage(c, f"reading, {far}"))
            found.append((cell, run, agreement))
            screen.finished(cell)
    for cell, run, agreement in found:
        output().rule(cell.label)
        for table in agreement_table(agreement):
            output().show(table)
        output().append("runs", {"folder": run.folder, "agreement": agreement})
        output().written([write_agreement(agreement, run)])
    output().left_out(left_out)


def _sweep(targets: list[str], overrides: list[str], width: float | None) -> None:
    """Every run under many Bs."""
    from experiments.compare.coarser_semantics import relations, sweep
    from experiments.compare.sweep_table import explanation, kinds, sweep_table, write_sweep
    from experiments.pipeline.looks import check_stored
    from experiments.pipeline.targets import resolve, sampled_rows
    from experiments.verdict.rules import SMALL_GAP

    check_stored(resolve(targets, overrides).targets)
    rows, left_out = sampled_rows(targets, overrides)
    for cell, run in rows:
        with output().screen() as screen:
            found = sweep(cell, run, lambda far, c=cell: screen.stage(c, far))
            screen.finished(cell)
        delta, level = cell.calibration.delta, cell.calibration.level
        over = relations(found, delta=delta, small_gap=SMALL_GAP, level=level)
        output().rule(cell.label)
        output().show(sweep_table(kinds(found, over)))
        output().explain(explanation(found, delta))
        output().append("runs", {"folder": run.folder, "semantics": found.frame, "relations": over})
        output().written(write_sweep(cell, run, found, over, width))
    output().left_out(left_out)


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


def _again(targets: list[str], overrides: list[str], stage: str, activations: Path | None = None) -> None:
    """Repeat an analysis of study files or run folders; with other settings than theirs, or a file of activations,
    beside their results."""
    from experiments.config.run_folder import stored_cell
    from experiments.pipeline.looks import differs, look, look_folder, reading
    from experiments.pipeline.run_study import analyse, why_not_probed
    from experiments.pipeline.targets import resolve, sampled_rows
    from experiments.pipeline.tracking.tracker import tracking
    from experiments.report.pages import write_study
    from experiments.sample.models import Models
    from semcal.runs.claims import locked
    from semcal.runs.run import Run

    (rows, left_out), models = sampled_rows(targets, overrides), Models()
    if activations is not None:
        rows = [(reading(cell, activations), found) for cell, found in rows]
    if stage == "probe" and all(why_not := [why_not_probed(cell, found) for cell, found in rows]):
        raise UserError(why_not[0])
    shown = []
    with output().screen(len(rows)) as screen, tracking([cell for cell, _ in rows], screen) as reporter:
        for cell, found in rows:
            with locked(found.folder):
                if (overrides or activations) and differs(cell, found):
                    with look(cell, found) as (beside, copied):
                        analyse(beside, copied, screen, models, again=[stage])
                    screen.finished(cell)
                    shown.append((cell, Run(look_folder(cell, found))))
                else:
                    own = stored_cell(found) if overrides else cell
                    analyse(own, found, reporter, models, again=[stage])
                    reporter.finished(own)
                    shown.append((own, found))
    beside = [one.folder for (_, one), (_, found) in zip(shown, rows, strict=True) if one.folder != found.folder]
    if not beside:
        for target in resolve(targets, overrides).targets:
            if target.study is not None and (own := [row for row in shown if row[1] in target.runs]):
                write_study(target.study.name, own, target.folder)
    print_summary(shown)
    output().record(runs=run_records(shown))
    output().written(beside)
    output().left_out(left_out)
    output().unsynced(found.folder for _, found in rows)


def gate(
    targets: Targets,
    risk: Annotated[list[float] | None, typer.Option(help="Share that may be wrong; repeatable.")] = None,
    delta: Annotated[float, typer.Option(help="Chance that the guarantee of the answers fails.")] = 0.1,
    guarantee: Annotated[
        list[str] | None,
        typer.Option(
            help='"of the answers" given (default), or "of the questions", answered or not; repeatable, and the last '
            "one is drawn."
        ),
    ] = None,
    width: Width = None,
) -> None:
    """Answer only when sure enough: the lowest threshold on each confidence of a run that keeps a risk, with a
    guarantee for questions to come. Without the model."""
    from typing import get_args

    from experiments.pipeline.targets import not_scored, resolve
    from experiments.score.score import RISKS
    from semcal.calibration.inference.risk_control import Guarantee
    from semcal.runs.made_by import again

    risks, known = risk or [*RISKS], get_args(Guarantee)
    if (other := next((one for one in guarantee or () if one not in known), None)) is not None:
        raise UserError(f"unknown guarantee {other!r}{nearest(other, known)}")
    promised: list[Any] = [*dict.fromkeys(guarantee or ["of the answers"])]
    if (odd := next((x for x in (*risks, delta) if not 0 < x < 1), None)) is not None:
        raise UserError(f"{odd:g} is no share; --risk and --delta lie between 0 and 1, such as 0.1")
    found = resolve(targets)
    named = [run for target in found.targets for run in target.runs]
    runs = [run for run in named if run.calibration()]
    if not runs:
        raise UserError(f"{targets[0]}: none of its runs has been scored; {again(named[0].folder)} first")
    left_out, refused = [*found.left_out, *not_scored(run.folder for run in named if run not in runs)], []
    gated = [_gate(run, risks, delta, promised, width, refused) for run in runs]
    if not any(gated):
        raise UserError(refused[0])
    output().left_out([*left_out, *refused])


def _gate(
    run: Run, risks: list[float], delta: float, promised: list[Any], width: float | None, refused: list[str]
) -> bool:
    """One run under every guarantee that it allows; whether there is one. Why not others is added to `refused`."""
    from experiments.compare.gates import (
        Row,
        as_frame,
        between,
        explanation,
        gates,
        gates_table,
        single_errors,
        sources,
        write_gates,
    )

    found: dict[Any, list[Row]] = {}
    try:
        confidences = sources(run)
        errors = single_errors(run, confidences)
    except UserError as error:
        refused.append(str(error))
        return False
    for one in promised:
        try:
            found[one] = gates(confidences, risks, delta=delta, guarantee=one)
        except UserError as error:
            refused.append(f"{run.folder}: {error}")
    if not found:
        return False
    output().rule(run.name)
    for one, rows in found.items():
        output().show(gates_table(rows))
        output().explain(explanation(rows, errors, delta, one))
    every = [row for rows in found.values() for row in rows]
    output().append("runs", {"folder": run.folder, "gates": as_frame(every, errors)})
    curve = gates(confidences, between(risks), delta=delta, guarantee=[*found][-1])
    output().written(write_gates(run, every, curve, errors, width))
    return True
