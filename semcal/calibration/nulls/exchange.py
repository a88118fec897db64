"""The null at finite M without an estimate in it: the gold answer changes places with one of the samples.

If the gold answer is one more draw from the distribution of the samples, the M + 1 draws of a question are
exchangeable: given their pooled counts, each was the gold one with the same chance. So any statistic of the data and of
data sets in which another draw is gold are exchangeable too, and (1 + #{null >= observed}) / (1 + draws) is a valid
p-value at any n, M and K, with nothing estimated (a permutation test, e.g. Lehmann & Romano 2005, section 15.2).
Questions are taken as independent; `Chances.grouped` ties those of a group together. With M = 1 the two draws only
change places, and nothing that treats them alike can tell.

Knows counts and a gold column; knows no measure.
"""

import numpy as np
from numpy.typing import ArrayLike

from semcal.arrays import IntArray
from semcal.semantics.confidence import checked_counts, checked_index


def pooled(counts: ArrayLike, gold: ArrayLike) -> tuple[IntArray, IntArray]:
    """The M samples and the gold answer of each question as M + 1 exchangeable draws.

    Args:
        counts: `[n, K]` samples per class; every row sums to M.
        gold: `[n]` index of the gold class in its row, -1 where it is not one of the K.

    Returns:
        The pooled counts `[n, K + 1]`, every row summing to M + 1, and the gold column `[n]`. Column K is for gold
        answers of no other class.

    Raises:
        ValueError: counts are not counts of one M; a gold index outside its row.
    """
    counts, _ = checked_counts(counts)
    column = checked_index("gold", gold, counts)
    column = np.where(column < 0, counts.shape[1], column)
    pool = np.pad(counts, ((0, 0), (0, 1)))
    pool[np.arange(len(pool)), column] += 1
    return pool, column


def redrawn_gold(pool: IntArray, null_draws: int, rng: np.random.Generator) -> IntArray:
    """A random one of the M + 1 pooled draws of each question as its gold answer: columns `[null_draws, n]`."""
    n, columns = pool.shape
    labels = np.repeat(np.tile(np.arange(columns), n), pool.ravel()).reshape(n, -1)  # [n, M + 1], M + 1 in every row
    return labels[np.arange(n), rng.integers(labels.shape[1], size=(null_draws, n))]
