"""What calibration measures accept: pairs of (confidence, correctness) in [0, 1], with optional weights.

The checks are in one place, so that every measure rejects the same inputs with the same messages.
"""

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]

# Shares such as 1/3 + 1/3 + 1/3 overshoot 1 in the last bits; that much is rounding and is clipped.
ROUNDING = 1e-9


class Pairs(NamedTuple):
    """Checked inputs of a measure, each `[..., n]` and broadcast against one another (read-only views)."""

    confidence: FloatArray
    correct: FloatArray
    weight: FloatArray


def as_numbers(name: str, values: ArrayLike) -> FloatArray:
    """`values` as float64, None being NaN; ValueError where they are texts or rows of unequal length."""
    try:
        return np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError) as error:
        raise ValueError(f"{name} is not an array of numbers: {error}") from None


def as_integers(name: str, values: ArrayLike, lowest: int, reason: str) -> IntArray:
    """`values` as int64; ValueError with the first value that is not whole or below `lowest`, followed by the
    `reason`."""
    array = as_numbers(name, values)
    refused = ~((array >= lowest) & (array < 2**53) & (array == np.floor(array)))  # NaN is refused as well
    if refused.any():
        where = tuple(int(i) for i in np.argwhere(refused)[0])
        raise ValueError(f"{name}{list(where)} is {array[where]:g}, which is {reason}")
    return array.astype(np.int64)


def in_unit_interval(name: str, values: ArrayLike) -> FloatArray:
    """`values` as float64 `[..., n]`, not empty; raises ValueError with the first value that is not in [0, 1]."""
    array = as_numbers(name, values)
    if array.ndim == 0 or array.size == 0:
        raise ValueError(f"{name} needs at least one question on its last axis, got shape {array.shape}")
    outside = ~((array >= -ROUNDING) & (array <= 1 + ROUNDING))  # written so that NaN counts as outside
    if outside.any():
        where = tuple(int(i) for i in np.argwhere(outside)[0])
        raise ValueError(f"{name}{list(where)} is {array[where]}, which is not in [0, 1]")
    return np.clip(array, 0.0, 1.0)


def checked_weight(weight: ArrayLike | None, n: int) -> FloatArray:
    """Weights `[..., n]` (all one when None); raises ValueError when negative, not finite or summing to zero."""
    if weight is None:
        return np.ones(n)
    array = as_numbers("weight", weight)
    if array.ndim == 0 or array.size == 0 or array.shape[-1] != n:
        raise ValueError(f"weight has shape {array.shape}, which does not end in the number of questions {n}")
    refused = ~((array >= 0) & np.isfinite(array))
    if refused.any():
        raise ValueError(f"weight must be finite and not negative, got {array[refused][0]}")
    if not (array.sum(axis=-1) > 0).all():
        raise ValueError("weight sums to zero, so there is no question left to measure")
    return array


def checked_pairs(confidence: ArrayLike, correct: ArrayLike, weight: ArrayLike | None = None) -> Pairs:
    """The inputs of a measure, checked and broadcast over their leading axes.

    Args:
        confidence: `[..., n]` shares in [0, 1].
        correct: `[..., n]` in [0, 1]; a fraction is the expected correctness under a random tie-break.
        weight: `[..., n]` not negative, e.g. how often a bootstrap resample holds each question.

    Raises:
        ValueError: lengths differ (both shapes are named), n is 0, or a value is NaN or out of range (it is named).
    """
    confidence, correct = as_numbers("confidence", confidence), as_numbers("correct", correct)
    if confidence.shape[-1:] != correct.shape[-1:]:
        raise ValueError(f"confidence has shape {confidence.shape} but correct has shape {correct.shape}")
    confidence, correct = in_unit_interval("confidence", confidence), in_unit_interval("correct", correct)
    weights = checked_weight(weight, confidence.shape[-1])
    try:
        return Pairs(*np.broadcast_arrays(confidence, correct, weights))
    except ValueError:
        shapes = f"confidence {confidence.shape}, correct {correct.shape}, weight {weights.shape}"
        raise ValueError(f"leading axes do not broadcast: {shapes}") from None
