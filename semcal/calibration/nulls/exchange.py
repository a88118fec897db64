"""The null at finite M without an estimate in it: the gold answer changes places with one of the samples.

If the gold answer is one more draw from the distribution of the samples, the M + 1 draws of a question are
exchangeable: given their pooled counts, each was the gold one with the same chance. So any statistic of the data and of
data sets in which another draw is gold are exchangeable too, and (1 + #{null >= observed}) / (1 + draws) is a valid
p-value at any n, M and K, with nothing estimated (a permutation test, e.g. Lehmann & Romano 2005, section 15.2).
Questions are independent unless `shared_uniforms` ties those of a group together. With M = 1 the two draws only
change places, and nothing that treats them alike can tell.

Knows counts and a gold column; knows no measure.
"""

import numpy as np
from numpy.typing import ArrayLike

from semcal.arrays import FloatArray, IntArray
from semcal.calibration.inference.bootstrap import Groups
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


def redrawn_gold(pool: IntArray, uniform: FloatArray) -> IntArray:
    """One of the M + 1 pooled draws of each question as its gold answer, by `uniform [null_draws, n]`: columns
    `[null_draws, n]`. Questions with the same variate and the same pool get the same gold answer."""
    n, columns = pool.shape
    labels = np.repeat(np.tile(np.arange(columns), n), pool.ravel()).reshape(n, -1)  # [n, M + 1], M + 1 in every row
    return labels[np.arange(n), (uniform * labels.shape[1]).astype(np.int64)]


def shared_uniforms(
    shape: tuple[int, int], clusters: Groups | None, shared: float, rng: np.random.Generator
) -> FloatArray:
    """Variates `[null_draws, n]`; a share `shared` of the groups draw one variate for all their questions.

    Raises:
        ValueError: fewer than one draw.
    """
    if shape[0] < 1:
        raise ValueError(f"null_draws must be positive, got {shape[0]}")
    own = rng.random(shape)
    if clusters is None or not shared:
        return own
    common, together = rng.random((2, shape[0], clusters.count))
    return np.where((together < shared)[:, clusters.index], common[:, clusters.index], own)
