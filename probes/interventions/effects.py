"""What an intervention did to the answers: class distribution, confidence, accuracy, calibration and loss, paired by
question, and compared with what random interventions of the same strength do.

Knows class tables; nothing of models, subspaces or files.
"""

import re
from collections.abc import Callable
from functools import partial
from math import nan

import numpy as np
import pandas as pd

from semcal.calibration.inference.bootstrap import bootstrap_interval
from semcal.calibration.inference.paired import STATISTICS, Statistic
from semcal.calibration.measures.scores import log_loss
from semcal.calibration.nulls.null import null_of
from semcal.calibration.resampling import Resampling
from semcal.semantics.class_table import ClassTable

MEASURES = ("confidence", "accuracy", "smece", "signed_gap", "log_loss")
# What distinguishes one intervention of interest from another; random controls share it with what they control for.
FAMILY = ["context", "kind", "name", "hook", "position", "rank", "size"]
TESTED = ("tv", "confidence", "accuracy", "smece", "signed_gap", "log_loss", "gold_loss")


def total_variation(a: ClassTable, b: ClassTable) -> np.ndarray:
    """[question] ½ Σ |π_a − π_b| over classes: the share of probability that would have to move."""
    pairs = zip(a.distributions, b.distributions, strict=True)
    return np.array([sum(abs(p.get(k, 0.0) - q.get(k, 0.0)) for k in p.keys() | q.keys()) / 2 for p, q in pairs])


def gold_loss(table: ClassTable) -> np.ndarray:
    """[question] −log of the mass of the gold classes, in nats: what the model loses on meaning. c of M samples count
    as (c + ½)/(M + 1), so that what no sample said is not impossible."""
    hits = (table.sampled_counts * table.gold).sum(axis=1)
    return -np.log((hits + 0.5) / ((table.m or 0) + 1))


def effect(
    base: ClassTable, changed: ClassTable, *, resampling: Resampling, intervals: bool = True
) -> dict[str, float]:
    """The answers to the same questions, without and with an intervention.

    `tv` is the mean total variation over questions. Two samples of M from one distribution differ too: compare it with
    that of sampling again with another seed. (With the same seed draws are coupled, and an intervention without effect
    has 0.) `confidence` (plug-in, the mean), `accuracy`, `smece` with `null_mean` (the mean smECE of calibrated models
    with these class distributions), `signed_gap`, `log_loss` (of confidence against correctness, nats) and `gold_loss`
    (nats) are those of the changed answers; `d_…` is the difference to the unchanged ones, `d_…_low` and `_high` its
    paired bootstrap interval, from resampling whole groups of questions.

    Args:
        base, changed: the same questions in the same order, sampled with one M.
        resampling: of intervals and null.
        intervals: False leaves the intervals NaN.
    """
    before, after = base.by_count, changed.by_count
    null = null_of(changed, null_draws=resampling.null_draws, seed=resampling.seed)
    statistics: dict[str, Statistic] = STATISTICS | {"log_loss": partial(log_loss, m=base.m)}
    lost = [gold_loss(table) for table in (base, changed)]
    found: dict[str, float] = {"n": len(base), "null_mean": null.mean, "gold_loss": float(lost[1].mean())}
    one = np.ones((1, len(base)))
    differences: dict[str, tuple[Callable[..., np.ndarray], list[np.ndarray]]] = {
        "tv": (_mean, [total_variation(base, changed)]),
        "d_gold_loss": (_mean, [lost[1] - lost[0]]),
    }
    for name in MEASURES:
        found[name] = float(statistics[name](after.plug_in, after.correct, weight=one)[0])
        pairs = [before.plug_in, before.correct, after.plug_in, after.correct]
        differences[f"d_{name}"] = (partial(_difference, statistics[name]), pairs)
    for name, (statistic, arrays) in differences.items():
        value, low, high = float(statistic(*arrays, weight=one)[0]), nan, nan
        if intervals:
            interval = bootstrap_interval(statistic, arrays, resampling=resampling, group=base.groups, centred=True)
            value, low, high = interval.estimate, interval.low, interval.high
        found |= {name: value, f"{name}_low": low, f"{name}_high": high}
    return found | {"p_null": null.p_value(found["smece"])}


def _difference(statistic: Statistic, *arrays: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return statistic(*arrays[2:], weight=weight) - statistic(*arrays[:2], weight=weight)


def _mean(values: np.ndarray, *, weight: np.ndarray) -> np.ndarray:
    return (values * weight).sum(-1) / weight.sum(-1)


def against_random(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of interventions with p-values against their random controls.

    `p_tv_KIND` is (1 + #{random ≥ observed}) / (1 + R) over the R controls of a kind ("isotropic", "matched",
    "donors"): do random ones change the answers as much? For the other measures, the size of the difference of either
    sign is compared. With R = 20 the smallest p-value is 1/21. NaN where a row has no such control.

    Args:
        frame: one row per intervention: `FAMILY`, `control` ("" for those of interest) and the columns of `effect`.
    """
    result = frame.drop(columns=[c for c in frame if re.match("p_(?!null)", str(c))])
    found: dict[str, pd.Series] = {}
    for _, family in result.groupby(FAMILY, sort=False):
        own = family.query("control == ''").index
        for control, random in family.query("control != ''").groupby("control"):
            for measure in TESTED:
                column = "tv" if measure == "tv" else f"d_{measure}"
                strength = np.abs(random[column].to_numpy())
                at_least = [int((strength >= abs(result[column][i]) - 1e-12).sum()) for i in own]
                p = found.setdefault(f"p_{measure}_{control}", pd.Series(nan, index=result.index))
                p[own] = [(1 + k) / (1 + len(strength)) for k in at_least]
    return result.assign(**found)
