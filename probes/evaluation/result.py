"""The result of an evaluation: its table, and the losses of every question behind it.

Knows losses on held-out questions; not which probe made them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from probes.evaluation.controls import share_interval

COLUMNS = ["rung", "target", "layer", "measure", "explained", "low", "high", "ceiling", "ceiling_low"]
COLUMNS += ["reliability", "of_ceiling", "of_ceiling_low", "of_ceiling_high", "control", "selectivity", "null_q95"]
COLUMNS += ["p_value", "penalty", "choice", "n", "n_classes", "baseline_nats", "probe_nats"]


LINEAR, BASELINE = "linear", "baseline:"  # the lowest rung; what the name of a baseline's rung begins with


@dataclass(frozen=True)
class Ceiling:
    """What a predictor knowing the true `π_x` would explain, from two sides; NaN where a side is not known."""

    high: float = float("nan")
    """Share; approximate, rather too high (`probes.evaluation.controls.noise_ceiling`)."""

    low: float = float("nan")
    """Share; a lower bound in expectation, often a loose one (`probes.evaluation.reliability.reliability`)."""

    reliability: float = float("nan")
    """Share of the variance of the frequencies that is no sampling noise: a ceiling in squared error, not in KL."""


@dataclass(frozen=True)
class Evaluation:
    """Predictability of one target.

    Attributes:
        frame: a row a layer, columns `COLUMNS`; see `probes.evaluation.layerwise.evaluate`.
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
    """One seed for each thing that is drawn; folds of a seed are the same for every rung, target and layer."""

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
    *,
    rung: str,
    target: str,
    layers: Sequence[str],
    measure: str,
    ceiling: Ceiling,
    group: Sequence[str],
    bootstrap: int,
    level: float,
    seed: int,
    columns: Mapping[str, Any],
    log_q: np.ndarray | None = None,
) -> Evaluation:
    """The columns that are made alike for every rung, measure and baseline.

    Args:
        losses: [layer, question].
        baseline: [question].
        ceiling: counts as known: the interval of the share of it is that of the share explained, divided by it.
        group: [question].
        bootstrap: resamples of whole groups.
        level: of the interval.
        seed: of the resamples.
        columns: more columns; `control` among them, if there is a control task.
    """
    total = baseline.sum()
    explained = 1 - losses.sum(1) / (total if total > 0 else np.nan)
    low, high = share_interval(losses, baseline, group, bootstrap, level=level, seed=seed)
    reachable = ceiling.high if ceiling.high > 0 else np.nan
    frame = pd.DataFrame(
        {
            "rung": rung,
            "target": target,
            "layer": list(layers),
            "measure": measure,
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
    if measure == "kl_explained":
        frame["baseline_nats"], frame["probe_nats"] = float(baseline.mean()), losses.mean(1)
    frame = frame.reindex(columns=COLUMNS)
    frame["choice"] = frame["choice"].fillna("").astype(str)
    return Evaluation(frame, losses, baseline, log_q)


def at_layer(frame: pd.DataFrame, layer: str) -> pd.DataFrame:
    """Of rows of one target, those fitted at one layer, and those that read no layer that linear probes read (a text,
    the whole model): one a rung, and position if there are several. Rungs fitted at other layers alone are left out.

    Args:
        frame: columns rung, layer, and position if there are several.
    """
    layers = frame.loc[frame["rung"] == LINEAR, "layer"].tolist()
    rows = frame.loc[(frame["layer"] == layer) | ~frame["layer"].isin(layers), :]
    return rows.drop_duplicates([key for key in ("position", "rung") if key in frame], keep="last")
