"""Probes of some runs tried on each other: what may be tried, read from run folders, or refused; table and files.

The statistics are in `probes.evaluation.transfer`, the figure in `probes.plots.heatmaps`.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from rich import box
from rich.table import Table

from experiments.compare.pairs import Scored
from experiments.report.html_page import save_figures
from experiments.report.summary_table import labels
from probes.evaluation.transfer import ProbedRun, TransferCell, transfer
from probes.plots.heatmaps import transfer_matrix
from probes.targets.closed import class_targets, share_target
from probes.targets.scalars import b_confidence
from semcal.errors import UserError, nearest
from semcal.positions import LAST_PROMPT_TOKEN
from semcal.runs.files import replacing, write_atomically
from semcal.runs.run import Run

TARGETS = {"classes": "share of KL explained", "b_confidence": "share of KL of B-confidence explained"}


@dataclass(frozen=True)
class Transferred:
    """Probes of some runs tried on each other at a layer: one cell per probe and run, row by row of the matrix."""

    cells: list[TransferCell]
    layer: str
    target: str


def transfer_runs(runs: Sequence[Scored], *, layer: str | None = None, target: str = "classes") -> Transferred:
    """Every run's probe on every run; settings (folds, classes, bootstrap, level, seed) are those of the first.

    Args:
        runs: at least 2, scored and captured at the last prompt token.
        layer: hook name; None: the last of all, which must be the same in all runs.
        target: "classes", or "b_confidence" where runs share no classes, as two datasets do: then the share explained
            is the share of KL between Bernoulli distributions of B-confidence.

    Raises:
        UserError: runs without activations or of different widths, no common layer, too few groups.
    """
    if target not in TARGETS:
        raise UserError(f"unknown target {target!r}{nearest(target, TARGETS)}; one of {', '.join(TARGETS)}")
    folders, cell = [Run(run.folder) for run in runs], runs[0].cell
    name = _common_layer(folders, layer)
    tables = [folder.class_table() for folder in folders]
    if target == "b_confidence":
        targets = [share_target(b_confidence(table), name="sure", m=table.m) for table in tables]
    else:
        targets = class_targets(tables, max_classes=max(run.cell.probes.max_classes for run in runs))
    layers = [folder.activations(LAST_PROMPT_TOKEN).layer(name) for folder in folders]
    groups = [table.groups.tolist() for table in tables]
    try:
        probed = [ProbedRun(*part) for part in zip(_names(runs), layers, targets, groups, strict=True)]
        resampling = cell.calibration.resampling(cell.seed)
        cells = transfer(probed, folds=cell.probes.folds, resampling=resampling)
    except ValueError as error:
        raise UserError(str(error)) from error
    return Transferred(cells, name, target)


def _common_layer(runs: Sequence[Run], layer: str | None) -> str:
    known = [run.activations(LAST_PROMPT_TOKEN).layers for run in runs]
    common = [name for name in known[0] if all(name in own for own in known)]
    if not common:
        raise UserError(f"{runs[0].folder} and the others have no layer in common; capture the same hooks in all")
    if layer is not None:
        if layer not in common:
            raise UserError(f"some runs lack layer {layer!r}{nearest(layer, common)}; they share {', '.join(common)}")
        return layer
    odd = next((i for i, own in enumerate(known) if own[-1] != known[0][-1]), None)
    if odd is not None:
        raise UserError(
            f"the last layer is {known[0][-1]} in {runs[0].folder} and {known[odd][-1]} in {runs[odd].folder}; name "
            f"one of those they share with --layer: {', '.join(common)}"
        )
    return known[0][-1]


def _names(runs: Sequence[Scored]) -> list[str]:
    """Labels as in the summary table; equal ones are distinguished by study and a number."""
    names = labels([run.cell for run in runs])
    longer = [f"{n} · {r.cell.study}" if names.count(n) > 1 else n for n, r in zip(names, runs, strict=True)]
    return [
        f"{name} ({longer[: i + 1].count(name)})" if longer.count(name) > 1 else name for i, name in enumerate(longer)
    ]


def transfer_table(cells: Sequence[TransferCell]) -> Table:
    """One row per run trained on, one column per run tested on."""
    names = list(dict.fromkeys(cell.tested_on for cell in cells))
    table = Table(box=box.SIMPLE_HEAD, show_lines=False)
    table.add_column("trained on ↓, tested on →", overflow="fold")
    for name in names:
        table.add_column(name, justify="right")
    rows = [cells[start : start + len(names)] for start in range(0, len(cells), len(names))]
    for row in rows:
        table.add_row(row[0].trained_on, *map(_share, row))
    table.add_section()
    ceilings = ("—" if np.isnan(cell.ceiling) else f"{100 * cell.ceiling:.0f} %" for cell in rows[0])
    table.add_row("noise ceiling", *ceilings)
    return table


def _share(cell: TransferCell) -> str:
    if not np.isfinite(cell.explained):
        return "—"
    explained, *ends = (round(100 * share) for share in (cell.explained, cell.low, cell.high))
    return f"{explained} % [{ends[0]}, {ends[1]}]"


def explanation(found: Transferred) -> str:
    """What the numbers are, printed below the table."""
    thin = [cell for cell in found.cells if cell.covered < 0.9]
    worst = min(thin, key=lambda cell: cell.covered, default=None)
    said = (
        f"{TARGETS[found.target]} by a linear probe at {found.layer}, last prompt token, against the marginal of the "
        "run tested on, learnt on its own training folds · folds are made of groups over all runs: no probe is tested "
        "on a group that it was trained on, and the diagonal is cross-validated · below 0: worse than that marginal"
    )
    if worst is not None:
        said += (
            f" · the classes of {worst.trained_on} hold only {worst.covered:.0%} of the mass of {worst.tested_on}; a "
            "probe cannot name classes it never saw, so compare such runs with --target b_confidence"
        )
    return said


def write_transfer(found: Transferred, folder: Path) -> None:
    """Write transfer.csv, transfer.png and transfer.svg."""
    table = pd.DataFrame([asdict(cell) for cell in found.cells]).assign(layer=found.layer, target=found.target)
    title = f"Linear probes at {found.layer}, last prompt token"
    figure = transfer_matrix(found.cells, title=title, measure=TARGETS[found.target])
    with replacing(folder) as staged:
        write_atomically(staged / "transfer.csv", lambda path: table.to_csv(path, index=False))
        save_figures({"transfer": figure}, staged)
