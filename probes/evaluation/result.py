"""The result of an evaluation: its table, and the losses of every question behind it.

Knows losses on held-out questions and predicted log-probabilities; not which probe made them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from probes.evaluation.ceiling import Ceiling
from probes.evaluation.controls import share_interval
from probes.evaluation.kl_gap import KLGap, kl_gaps
from probes.targets.closed import MOST_POOLED, ClassTarget
from probes.targets.entropy import Entropies
from probes.targets.open import OpenTarget, Universe, drawn_once, sparse
from probes.targets.scalars import ScalarTarget
from semcal.calibration.resampling import Resampling
from semcal.runs.run import Run

COLUMNS = ["rung", "target", "layer", "measure", "explained", "low", "high", "ceiling", "ceiling_low"]
COLUMNS += ["reliability", "of_ceiling", "of_ceiling_low", "of_ceiling_high", "control", "selectivity", "null_q95"]
COLUMNS += ["p_value", "penalty", "choice", "n", "n_classes", "universe", "baseline_nats", "probe_nats"]
COLUMNS += ["gap", "gap_low", "gap_high", "gap_at_least", "gap_at_most", "gap_top", "gap_top_low", "gap_top_high"]
COLUMNS += ["gap_rest", "gap_rest_low", "gap_rest_high", "gap_floor", "pooled", "drawn_once"]

BILINEAR, DENSITY, GENERATIVE = "bilinear", "density", "generative"
MARGINAL, CANDIDATES = "marginal", "candidate-only"  # what a share explained is of
LINEAR, BASELINE = "linear", "baseline:"  # the lowest rung; the prefix of the names of baselines
OPEN_RUNGS = (GENERATIVE, BILINEAR, DENSITY)  # which give every class of a run a probability, and pool none
LAYER_RUNGS = (LINEAR, BILINEAR)  # fitted at every layer: to closed classes, and to open or closed ones
KL_EXPLAINED, R2 = "kl_explained", "r2"
SHARES = ("explained", "low", "high", "of_ceiling", "of_ceiling_low", "of_ceiling_high", "control", "selectivity")


@dataclass(frozen=True)
class HeldOut:
    """What was predicted of questions whose group the probes have not seen.

    Attributes:
        losses: [row, question], nats (KL of the shares) or squared errors.
        baseline: [question], likewise, of the constant that the same training questions give.
        log_q: [row, entry], log-probabilities of the classes of each question, entries as in `sparse(target)`; None for
            a scalar.
        log_marginal: [entry], those of the constant.
    """

    losses: np.ndarray
    baseline: np.ndarray
    log_q: np.ndarray | None = None
    log_marginal: np.ndarray | None = None


@dataclass(frozen=True)
class Evaluation:
    """Predictability of one target.

    Attributes:
        frame: one row per layer, columns `COLUMNS`; see `probes.evaluation.layerwise.evaluate_all`.
        losses, baseline, log_q: see `HeldOut`.
        gaps: [row] KL gaps, that of the baseline last; empty where the entropy of the target is not known.
        against: what the baseline is: the marginal, or the candidate-only model of open classes.
    """

    frame: pd.DataFrame
    losses: np.ndarray
    baseline: np.ndarray
    log_q: np.ndarray | None = None
    gaps: tuple[KLGap, ...] = ()
    against: str = MARGINAL


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
    held_out: HeldOut,
    labels: Mapping[str, Any],
    *,
    target: ClassTarget | ScalarTarget,
    ceiling: Ceiling,
    group: Sequence[str],
    resampling: Resampling,
    columns: Mapping[str, Any],
) -> Evaluation:
    """The columns that are made alike for every rung, measure and baseline.

    Where more than MOST_POOLED of the target's mass is pooled, shares explained are NaN: they would say how much is
    pooled, not what is answered.

    Args:
        labels: the columns rung, layer (one per row) and measure.
        ceiling: counts as known: the interval of the share of it is that of the share explained, divided by it.
        group: [question].
        resampling: of the intervals; whole groups are drawn.
        columns: more columns; `control` among them, if there is a control task.
    """
    losses, baseline = held_out.losses, held_out.baseline
    total = baseline.sum()
    explained = 1 - losses.sum(1) / (total if total > 0 else np.nan)
    low, high = share_interval(losses, baseline, group, resampling)
    reachable = ceiling.high if ceiling.high > 0 else np.nan
    frame = pd.DataFrame(
        dict(labels)
        | {
            "target": target.name,
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
    gaps = gaps_of(held_out, target, group, resampling)
    if isinstance(target, ClassTarget):
        frame["baseline_nats"], frame["probe_nats"], frame["pooled"] = (
            float(baseline.mean()),
            losses.mean(1),
            target.pooled,
        )
        if target.pooled > MOST_POOLED:
            frame = frame.assign(**dict.fromkeys(SHARES, np.nan))
    frame = frame.assign(**gap_columns(gaps[:-1]))
    frame = frame.reindex(columns=COLUMNS)
    frame["choice"] = frame["choice"].fillna("").astype(str)
    return Evaluation(frame, losses, baseline, held_out.log_q, gaps)


def gaps_of(
    held_out: HeldOut, target: ClassTarget | ScalarTarget, group: Sequence[str], resampling: Resampling
) -> tuple[KLGap, ...]:
    """[row] KL gaps, that of the marginal last; empty for a scalar, and where the entropy is not known."""
    if not isinstance(target, ClassTarget) or held_out.log_q is None or held_out.log_marginal is None:
        return ()
    found = target.known_entropies
    if found is None:
        return ()
    log_q = np.concatenate([held_out.log_q, held_out.log_marginal[None]])
    return tuple(kl_gaps(sparse(target), log_q, found, group, resampling))


def gap_columns(gaps: Sequence[KLGap]) -> dict[str, list[float]]:
    """The columns of a table that tell KL gaps, a row each; nats. None where there are none."""
    if not gaps:
        return {}
    return {
        "gap": [one.gap for one in gaps],
        "gap_low": [one.low for one in gaps],
        "gap_high": [one.high for one in gaps],
        "gap_at_least": [one.at_least for one in gaps],
        "gap_at_most": [one.at_most for one in gaps],
        "gap_top": [one.top for one in gaps],
        "gap_top_low": [one.top_low for one in gaps],
        "gap_top_high": [one.top_high for one in gaps],
        "gap_rest": [one.rest for one in gaps],
        "gap_rest_low": [one.rest_low for one in gaps],
        "gap_rest_high": [one.rest_high for one in gaps],
        "gap_floor": [one.floor_q95 for one in gaps],
    }


def probe_table(run: Run) -> pd.DataFrame:
    """`Run.probes`, with every column; NaN where an earlier version of semcal wrote none."""
    probes = run.probes()
    return probes if probes.empty else probes.reindex(columns=[*COLUMNS, "position"])


def layer_rows(probes: pd.DataFrame) -> pd.DataFrame:
    """The rows of the probes that are fitted at every layer of the model's own activations: of each target those of the
    linear rung, or where it has none, because its classes are open, those of the bilinear one."""
    linear = probes.loc[probes["rung"] == LINEAR, "target"].unique()
    rows = probes["rung"].isin(LAYER_RUNGS) & ((probes["rung"] == LINEAR) | ~probes["target"].isin(linear))
    return probes.loc[rows, :]


def at_layer(frame: pd.DataFrame, layer: str) -> pd.DataFrame:
    """Of the rows of one target, those fitted at one layer, and those that read none of the layers of LAYER_RUNGS (a
    text, the whole model): one per rung, and per position if there are several. Rungs fitted only at other layers are
    left out.

    Args:
        frame: columns rung, layer, and position if there are several.
    """
    layers = frame.loc[frame["rung"].isin(LAYER_RUNGS), "layer"].tolist()
    rows = frame.loc[(frame["layer"] == layer) | ~frame["layer"].isin(layers), :]
    return rows.drop_duplicates([key for key in ("position", "rung") if key in frame], keep="last")


@dataclass(frozen=True)
class OpenPrediction:
    """What was predicted of the classes of questions whose group the probes have not seen; nothing is pooled.

    Attributes:
        log_q: [row, entry].
        log_baseline: [entry], by the candidate-only model, or the marginal.
        against: which of these.
    """

    log_q: np.ndarray
    log_baseline: np.ndarray
    against: str = MARGINAL


def open_evaluation(
    predicted: OpenPrediction,
    labels: Mapping[str, Any],
    *,
    target: OpenTarget,
    found: Entropies,
    group: Sequence[str],
    resampling: Resampling,
    columns: Mapping[str, Any],
) -> Evaluation:
    """The same columns for classes that questions do not share, none of them pooled: no ceiling and no control task.

    `universe` is how many classes questions like these may give, by estimate; infinite where nothing tells.
    `drawn_once` is the share of the samples in classes that their question was answered with once.

    Args:
        labels: the columns rung, layer (one per row) and measure.
        found: [question] entropies of the target.
        group, resampling, columns: as in `evaluation`.
    """
    gaps = tuple(
        kl_gaps(target, np.concatenate([predicted.log_q, predicted.log_baseline[None]]), found, group, resampling)
    )
    nats = np.stack([gap.per_question + (found.point - found.plug_in) for gap in gaps])  # KL of the shares
    losses, baseline = nats[:-1], nats[-1]
    total, universe = baseline.sum(), Universe.of(target, group)
    low, high = share_interval(losses, baseline, group, resampling)
    frame = pd.DataFrame(
        dict(labels)
        | {"universe": universe.size if universe.told else np.inf}
        | {"target": target.name, "explained": 1 - losses.sum(1) / (total if total > 0 else np.nan)}
        | {"low": low, "high": high, "n": len(group), "n_classes": len(target.classes)}
        | {"baseline_nats": float(baseline.mean()), "probe_nats": losses.mean(1), "pooled": 0.0}
        | {"drawn_once": drawn_once(target)}
        | gap_columns(gaps[:-1])
    ).assign(**columns)
    frame = frame.reindex(columns=COLUMNS)
    frame["choice"] = frame["choice"].fillna("").astype(str)
    return Evaluation(frame, losses, baseline, predicted.log_q, gaps, predicted.against)
