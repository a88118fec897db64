"""Predictions of linear probes for questions they were not trained on.

Knows activations of one layer, targets and groups; nothing of scores, of runs, or of which layer it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from scipy.special import log_softmax

from probes.evaluate import PENALTIES, group_folds
from probes.linear import LinearProbe
from probes.rung import share_explained
from probes.targets import smoothed

# Nats still to be gained when the solver stops: to compare penalties, and of the probe that predicts.
_ROUGH_TOLERANCE, _TOLERANCE = 1e-4, 1e-5


def out_of_fold(X: np.ndarray, Y: np.ndarray, group: Sequence[str], *, folds: int = 5, seed: int) -> np.ndarray:
    """Class probabilities [question, K], each from a probe that saw no question of its group.

    Where there is nothing to predict, they lean a little against the target over all questions together: what a fold
    holds above the mean, its training part lacks. A void probe's rank correlation and AUROC lie a little below chance.

    Args:
        X: [question, d], finite.
        Y: [question, K], rows sum to 1.
        group: [question], questions that must not straddle a split.
        folds: at least 2, at most the number of groups.
        seed: of the folds, and of the inner splits that penalties are chosen on.

    Raises:
        ValueError: lengths disagree, an input that is not finite, fewer groups than folds.
    """
    predicted = np.empty(np.shape(Y))
    names = np.asarray(group)
    for train, test in group_folds(group, folds, seed=seed):
        (found,) = predict_elsewhere(X[train], Y[train], names[train].tolist(), [X[test]], seed=seed)
        predicted[test] = np.exp(found)
    return predicted


def predict_elsewhere(
    X: np.ndarray, Y: np.ndarray, group: Sequence[str], others: Sequence[np.ndarray], *, seed: int
) -> list[np.ndarray]:
    """Log-probabilities [question', K] for other activations [question', d], from one probe trained on X and Y.

    The penalty is chosen as in `evaluate`, on one inner split by group; then the probe is fitted to all rows given.
    Rows that all hold one distribution teach nothing else than to predict it.
    """
    if _alike(Y):
        marginal = np.log(smoothed(torch.as_tensor(Y, dtype=torch.float64)).mean(0).numpy())
        return [np.tile(marginal, (len(other), 1)) for other in others]
    probe = LinearProbe(_penalty(X, Y, group, seed), tol=_TOLERANCE).fit(X, Y)
    # Not through `predict`: in the wrong place a probe may be sure beyond what a float can tell from 0.
    return [log_softmax(other.astype(np.float64) @ probe.weight_ + probe.bias_, axis=1) for other in others]


def _penalty(X: np.ndarray, Y: np.ndarray, group: Sequence[str], seed: int) -> float:
    """From the heaviest down until two in a row do worse than the best."""
    fit, held = group_folds(group, max(2, min(5, len(set(group)))), seed=seed)[0]
    grid = sorted(PENALTIES, reverse=True)
    best, chosen, misses = -np.inf, grid[0], 0
    for penalty in () if _alike(Y[fit]) else grid:
        probe = LinearProbe(penalty, tol=_ROUGH_TOLERANCE).fit(X[fit], Y[fit])
        log_q = log_softmax(X[held].astype(np.float64) @ probe.weight_ + probe.bias_, axis=1)
        if (score := share_explained(Y[held], log_q, np.log(probe.marginal_))) > best:
            best, chosen, misses = score, penalty, 0
        elif (misses := misses + 1) == 2:
            break
    return chosen


def _alike(Y: np.ndarray) -> bool:
    return bool(np.equal(Y, Y[0]).all())
