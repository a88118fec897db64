"""The null at finite M without an estimate in it: the gold answer changes places with one of the samples.

Knows counts and a gold column; knows no measure.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike

from semcal.arrays import IntArray
from semcal.semantics.confidence import checked_counts, checked_index

CHUNK_ELEMENTS = 2**22  # counts held at once, 32 MB


def pooled(counts: ArrayLike, gold: ArrayLike) -> tuple[IntArray, IntArray]:
    """The M samples and the gold answer of each question as M + 1 draws that nobody told apart.

    Args:
        counts: `[n, K]` samples per class; every row sums to M.
        gold: `[n]` index of the gold class in its row, -1 where it is none of the K.

    Returns:
        The pooled counts `[n, K + 1]`, every row summing to M + 1, and the gold column `[n]`. Column K is for gold
        answers of no other column.

    Raises:
        ValueError: counts are not counts of one M; a gold index outside its row.
    """
    counts, _ = checked_counts(counts)
    column = checked_index("gold", gold, counts)
    column = np.where(column < 0, counts.shape[1], column)
    pool = np.pad(counts, ((0, 0), (0, 1)))
    pool[np.arange(len(pool)), column] += 1
    return pool, column


def redrawn_gold(pool: IntArray, draws: int, rng: np.random.Generator) -> IntArray:
    """One of the M + 1 pooled draws of each question at random as its gold answer: columns `[draws, n]`."""
    n, columns = pool.shape
    labels = np.repeat(np.tile(np.arange(columns), n), pool.ravel()).reshape(n, -1)  # [n, M + 1], M + 1 in every row
    return labels[np.arange(n), rng.integers(labels.shape[1], size=(draws, n))]


def exchanged(
    counts: ArrayLike, gold: ArrayLike, rng: np.random.Generator, draws: int, *, chunk: int = CHUNK_ELEMENTS
) -> Iterator[tuple[IntArray, IntArray]]:
    """Data sets in which another of the M + 1 draws of each question is the gold answer.

    If the gold answer is one more draw from the distribution of the samples, the M + 1 draws of a question are
    exchangeable: given their pooled counts, each was the gold one with the same chance. So any statistic of the data
    and of these data sets are exchangeable too, and (1 + #{null >= observed}) / (1 + draws) is a valid p-value at
    any n, M and K, with nothing estimated (a permutation test, e.g. Lehmann & Romano 2005, section 15.2). Questions are
    taken as independent. With M = 1 the two draws only change places, and nothing that treats them alike can tell.

    Args:
        counts: `[n, K]` samples per class; every row sums to M, and rows with fewer classes are padded by 0.
        gold: `[n]` index of the gold class in its row, whether it was sampled or not; -1 where it is none of the K.
        rng: source of the draws; they do not depend on `chunk`.
        draws: number of data sets.
        chunk: counts held in memory at once.

    Yields:
        Some of the draws at a time: counts `[step, n, K + 1]` with rows that sum to M, and gold columns `[step, n]`.
        Column K is for gold answers of no other column; under the null it may be a sample and not gold.

    Raises:
        ValueError: as `pooled`; fewer than one draw.
    """
    if draws < 1 or chunk < 1:
        raise ValueError(f"draws and chunk must be positive, got draws={draws}, chunk={chunk}")
    pool, _ = pooled(counts, gold)
    columns = redrawn_gold(pool, draws, rng)
    step = max(1, chunk // pool.size)
    for start in range(0, draws, step):
        its = columns[start : start + step]
        samples = np.repeat(pool[None], len(its), axis=0)  # [step, n, K + 1]
        np.put_along_axis(samples, its[..., None], np.take_along_axis(samples, its[..., None], axis=-1) - 1, axis=-1)
        yield samples, its
