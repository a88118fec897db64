"""Interventions as a table and figures: what each did, and whether random ones do as much."""

from __future__ import annotations

import math
from pathlib import Path

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
        for _, row in family[family["control"] == ""].iterrows():
            reads = "" if math.isnan(row["readable"]) else f"{row['readable']:.0%}"
            figures = [f"{_value(row, name)} {_spread(row, name)}" for name in _DIFFERENCES]
            table.add_row(_name(row), reads, f"{row['change']:.2f}", *figures)
            for control, random in family[family["control"] != ""].groupby("control", sort=False):
                mean = random.mean(numeric_only=True)
                overlap = "" if math.isnan(mean["overlap"]) else f", overlap {mean['overlap']:.0%}"
                told = f"  {len(random)} × {control}{overlap}"
                p = [row.get(f"p_{name.removeprefix('d_')}_{control}", math.nan) for name in _DIFFERENCES]
                figures = [f"{_value(mean, name)}, p {its:.2f}" for name, its in zip(_DIFFERENCES, p, strict=True)]
                table.add_row(told, "", f"{mean['change']:.2f}", *figures, style="dim")
    return table


def draw_interventions(run: Run) -> list[Path]:
    """A figure for each kind, hook and position that a run has interventions of, in its folder of figures."""
    rows, cell = run.interventions(), stored_cell(run)
    alone = rows["kind"] == LEFT_ALONE
    drawn = []
    for (context, kind, hook, position), some in rows[~alone].groupby(["context", "kind", "hook", "position"]):
        with_floor = pd.concat([some, rows[alone & (rows["context"] == context)]])
        figure = dose_response(
            with_floor, title=f"{cell.label}: {kind} at {hook}, {position}, n = {some['n'].max():.0f}"
        )
        path = run.folder / "figures" / f"{slug('-'.join((kind, hook, position, str(context)[:4])))}.png"
        write_atomically(path, lambda p, figure=figure: figure.savefig(p, format="png", dpi=150))
        drawn.append(path)
    return drawn


def _name(row: pd.Series) -> str:
    if row["kind"] == LEFT_ALONE:
        return f"left alone, {row['name']}"
    what = {"ablate": f"rank {row['rank']}", "steer": f"{row['size']:+g} sd"}.get(row["kind"], row["name"])
    return f"{row['kind']} {what}, {row['hook'].replace('hook_', '')}"


def _value(row: pd.Series, name: str) -> str:
    return f"{row[name]:{'+' if name.startswith('d_') else ''}.3f}"


def _spread(row: pd.Series, name: str) -> str:
    return f"({row['null_mean']:.3f})" if name == "smece" else f"± {(row[f'{name}_high'] - row[f'{name}_low']) / 2:.3f}"
