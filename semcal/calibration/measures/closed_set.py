"""A closed set of classes that all questions share, and where gold classes fall under the null, sampled or exact.

Knows no measure: `classwise.py` and `skce.py` take from it what was observed and what chance alone would give.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from semcal.arrays import FloatArray, IntArray
from semcal.calibration.nulls.exchange import pooled, redrawn_gold
from semcal.seeds import keyed_generator
from semcal.semantics.confidence import checked_index, checked_masses


@dataclass(frozen=True)
class ClosedSet:
    """Predictions and gold of n questions over K shared classes; column K is for a gold class outside them.

    Attributes:
        pool: `[n, K + 1]` the chance of each class of being the gold one, if the model is calibrated: exact masses,
            or, given M samples, their pool with the gold answer over M + 1 (see `nulls/exchange.py`).
        gold: `[n]` column of the gold class.
        m: samples per question; None where masses are exact.
    """

    pool: FloatArray
    gold: IntArray
    m: int | None

    @classmethod
    def of_counts(cls, counts: ArrayLike, gold: ArrayLike) -> ClosedSet:
        """From samples: counts `[n, K]`, every row summing to M, and gold `[n]`, a column or -1 for a class outside the
        K.

        Raises:
            ValueError: counts are not counts of one M; a gold index outside its row.
        """
        pool, column = pooled(counts, gold)
        draws = int(pool[0].sum())
        return cls(pool / draws, column, draws - 1)

    @classmethod
    def of_masses(cls, masses: ArrayLike, gold: ArrayLike) -> ClosedSet:
        """From exact masses `[n, K]`, rows summing to at most 1 (what is missing lies outside), and gold as in
        `of_counts`.

        Raises:
            ValueError: a mass below 0, a row above 1, a gold index outside its row.
        """
        array = checked_masses(masses)
        column = checked_index("gold", gold, array)
        outside = np.maximum(0.0, 1 - array.sum(axis=1, keepdims=True))
        return cls(np.hstack([array, outside]), np.where(column < 0, array.shape[1], column), None)

    @property
    def scale(self) -> float:
        """(M + 1) / M, or 1 of exact masses: onehot(gold) - probability = scale * (onehot(gold) - pool).

        So the residual of a question has mean 0 given its pool, at any M: only the choice of the gold answer from the
        pool is random.
        """
        return 1.0 if self.m is None else (self.m + 1) / self.m

    def probability(self, column: int, hit: FloatArray) -> FloatArray:
        """Predicted probability of a class `[..., n]`, given whether it is gold `[..., n]` (1 or 0) in each data set.

        Under the exchange, a class that takes the gold answer has one sample fewer.
        """
        return np.clip(self.scale * self.pool[:, column] - (self.scale - 1) * hit, 0.0, 1.0)  # up to rounding

    def redrawn(self, null_draws: int, *, seed: int) -> IntArray:
        """Gold columns `[null_draws, n]` of data sets in which the model is calibrated, given the pools.

        Raises:
            ValueError: fewer than one draw.
        """
        if null_draws < 1:
            raise ValueError(f"null_draws must be positive, got {null_draws}")
        rng = keyed_generator(seed, "closed set", "gold")
        if self.m is not None:
            return redrawn_gold(np.rint(self.pool * (self.m + 1)).astype(np.int64), null_draws, rng)
        uniform = rng.random((null_draws, len(self.pool)))
        edges = np.cumsum(self.pool[:, :-1], axis=1)
        return np.stack([np.searchsorted(e, u, side="right") for e, u in zip(edges, uniform.T, strict=True)], axis=1)
