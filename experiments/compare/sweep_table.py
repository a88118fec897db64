"""A run under many Bs as a table, a figure and files (`semcal score RUN --semantics sweep`)."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

from experiments.compare.coarser_semantics import Swept
from experiments.config.run_folder import LOOKS
from experiments.config.study import Cell
from experiments.report.figures.figure_files import save_figures
from experiments.report.summary_table import interval
from experiments.terminal.fitted_table import FittedTable
from experiments.verdict.rules import SMALL_GAP
from probes.plots.semantics_scatter import semantics_scatter
from semcal.calibration.inference.over_semantics import Relation
from semcal.runs.files import plain, replacing, write_atomically
from semcal.runs.run import Run

FILES = ("sweep.csv", "sweep.json", "sweep.png", "sweep.svg", "sweep.pdf")
TITLES = ("kind of B", "Bs", "KL gap", "excess", "ρ", "ρ, given granularity", "excess per nat", "small gap")


def sweep_table(found: Swept, relations: Mapping[str, Relation]) -> FittedTable:
    """One row per kind of B, and one for all."""
    table = FittedTable(TITLES)
    for kind in [*found.frame["kind"].unique(), "all"]:
        own = found.frame if kind == "all" else found.frame[found.frame["kind"] == kind]
        spans = [
            f"{own[name].min():{sign}.3f} to {own[name].max():{sign}.3f}"
            for name, sign in (("gap", ""), ("excess", "+"))
        ]
        figures = ["–"] * 4
        if r := relations.get(kind):
            figures = [
                interval(r.rho, r.rho_low, r.rho_high, digits=2),
                interval(r.rho_given, r.rho_given_low, r.rho_given_high, digits=2),
                interval(r.slope, r.slope_low, r.slope_high),
                f"{r.small}, {r.violations} off",
            ]
        table.add_row(kind, str(len(own)), *spans, *figures, style="bold" if kind == "all" else "")
    return table


def explanation(found: Swept, delta: float) -> str:
    """What the numbers are, printed below the table."""
    said = (
        "excess: smECE minus the mean of its null · KL gap: what a probe of the activations before the answer misses "
        "of the distribution over B's classes, nats · ρ: Spearman's rank correlation of the two over Bs, with its "
        "interval over questions; given granularity (the entropy of B's classes over all questions), because joining "
        "classes shrinks both, whatever the mechanism · small gap: Bs whose gap is certainly below "
        f"{SMALL_GAP:g} nats, and how many of those are certainly off by more than {delta:g} (Holm), which the theory "
        "forbids"
    )
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
        write_atomically(staged / "sweep.json", lambda path: path.write_text(text, encoding="utf-8"))
        save_figures({"sweep": figure}, staged)
    return [folder / name for name in FILES]
