"""Which questions are learnt from and which are held out: splits by group, one inside the other.

Knows labels of groups; nothing of activations, targets or probes.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.model_selection import GroupKFold


@dataclass(frozen=True)
class Fold:
    """One fold of a nested cross-validation, as row indices."""

    train: np.ndarray
    """What the probe is fitted to once its choices are made."""

    test: np.ndarray
    """What it is scored on: groups that are not in `train`."""

    fit: np.ndarray
    """The part of `train` that candidates are fitted to while a choice is made."""

    validation: np.ndarray
    """The rest of `train`, other groups, which the choice is made on."""


def too_few_groups(groups: int, folds: int) -> str:
    """Why so many groups of questions are too few for this cross-validation, and what to do; "" where they are enough.

    With a fold held out, two groups must be left: one to fit to, and one to choose the penalty on.
    """
    few = f"{groups} group{'s' if groups != 1 else ''} of questions cannot be split into {folds} folds"
    if groups < folds:
        return f"{few}; ask about more groups" + (", or lower probes.folds" if groups > 2 else "")
    if groups - math.ceil(groups / folds) < 2:
        remedy = "; ask about more groups, or raise probes.folds" if groups > 2 else "; ask about more groups"
        return f"{few} that leave two to train on{remedy}"
    return ""


def group_folds(group: Sequence[str], folds: int, *, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(train, test) row indices of each fold; whole groups are held out, in seeded random order.

    Raises:
        ValueError: fewer than 2 folds, or fewer groups than folds.
    """
    groups = len(set(group))
    if folds < 2 or groups < folds:
        raise ValueError(
            f"{groups} groups of questions cannot make {folds} folds; expected at least 2 folds with a group "
            "each; ask about more groups or lower the number of folds"
        )
    splitter = GroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(group)), groups=np.asarray(group)))


def nested_folds(group: Sequence[str], folds: int, seed: int) -> list[Fold]:
    """Outer folds with one inner split by group each; the same for every rung, target and layer of a seed."""
    nested = []
    for train, test in group_folds(group, folds, seed=seed):
        fit, validation = inner_split(np.asarray(group)[train].tolist(), folds, seed=seed)
        nested.append(Fold(train, test, train[fit], train[validation]))
    return nested


def inner_split(group: Sequence[str], folds: int, *, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """One (fit, validation) split by group, for choices: about one part in `folds` is validated on.

    Raises:
        ValueError: fewer than two groups.
    """
    return group_folds(group, max(2, min(folds, len(set(group)))), seed=seed)[0]
