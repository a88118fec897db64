"""How far two collapsing functions agree on the same answers."""

from collections.abc import Hashable, Sequence

import numpy as np
from sklearn.metrics import adjusted_rand_score


def adjusted_rand(a: Sequence[Hashable], b: Sequence[Hashable], count: Sequence[int]) -> float:
    """Adjusted Rand index of two classifications of one question's samples (Hubert & Arabie 1985): 1 identical.

    Pairs of samples are counted, so an answer that was drawn often weighs more. 0 is the level of chance; two
    classifications that put all samples into one class agree perfectly.

    Args:
        a, b: [answer] classes of the distinct answers under each function.
        count: [answer] how often each was drawn.

    Raises:
        ValueError: lengths disagree.
    """
    if not len(a) == len(b) == len(count):
        raise ValueError(f"{len(a)} and {len(b)} classes for {len(count)} answers: lengths must agree")
    codes = [
        np.repeat(np.unique(np.array([str(k) for k in labels]), return_inverse=True)[1], count) for labels in (a, b)
    ]
    return float(adjusted_rand_score(*codes))
