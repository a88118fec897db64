"""A run under many Bs as a table, a figure and files (`semcal score RUN --semantics sweep`)."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import pandas as pd

from experiments.compare.coarser_semantics import Swept
from experiments.config.run_folder import LOOKS
from experiments.config.study import Cell
from experiments.report.figures.figure_files import save_figures
from experiments.report.look_tables import ALL, SWEEP_TOLD, kinds_table
from experiments.report.summary_table import interval
from experiments.terminal.fitted_table import FittedTable
from experiments.verdict.rules import SMALL_GAP
from probes.plots.semantics_scatter import semantics_scatter
from semcal.calibration.inference.over_semantics import Relation
from semcal.runs.files import plain, replacing, write_atomically
from semcal.runs.run import Run

FILES = ("sweep.csv", "kinds.csv", "sweep.json", "sweep.png", "sweep.svg", "sweep.pdf")


def kinds(found: Swept, relations: Mapping[str, Relation]) -> pd.DataFrame:
    """One row per kind of B, and one for all: kind, bs (their number), rung, the ranges of gap (nats) and excess, and
    the figures of `Relation` where there are enough Bs, else NaN."""
    rows = []
    for kind, own in [*found.frame.groupby("kind", sort=False), (ALL, found.frame)]:
        row = {"kind": kind, "bs": len(own), "rung": " and ".join(sorted(set(own["rung"])))}
        for name in ("gap", "excess"):
            row |= {f"{name}_least": own[name].min(), f"{name}_most": own[name].max()}
        relation = asdict(relations[str(kind)]) if kind in relations else {}
        rows.append(row | {name: value for name, value in relation.items() if name not in ("bs", "worst")})
    return pd.DataFrame(rows)


def sweep_table(found: pd.DataFrame) -> FittedTable:
    """`kinds` for the terminal."""
    shown = kinds_table(found)
    table = FittedTable(list(shown))
    for cells in shown.to_numpy().tolist():
        table.add_row(*cells, style="bold" if cells[0] == ALL else "")
    return table


def explanation(found: Swept, delta: float) -> str:
    """What the numbers are, printed below the table."""
    said = SWEEP_TOLD.format(small_gap=SMALL_GAP, delta=delta)
    if found.left_out:
        said += f" · {found.left_out} questions without exactly one gold class are left out"
    if found.constant:
        said += f" · one class for all answers, left out: {', '.join(found.constant)}"
    if found.alike:
        said += f" · the same partition as another B, left out: {', '.join(found.alike)}"
    return said


def write_sweep(
    cell: Cell, run: Run, found: Swept, relations: Mapping[str, Relation], width: float | None = None
) -> list[Path]:
    """Write FILES to looks/ of a run, the figure `width` inches wide if given; returns their paths."""
    whole = relations["all"]
    rho = interval(whole.rho, whole.rho_low, whole.rho_high, digits=2)
    figure = semantics_scatter(
        found.frame,
        title=f"{cell.model.name} · {cell.dataset.name} · {cell.style}",
        corner=f"Spearman ρ = {rho}, {whole.bs} Bs",
        small_gap=SMALL_GAP,
        delta=cell.calibration.delta,
        width=width,
    )
    record = {"relations": {name: asdict(one) for name, one in relations.items()}, "left_out": found.left_out}
    text = json.dumps(plain(record | {"constant": found.constant, "alike": found.alike}), indent=1) + "\n"
    folder = run.folder / LOOKS / "sweep"
    folder.parent.mkdir(exist_ok=True)
    with replacing(folder) as staged:
        write_atomically(staged / "sweep.csv", lambda path: found.frame.to_csv(path, index=False))
        write_atomically(staged / "kinds.csv", lambda path: kinds(found, relations).to_csv(path, index=False))
        write_atomically(staged / "sweep.json", lambda path: path.write_text(text, encoding="utf-8"))
        save_figures({"sweep": figure}, staged)
    return [folder / name for name in FILES]
