"""Intermediate B-confidence: how much of the semantic answer is decided after i tokens.

The answers of a question form a tree of prefixes. At a prefix z_≤i the model's distribution over classes is what the
answers below it say, `g_i(k) = Pr[B = k | x, z_≤i]` (arXiv 2511.04869, Theorem 9, for k the semantic answer). Its
largest value, averaged over the prefixes with their probabilities, starts at the B-confidence and ends at 1; where it
rises is where the model decides. Pure numerics: token ids, weights and class labels in, numbers out.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Hashable, Sequence

import numpy as np


def expected_confidence(
    ids: Sequence[Sequence[int]], weight: Sequence[float] | np.ndarray, classes: Sequence[Hashable]
) -> np.ndarray:
    """Expected largest class probability after i = 0, 1, ..., L tokens: `[L + 1]`, L the longest answer.

    E over z_≤i of max_k Pr[B = k | x, z_≤i] = Σ over prefixes of max_k weight(prefix, k), over the whole weight. An
    answer that has ended keeps its last prefix. The value never falls with i and is 1 at the end.

    With weights that are counts of samples, deep prefixes hold few samples and look more decided than they are, as
    B-confidence itself does at small M; with exact masses there is no such bias.

    Args:
        ids: token ids of each distinct answer.
        weight: `[answer]` counts or masses.
        classes: `[answer]` semantic classes.

    Raises:
        ValueError: lengths disagree, or the total weight is 0.
    """
    if not len(ids) == len(weight) == len(classes):
        raise ValueError(f"{len(ids)} answers, {len(weight)} weights and {len(classes)} classes: lengths must agree")
    total = float(np.sum(weight))
    if not total > 0:
        raise ValueError("the answers have a total weight of 0; expected more")
    rows = [(tuple(i), float(w), k) for i, w, k in zip(ids, weight, classes, strict=True)]
    expected = np.empty(max(len(i) for i, _, _ in rows) + 1)
    for depth in range(len(expected)):
        below: dict[tuple[int, ...], dict[Hashable, float]] = defaultdict(lambda: defaultdict(float))
        for answer, w, label in rows:
            below[answer[:depth]][label] += w
        expected[depth] = sum(max(shares.values()) for shares in below.values()) / total
    return expected
