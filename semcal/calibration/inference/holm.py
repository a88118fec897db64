"""Many tests at once: p-values adjusted so that the chance of any false rejection is controlled."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from semcal.arrays import FloatArray


def holm(p_values: ArrayLike) -> FloatArray:
    """Holm's adjusted p-values (Holm 1979): reject those at most alpha, and the chance of any false rejection is alpha.

    Sorted upwards, the i-th of k is multiplied by k - i + 1, made at least as large as those before it and at most 1.

    Args:
        p_values: `[k]`; NaN marks a test that was not made: it is not counted and stays NaN.

    Raises:
        ValueError: a p-value outside [0, 1].
    """
    p = np.asarray(p_values, dtype=np.float64)
    if p.ndim != 1 or (p < 0).any() or (p > 1).any():
        raise ValueError(f"holm expects one row of p-values in [0, 1], got {p}")
    order = np.argsort(p)[: int(np.isfinite(p).sum())]  # NaN are sorted to the end
    adjusted = np.full(len(p), np.nan)
    steps = np.arange(len(order), 0, -1)
    adjusted[order] = np.minimum(np.maximum.accumulate(p[order] * steps), 1.0)
    return adjusted
