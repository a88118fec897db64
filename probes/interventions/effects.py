"""What an intervention did to the answers: class distribution, confidence, accuracy, calibration and loss, paired by
question, and held against what random interventions of the same strength do.

Knows class distributions; nothing of models, subspaces or files.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import partial
from math import nan

import numpy as np
import pandas as pd

from semcal.calibration.inference.bootstrap import bootstrap
from semcal.calibration.inference.paired import STATISTICS, Statistic
from semcal.calibration.measures.scores import log_loss
from semcal.calibration.nulls.null import null_of_counts
from semcal.semantics.collapsing.collapse import UNPARSED
from semcal.semantics.confidence import confidences
from semcal.semantics.distribution import ClassDistribution, count_matrix

MEASURES = ("confidence", "accuracy", "smece", "signed_gap", "log_loss")
# What tells one intervention of interest from another; random controls share it with what they are controls of.
FAMILY = ["context", "kind", "name", "hook", "position", "rank", "size"]
TESTED = ("tv", "confidence", "accuracy", "smece", "signed_gap", "log_loss", "gold_loss")


def total_variation(a: ClassDistribution, b: ClassDistribution) -> float:
    """½ Σ |π_a − π_b| over classes: the share of probability that would have to move."""
    one, two = a.masses, b.masses
    return sum(abs(one.get(k, 0.0) - two.get(k, 0.0)) for k in one.keys() | two.keys()) / 2


def gold_loss(d: ClassDistribution) -> float:
    """−log of the mass of the gold classes, in nats: what the model loses on meaning. c of M samples are taken as
    (c + ½)/(M + 1), so that what no sample said is not impossible."""
    hits = sum(c for k, c in d.counts.items() if k in d.gold and k != UNPARSED)
    return float(-np.log((hits + 0.5) / ((d.m or 0) + 1)))


def effect(
    base: Sequence[ClassDistribution],
    changed: Sequence[ClassDistribution],
    group: Sequence[str] | np.ndarray,
    *,
    draws: int = 1000,
    null_draws: int = 1000,
    level: float = 0.95,
    seed: int,
) -> dict[str, float]:
    """The answers to the same questions, left alone and changed.

    `tv` is the mean total variation over questions. Two samples of M from one distribution differ, too: read it against
    that of re-sampling with another seed. (With the same seed draws are coupled, and an intervention without effect has
    0.) `confidence` (plug-in, the mean), `accuracy`, `smece` with `null_mean` (the mean smECE of calibrated models with
    these class distributions), `signed_gap`, `log_loss` (of confidence against correctness, nats) and `gold_loss`
    (nats) are those of the changed answers; `d_…` is the difference to those left alone, `d_…_low` and `_high` its
    paired bootstrap interval, whole groups of questions drawn.

    Args:
        base, changed: [question], sampled with one M.
        group: [question] labels of dependent questions.
        draws: resamples of the bootstrap; 0 leaves the intervals NaN.
        null_draws: simulated data sets of the null.
        level: of the intervals.
        seed: of bootstrap and null.
    """
    first, second = count_matrix(base), count_matrix(changed)
    before = confidences(first.counts, first.gold, first.unparsed)
    after = confidences(second.counts, second.gold, second.unparsed)
    null = null_of_counts(second.counts, second.gold, draws=null_draws, seed=seed)
    statistics: dict[str, Statistic] = STATISTICS | {"log_loss": partial(log_loss, m=base[0].m)}
    lost = np.array([[gold_loss(d) for d in its] for its in (base, changed)])  # [2, question]
    moved = np.array([total_variation(a, b) for a, b in zip(base, changed, strict=True)])
    found: dict[str, float] = {"n": len(base), "null_mean": null.mean, "gold_loss": float(lost[1].mean())}
    one = np.ones((1, len(base)))
    differences: dict[str, tuple[Callable[..., np.ndarray], list[np.ndarray]]] = {
        "tv": (_mean, [moved]),
        "d_gold_loss": (_mean, [lost[1] - lost[0]]),
    }
    for name in MEASURES:
        found[name] = float(statistics[name](after.plug_in, after.correct, weight=one)[0])
        pairs = [before.plug_in, before.correct, after.plug_in, after.correct]
        differences[f"d_{name}"] = (partial(_difference, statistics[name]), pairs)
    for name, (statistic, arrays) in differences.items():
        if draws:
            its = bootstrap(statistic, arrays, group=group, num_samples=draws, level=level, seed=seed, centred=True)
            found |= {name: its.estimate, f"{name}_low": its.low, f"{name}_high": its.high}
        else:
            found |= {name: float(statistic(*arrays, weight=one)[0]), f"{name}_low": nan, f"{name}_high": nan}
    return found | {"p_null": null.p_value(found["smece"])}


def _difference(statistic: Statistic, *arrays: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return statistic(*arrays[2:], weight=weight) - statistic(*arrays[:2], weight=weight)


def _mean(values: np.ndarray, *, weight: np.ndarray) -> np.ndarray:
    return (values * weight).sum(-1) / weight.sum(-1)


def against_random(frame: pd.DataFrame) -> pd.DataFrame:
    """The rows of interventions with p-values against their random controls.

    `p_tv_KIND` is (1 + #{random ≥ it}) / (1 + R) over the R controls of a kind ("isotropic", "matched", "donors"): do
    random ones change the answers as much? For the others, the size of the difference of either sign. With R = 20 the
    smallest is 1/21. NaN where a row has no such control.

    Args:
        frame: A row an intervention: `FAMILY`, `control` ("" for those of interest) and the columns of `effect`.
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
