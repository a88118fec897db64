"""Which questions are held out together: whole groups, dealt to folds at random."""

from __future__ import annotations

from numpy.typing import ArrayLike

from semcal.arrays import IntArray
from semcal.calibration.inference.bootstrap import groups
from semcal.seeds import keyed_generator


def folds_by_group(group: ArrayLike | None, n: int, folds: int, *, seed: int) -> IntArray:
    """The fold of each of n questions, `[n]` in [0, folds); a group is in one fold, and no fold is empty.

    Folds hold equal numbers of groups up to one, not equal numbers of questions.

    Args:
        group: `[n]` labels of questions that depend on one another; None for independent questions.
        n: number of questions.
        folds: at least 3: while one is held out, choosing a penalty on the others takes two.
        seed: deals the groups.

    Raises:
        ValueError: fewer than 3 folds, fewer groups than folds, or labels of another length.
    """
    clusters = groups(group, n)
    if folds < 3:
        raise ValueError(f"folds is {folds}; expected at least 3: one is held out, two choose a penalty")
    if clusters.count < folds:
        raise ValueError(f"{clusters.count} groups of questions cannot fill {folds} folds; use fewer folds")
    dealt = keyed_generator(seed, "folds").permutation(clusters.count) % folds
    return dealt[clusters.index]
