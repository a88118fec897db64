"""Fewer samples than were drawn: counts of a random part of each question's samples."""

from __future__ import annotations

import numpy as np

from semcal.arrays import IntArray


def thin(counts: IntArray, m: int, *, rng: np.random.Generator, repeats: int) -> IntArray:
    """Counts of m samples chosen from each question's without replacement: multivariate hypergeometric.

    Samples are exchangeable, so m of them chosen at random are distributed like m fresh draws from the model. But the
    repeats choose from the same samples: their mean has less noise than one of them, though never less than the
    samples have.

    Args:
        counts: `[n, K]` samples per class, whole and not negative; rows may have different totals.
        m: samples to keep, at least 1 and at most the smallest total.
        rng: source of the choice.
        repeats: independent choices.

    Returns:
        `[repeats, n, K]`, each row summing to m, no entry above `counts`.

    Raises:
        ValueError: m is below 1 or a question has fewer samples; no repeats.
    """
    later = counts.sum(axis=1)  # [n] samples of the classes still to come
    if repeats < 1 or not 1 <= m <= later.min():
        raise ValueError(f"cannot choose {m} of {later.min()} samples {repeats} times")
    chosen = np.zeros((repeats, *counts.shape), dtype=np.int64)
    # One class after another: how many of the samples still to choose fall in this class rather than in a later one.
    left = np.full((repeats, len(counts)), m)
    for k, here in enumerate(counts.T):
        later = later - here
        chosen[..., k] = rng.hypergeometric(here, later, left)
        left = left - chosen[..., k]
    return chosen
