"""From pairwise similarities to classes."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform


def agglomerate(similarity: ArrayLike, threshold: float, *, method: str) -> np.ndarray:
    """Hierarchical clustering, cut where similarity falls below a threshold: [u] labels, 0, 1, ... by first appearance.

    Saying "the same" of pairs, as entailment or a judge does, is not transitive; this makes it an equivalence. With
    method "complete" any two members of a class are at least `threshold` alike; with "average" classes are merged while
    their members are so on average. Which of two equal merges comes first depends on the order of the items, so sort
    them if the order is arbitrary.

    Args:
        similarity: [u, u] in [0, 1], symmetric; the diagonal is not looked at.
        threshold: in (0, 1].
        method: "complete" or "average".

    Raises:
        ValueError: not a square symmetric matrix.
    """
    array = np.asarray(similarity, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or not np.allclose(array, array.T):
        raise ValueError(f"similarity must be a symmetric [u, u] matrix, got shape {array.shape}")
    if len(array) < 2:
        return np.zeros(len(array), dtype=np.int64)
    distance = 1 - array
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance, checks=False), method=method)
    found = fcluster(tree, 1 - threshold + 1e-9, criterion="distance")
    _, first, place = np.unique(found, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[place]
