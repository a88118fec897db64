"""The result of an evaluation: its table, and the losses of every question behind it.

Knows losses on held-out questions; not which probe made them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from probes.evaluation.ceiling import Ceiling
from probes.evaluation.controls import share_interval
from semcal.calibration.resampling import Resampling

COLUMNS = ["rung", "target", "layer", "measure", "explained", "low", "high", "ceiling", "ceiling_low"]
COLUMNS += ["reliability", "of_ceiling", "of_ceiling_low", "of_ceiling_high", "control", "selectivity", "null_q95"]
COLUMNS += ["p_value", "penalty", "choice", "n", "n_classes", "baseline_nats", "probe_nats"]

LINEAR, BASELINE = "linear", "baseline:"  # the lowest rung; the prefix of the names of baselines
KL_EXPLAINED, R2 = "kl_explained", "r2"


@dataclass(frozen=True)
class Evaluation:
    """Predictability of one target.

    Attributes:
        frame: one row per layer, columns `COLUMNS`; see `probes.evaluation.layerwise.evaluate_all`.
        losses: [row, question], of probes that have not seen the question's group; nats, or squared errors.
        baseline: [question], likewise, of the constant that the same training questions give.
        log_q: [question, class], held-out log-probabilities of the one row, where a rung was evaluated by itself;
            None for batches of layers.
    """

    frame: pd.DataFrame
    losses: np.ndarray
    baseline: np.ndarray
    log_q: np.ndarray | None = None


@dataclass(frozen=True)
class Seeds:
    """A seed for each thing that is drawn; the folds of a seed are the same for every rung, target and layer."""

    folds: int
    control: int
    null: int
    bootstrap: int

    @classmethod
    def of(cls, seed: int) -> Seeds:
        return cls(*np.random.SeedSequence(seed).generate_state(4).tolist())


def evaluation(
    losses: np.ndarray,
    baseline: np.ndarray,
    labels: Mapping[str, Any],
    *,
    ceiling: Ceiling,
    group: Sequence[str],
    resampling: Resampling,
    columns: Mapping[str, Any],
    log_q: np.ndarray | None = None,
) -> Evaluation:
    """The columns that are made alike for every rung, measure and baseline.

    Args:
        losses: [layer, question].
        baseline: [question].
        labels: the columns rung, target, layer (one per row) and measure.
        ceiling: counts as known: the interval of the share of it is that of the share explained, divided by it.
        group: [question].
        resampling: of the interval; whole groups are drawn.
        columns: more columns; `control` among them, if there is a control task.
    """
    total = baseline.sum()
    explained = 1 - losses.sum(1) / (total if total > 0 else np.nan)
    low, high = share_interval(losses, baseline, group, resampling)
    reachable = ceiling.high if ceiling.high > 0 else np.nan
    frame = pd.DataFrame(
        dict(labels)
        | {
            "explained": explained,
            "low": low,
            "high": high,
            "ceiling": ceiling.high,
            "ceiling_low": ceiling.low,
            "reliability": ceiling.reliability,
            "of_ceiling": explained / reachable,
            "of_ceiling_low": low / reachable,
            "of_ceiling_high": high / reachable,
            "n": len(group),
        }
    ).assign(**columns)
    if "control" in frame:
        frame["selectivity"] = frame["explained"] - frame["control"]
    if labels["measure"] == KL_EXPLAINED:
        frame["baseline_nats"], frame["probe_nats"] = float(baseline.mean()), losses.mean(1)
    frame = frame.reindex(columns=COLUMNS)
    frame["choice"] = frame["choice"].fillna("").astype(str)
    return Evaluation(frame, losses, baseline, log_q)


def at_layer(frame: pd.DataFrame, layer: str) -> pd.DataFrame:
    """Of the rows of one target, those fitted at one layer, and those that read none of the linear probes' layers (a
    text, the whole model): one per rung, and per position if there are several. Rungs fitted only at other layers are
    left out.

    Args:
        frame: columns rung, layer, and position if there are several.
    """
    layers = frame.loc[frame["rung"] == LINEAR, "layer"].tolist()
    rows = frame.loc[(frame["layer"] == layer) | ~frame["layer"].isin(layers), :]
    return rows.drop_duplicates([key for key in ("position", "rung") if key in frame], keep="last")
