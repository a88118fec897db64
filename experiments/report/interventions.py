"""Interventions as a table and figures: what each did, and whether random ones do as much."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pandas as pd
from rich import box
from rich.table import Table

from experiments.cell import stored_cell
from experiments.intervening import LEFT_ALONE
from experiments.settings import slug
from probes.effects import FAMILY
from probes.intervention_figures import dose_response
from semcal.store import Run, write_atomically

_DIFFERENCES = {
    "tv": "TV",
    "d_confidence": "Δ confidence",
    "d_accuracy": "Δ accuracy",
    "smece": "smECE (null)",
    "d_gold_loss": "Δ loss (nats)",
}
_FIGURE = ["context", "kind", "hook", "position"]
EXPLANATION = (
    "TV: total variation between a question's class distributions, changed and left alone, the mean over questions; "
    "two samples of the model left alone differ, too ('another seed'), and draws with one seed are coupled · ±: half "
    "the interval of resampling groups of questions · change: mean norm of what was moved · reads: what the probe "
    "explains on these questions, which it was not fitted on · controls, in grey: their mean, and p that random ones "
    "do as much, (1 + as much) / (1 + all); isotropic ones have equal rank (and norm, in steering), matched ones take "
    "out as much variance, too, donors are any questions · overlap of their subspaces with the probe's · only prompt "
    "tokens are changed, none that is generated"
)


def intervention_table(frame: pd.DataFrame) -> Table:
    """A row an intervention of interest, with one below for each sort of its random controls."""
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("", overflow="fold")
    for title in ("reads", "change", *_DIFFERENCES.values()):
        table.add_column(title, justify="right", no_wrap=True)
    for _, family in frame.groupby(FAMILY, sort=False):
        for row in family.query("control == ''").to_dict("records"):
            reads = "" if math.isnan(row["readable"]) else f"{row['readable']:.0%}"
            figures = [f"{_value(row, name)} {_spread(row, name)}" for name in _DIFFERENCES]
            table.add_row(_name(row), reads, f"{row['change']:.2f}", *figures)
            for control, random in family.query("control != ''").groupby("control", sort=False):
                mean = random.mean(numeric_only=True).to_dict()
                overlap = "" if math.isnan(mean["overlap"]) else f", overlap {mean['overlap']:.0%}"
                p = [row.get(f"p_{name.removeprefix('d_')}_{control}", math.nan) for name in _DIFFERENCES]
                figures = [f"{_value(mean, name)}, p {_p(its)}" for name, its in zip(_DIFFERENCES, p, strict=True)]
                told = f"  {len(random)} × {control}{overlap}"
                table.add_row(told, "", f"{mean['change']:.2f}", *figures, style="dim")
    return table


def draw_interventions(run: Run) -> list[Path]:
    """A figure for each kind, hook and position that a run has interventions of, in its folder of figures."""
    rows, cell = run.interventions(), stored_cell(run)
    drawn = []
    for _, some in rows.query("kind != @LEFT_ALONE").groupby(_FIGURE):
        context, kind, hook, position = (str(some[name].iloc[0]) for name in _FIGURE)
        floor = rows.query("kind == @LEFT_ALONE and context == @context")
        title = f"{cell.label}: {kind} at {hook}, {position}, n = {some['n'].max():.0f}"
        figure = dose_response(pd.concat([some, floor]), title=title)
        path = run.folder / "figures" / f"{slug('-'.join((kind, hook, position, context[:4])))}.png"
        write_atomically(path, lambda p, figure=figure: figure.savefig(p, format="png", dpi=150))
        drawn.append(path)
    return drawn


def _name(row: dict[Any, Any]) -> str:
    if row["kind"] == LEFT_ALONE:
        return f"left alone, {row['name']}"
    what = {"ablate": f"rank {row['rank']}", "steer": f"{row['size']:+g} sd", "patch": row["name"]}[row["kind"]]
    return f"{row['kind']} {what}, {row['hook'].replace('hook_', '')}"


def _p(value: float) -> str:
    return f"{value:.3f}".removeprefix("0")  # tables are wide


def _value(row: dict[Any, Any], name: str) -> str:
    return f"{row[name]:{'+' if name.startswith('d_') else ''}.3f}"


def _spread(row: dict[Any, Any], name: str) -> str:
    return f"({row['null_mean']:.3f})" if name == "smece" else f"± {(row[f'{name}_high'] - row[f'{name}_low']) / 2:.3f}"
