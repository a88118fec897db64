"""How much of a target a probe explains, by how many questions it has learnt from.

Knows a rung's candidates, inputs and targets; nothing of layers or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd

from probes.evaluation.controls import share_interval
from probes.evaluation.folds import group_folds
from probes.evaluation.online_code import shuffled_groups
from probes.evaluation.result import Seeds
from probes.evaluation.rungwise import check_lengths, kl, learn_best, log_marginal_of
from probes.rungs.rung import Rung
from probes.targets.closed import ClassTarget
from semcal.calibration.resampling import Resampling


def learning_curve(
    path: Sequence[Rung],
    X: Any,
    target: ClassTarget,
    *,
    sizes: Sequence[int],
    group: Sequence[str],
    folds: int = 5,
    resampling: Resampling | None = None,
) -> pd.DataFrame:
    """Share of KL explained against training questions: one row per size, columns questions, explained, low, high.

    In each outer fold (those of `evaluate` with the same seed) whole groups of the training part are taken in one
    random order until a size is reached, so that smaller subsets lie within larger ones. Choices are made on groups
    within the subset. The denominator is the same for all sizes, the KL that the marginal of the *whole* training part
    leaves: a probe of few questions may therefore fall below 0, and a rising curve says that more questions would help.

    Args:
        path: candidates of a rung, the most constrained first.
        X: what the rung reads.
        target: [question, class].
        sizes: training questions; one beyond what a fold has means all of it.
        group: [question].

    Returns:
        `questions` is the mean number learnt from over folds, at least the size, for groups are kept whole.

    Raises:
        ValueError: lengths disagree, no size or one below 1, fewer groups than folds, or a single class.
    """
    resampling = resampling or Resampling()
    check_lengths(X, target, group)
    if not len(sizes) or min(sizes) < 1:
        raise ValueError(f"sizes are {list(sizes)}; expected at least one number of training questions, all at least 1")
    seed, Y = resampling.seed, target.distribution
    seeds = Seeds.of(seed)
    log_q, log_marginal = np.empty((len(sizes), *Y.shape)), np.empty(Y.shape)
    learnt = np.zeros(len(sizes))
    splits = group_folds(group, folds, seed=seeds.folds)
    for train, test in splits:
        ordered = [train[rows] for rows in shuffled_groups(np.asarray(group)[train].tolist(), seed=seed)]
        reached = np.cumsum([len(rows) for rows in ordered])
        log_marginal[test] = log_marginal_of(Y[train])
        for at, size in enumerate(sizes):
            taken = np.concatenate(ordered[: int(np.searchsorted(reached, size)) + 1])
            log_q[at, test] = learn_best(path, X, Y, group, taken, test, seed=seed)
            learnt[at] += len(taken) / len(splits)
    losses, baseline = kl(Y, log_q), kl(Y, log_marginal)
    if not baseline.sum() > 0:
        raise ValueError("all questions have one and the same class distribution, so there is nothing to explain")
    low, high = share_interval(losses, baseline, group, replace(resampling, seed=seeds.bootstrap))
    explained = 1 - losses.sum(1) / baseline.sum()
    return pd.DataFrame({"questions": learnt, "explained": explained, "low": low, "high": high})
