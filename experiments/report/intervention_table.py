"""Interventions as a table: the effect of each, and whether random ones do as much."""

import math
from typing import Any

import pandas as pd

from experiments.probe.intervention_plan import LEFT_ALONE
from experiments.report.summary_table import text_table
from experiments.terminal.fitted_table import FittedTable
from probes.interventions.effects import FAMILY

_DIFFERENCES = {
    "tv": "TV",
    "d_confidence": "Δ confidence",
    "d_accuracy": "Δ accuracy",
    "smece": "smECE (null)",
    "d_gold_loss": "Δ loss (nats)",
}
EXPLANATION = (
    "TV: total variation between the class distributions of a question with and without the change, mean over "
    "questions; two samples of the unchanged model differ as well ('another seed'), and draws with the same seed are "
    "coupled · ±: half the interval of resampling groups of questions · change: mean norm of the change · reads: what "
    "the probe explains on these questions (held out) · controls, in grey: their mean, and p that random ones do as "
    "much, (1 + as much) / (1 + all); isotropic ones have equal rank (and norm, in steering), matched ones also remove "
    "as much variance, donors are other questions; overlap: of the control's subspace with that of the probe · only "
    "prompt tokens are changed, never generated ones"
)
HEADINGS = ("", "reads", "change", *_DIFFERENCES.values())


def intervention_rows(frame: pd.DataFrame) -> list[tuple[list[str], bool]]:
    """Cells of each row, and whether it is of controls: one row per intervention, then one per kind of control."""
    rows = []
    for _, family in frame.groupby(FAMILY, sort=False):
        for row in family.query("control == ''").to_dict("records"):
            reads = "" if math.isnan(row["readable"]) else f"{row['readable']:.0%}"
            figures = [f"{_value(row, name)} {_spread(row, name)}" for name in _DIFFERENCES]
            rows.append(([_name(row), reads, f"{row['change']:.2f}", *figures], False))
            for control, random in family.query("control != ''").groupby("control", sort=False):
                mean = random.mean(numeric_only=True).to_dict()
                overlap = "" if math.isnan(mean["overlap"]) else f", overlap {mean['overlap']:.0%}"
                p = [row.get(f"p_{name.removeprefix('d_')}_{control}", math.nan) for name in _DIFFERENCES]
                figures = [
                    f"{_value(mean, name)}, p {_p(p_value)}" for name, p_value in zip(_DIFFERENCES, p, strict=True)
                ]
                rows.append(([f"  {len(random)} × {control}{overlap}", "", f"{mean['change']:.2f}", *figures], True))
    return rows


def intervention_table(frame: pd.DataFrame) -> FittedTable:
    """The same for a terminal, controls in grey."""
    table = text_table(HEADINGS, [])
    for cells, of_controls in intervention_rows(frame):
        table.add_row(*cells, style="dim" if of_controls else None)
    return table


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
