"""Interventions as a table: what each did, and whether random ones do as much."""

from __future__ import annotations

import math

import pandas as pd
from rich import box
from rich.table import Table

from experiments.conditions import DONORS, ISOTROPIC, MATCHED
from experiments.intervening import LEFT_ALONE
from probes.effects import FAMILY

_CONTROLS = (ISOTROPIC, MATCHED, DONORS)
_DIFFERENCES = {"confidence": "Δ confidence", "accuracy": "Δ accuracy", "smece": "smECE", "gold_loss": "Δ loss (nats)"}

EXPLANATION = (
    "TV: total variation between a question's class distributions, changed and left alone, the mean over questions; two "
    "samples of the model left alone differ, too ('another seed'), draws with one seed are coupled · change: mean norm "
    "of what was moved · smECE (mean of its null) · p: do random interventions of equal rank ('isotropic'), of equal "
    "rank and removed variance or norm ('matched'), or from random donors do as much? (1 + as much) / (1 + all) · "
    "overlap: of random subspaces with the probe's · only prompt tokens are changed, none that is generated"
)


def intervention_table(frame: pd.DataFrame) -> Table:
    """A row an intervention of interest, with a row below for the mean of each sort of its random controls."""
    controls = [c for c in _CONTROLS if c in set(frame["control"])]
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("", overflow="fold")
    for title in ("change", "TV", *_DIFFERENCES.values(), *(f"p TV, {c}" for c in controls)):
        table.add_column(title, justify="right", overflow="fold")
    for _, family in frame.groupby(FAMILY, sort=False):
        for _, row in family[family["control"] == ""].iterrows():
            p = [_p(row.get(f"p_tv_{c}", math.nan)) for c in controls]
            table.add_row(_name(row), f"{row['change']:.2f}", _with_interval(row, "tv"), *_figures(row), *p)
        for control, random in family[family["control"] != ""].groupby("control", sort=False):
            mean = random.mean(numeric_only=True)
            told = f"  {len(random)} × {control}" + (
                "" if math.isnan(mean["overlap"]) else f", overlap {mean['overlap']:.0%}"
            )
            figures = [_with_p(family, mean, measure, str(control)) for measure in _DIFFERENCES]
            table.add_row(
                told, f"{mean['change']:.2f}", f"{mean['tv']:.3f}", *figures, *("" for _ in controls), style="dim"
            )
    return table


def _name(row: pd.Series) -> str:
    if row["kind"] == LEFT_ALONE:
        return f"left alone, {row['name']}"
    what = {"ablate": f"rank {row['rank']}", "steer": f"{row['size']:+g} sd"}.get(row["kind"], row["name"])
    return f"{row['kind']} {what} at {row['hook']}"


def _figures(row: pd.Series) -> list[str]:
    return [
        f"{row['smece']:.3f} ({row['null_mean']:.3f})" if m == "smece" else _with_interval(row, f"d_{m}", "+")
        for m in _DIFFERENCES
    ]


def _with_p(family: pd.DataFrame, mean: pd.Series, measure: str, control: str) -> str:
    """The mean of the controls, and the p-value of what they are controls of."""
    value = f"{mean['smece']:.3f}" if measure == "smece" else f"{mean[f'd_{measure}']:+.3f}"
    p = family.loc[family["control"] == "", f"p_{measure}_{control}"]
    return f"{value}, p {_p(float(p.iloc[0]))}" if len(p) else value


def _with_interval(row: pd.Series, name: str, sign: str = "") -> str:
    return f"{row[name]:{sign}.3f} [{row[f'{name}_low']:{sign}.3f}, {row[f'{name}_high']:{sign}.3f}]"


def _p(value: float) -> str:
    return "" if math.isnan(value) else f"{value:.3f}"
