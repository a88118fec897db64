"""Which row of a run's table of probes stands for the run in tables and figures, and what must be said about it.

Knows the table that `semcal probe` writes; draws nothing.
"""

import math
from typing import Any

import pandas as pd

from probes.evaluation.result import BASELINE, BILINEAR, LAYER_RUNGS, MARGINAL, layer_rows, probe_table
from semcal.positions import LAST_PROMPT_TOKEN
from semcal.runs.run import Run

WHOLE_MODEL = ("generative", "lora")  # rungs that read the whole model; the one to show first
MUCH_POOLED = 0.05  # share of the mass that a closed target may pool without a remark


def rung_rows(probes: pd.DataFrame, target: str) -> list[dict[str, Any]]:
    """Every rung and then every baseline of a target at the last prompt token, at the last layer that it was fitted at:
    its row, with `best_layer` and `best_gap`, those of the layer with the smallest gap ("" and NaN where it was fitted
    at one alone). The marginal is last."""
    here = probes.loc[(probes["target"] == target) & (probes["position"] == LAST_PROMPT_TOKEN), :].dropna(subset="gap")
    found = []
    for rung, rows in here.groupby("rung", sort=False):
        best = rows.loc[rows["gap"].idxmin(), :] if len(rows) > 1 else {"layer": "", "gap": math.nan}
        chosen = {"best_layer": best["layer"], "best_gap": best["gap"]}
        found.append((str(rung), rows.iloc[-1].to_dict() | chosen))
    found.sort(key=lambda each: (each[0].startswith(BASELINE), each[0] == f"{BASELINE}{MARGINAL}"))
    return [row for _, row in found]


def last_layer(probes: pd.DataFrame, target: str) -> dict[str, Any] | None:
    """The row of a target for the probe on the last layer at the last prompt token.

    The layer is fixed in advance: the best one would be picked on the very questions it is scored on.
    """
    return None if probes.empty else last_row(layer_rows(probes), target, *LAYER_RUNGS)


def whole_model(probes: pd.DataFrame, target: str) -> dict[str, Any] | None:
    """The row of a target for LoRA on the whole model: the generative rung if it was fitted, else that with a head."""
    found = (last_row(probes, target, rung) for rung in WHOLE_MODEL)
    return next((row for row in found if row is not None), None)


def last_row(probes: pd.DataFrame, target: str, *rungs: str) -> dict[str, Any] | None:
    """The last row of a target for some rungs at the last prompt token."""
    if probes.empty:
        return None
    of = probes["rung"].isin(rungs) & (probes["target"] == target) & (probes["position"] == LAST_PROMPT_TOKEN)
    rows = probes.loc[of, :]
    return rows.iloc[-1].to_dict() if len(rows) else None


def bounds(row: dict[str, Any]) -> tuple[float, float]:
    """Between which figures a KL gap lies as far as the entropy is known: at least 0, whatever was measured."""
    least, most = float(row["gap_at_least"]), float(row["gap_at_most"])
    return (0.0 if math.isnan(least) else max(least, 0.0)), max(most, 0.0)


def probe_remarks(run: Run) -> list[str]:
    """Caveats about the KL gap of a run, in words."""
    if run.probes().empty:
        return []
    if "gap" not in run.probes():
        return ["No KL gap: the probes are of an earlier version of semcal; `semcal probe RUN` computes it."]
    probes, said = probe_table(run), []
    shown = [row for row in (last_layer(probes, "classes"), whole_model(probes, "classes")) if row is not None]
    pooled = max((row["pooled"] for row in shown if not math.isnan(row["pooled"])), default=0.0)
    if pooled > MUCH_POOLED:
        said.append(
            f"{pooled:.0%} of the mass is in the pooled class of the probes' target: to that extent the KL gap says "
            "whether an answer is rare, not which it is; raise probes.max_classes, or use open classes."
        )
    if any(row["rung"] == BILINEAR and math.isinf(row["universe"]) for row in shown):
        said.append(
            "No class was given by just two groups of questions, so that nothing tells how many there are that none of "
            "them gave: the KL gap of the bilinear probe may be far too low; ask more questions, or choose a coarser B."
        )
    for row in [row for row in shown if not math.isnan(row["gap"])][:1]:
        least, most = bounds(row)
        if most - least > row["gap_high"] - row["gap_low"]:
            m = run.calibration().get("m")
            said.append(
                f"KL gap ({row['rung']}): between {least:.3f} and {most:.3f} nats. The entropy of this run's "
                f"distributions is known no better from {f'M = {m}' if m else 'its'} samples"
                f"{'' if not math.isnan(row['gap_at_least']) else ' without log-probabilities'}."
            )
    return said
