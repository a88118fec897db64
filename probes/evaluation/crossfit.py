"""Predictions of linear probes for questions they were not trained on.

Knows activations of one layer, targets and groups; nothing of scores, of runs, or of which layer it is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from probes.evaluation.folds import group_folds
from probes.evaluation.rungwise import candidates, learn_best


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
    path = candidates("linear", m=None, seed=seed)
    for train, test in group_folds(group, folds, seed=seed):
        predicted[test] = np.exp(learn_best(path, X, Y, group, train, test, seed=seed))
    return predicted


def predict_elsewhere(
    X: np.ndarray, Y: np.ndarray, group: Sequence[str], others: Sequence[np.ndarray], *, seed: int
) -> list[np.ndarray]:
    """Log-probabilities [question', K] for other activations [question', d], from one probe trained on X and Y.

    The penalty is chosen on one inner split by group; then the probe is fitted to all rows given (`learn_best`).
    """
    together = np.concatenate([X, *others])
    known, elsewhere = np.arange(len(X)), np.arange(len(X), len(together))
    found = learn_best(candidates("linear", m=None, seed=seed), together, Y, group, known, elsewhere, seed=seed)
    return np.split(found, np.cumsum([len(other) for other in others])[:-1])
