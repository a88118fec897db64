"""Measures over bins of confidence: ECE, its debiased form, the largest gap, Murphy's decomposition of the Brier score.

They depend on the bins and serve comparison with older work; prefer `smece`. Inputs and errors as in `scores.py`.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike

from semcal.arrays import FloatArray, checked_pairs

Scheme = Literal["width", "mass"]


def ece_edges(bins: int = 15, m: int | None = None) -> FloatArray:
    """Inner edges of `bins` equal-width bins on [0, 1], `[bins - 1]` or fewer, kept off the grid of shares k/m.

    A confidence that is a share of m samples is a multiple of 1/m, and an edge that is one too (up to rounding) sends a
    whole atom of questions to one side by a convention on open and closed ends. Given m, each edge
    moves, by at most 1/(2m), to the nearest midpoint (i + 1/2)/m between two shares. (Shifting all edges by the same
    1/(2m) would not do: 4 bins at m = 50 would then have an edge at 13/50.) With more bins than shares, edges
    coincide and are merged.
    """
    if bins < 1 or (m is not None and m < 1):
        raise ValueError(f"bins and m must be positive, got bins={bins}, m={m}")
    edge = np.arange(1, bins)
    return edge / bins if m is None else np.unique((edge * m // bins + 0.5) / m)


@dataclass(frozen=True)
class Bins:
    """Sums over the questions of each bin, `[..., bin]`; empty bins have weight 0.

    Attributes:
        weight: number of questions, weights counted.
        confidence: sum of confidences.
        correct: sum of correctness.
    """

    weight: FloatArray
    confidence: FloatArray
    correct: FloatArray

    @property
    def gap(self) -> FloatArray:
        """Mean confidence minus mean accuracy of each bin, 0 where it is empty."""
        return (self.confidence - self.correct) / np.where(self.weight > 0, self.weight, 1.0)


def binned(
    confidence: ArrayLike,
    correct: ArrayLike,
    bins: int = 15,
    *,
    scheme: Scheme = "width",
    m: int | None = None,
    weight: ArrayLike | None = None,
) -> Bins:
    """Questions sorted into bins of equal width, or of as equal numbers as ties allow.

    Args:
        confidence: `[..., n]` in [0, 1].
        correct: `[..., n]` in [0, 1].
        bins: number of bins.
        scheme: "width", edges as in `ece_edges`; or "mass": edges at quantiles, equal confidences never separated.
        m: samples per question when confidences are shares of m samples (of "width").
        weight: `[..., n]` multiplicities of the questions.

    Raises:
        ValueError: inputs as in `scores.py`; fewer than one bin; an unknown scheme.
    """
    pairs = checked_pairs(confidence, correct, weight)
    leading, n = pairs.confidence.shape[:-1], pairs.confidence.shape[-1]
    confidence, correct, weights = (array.reshape(-1, n) for array in pairs)
    if scheme == "width":
        edges = ece_edges(bins, m)
        # side="left" closes bins on the right, as Guo et al. do; it matters only without m.
        slot, width = np.searchsorted(edges, confidence, side="left"), len(edges) + 1
    elif scheme == "mass":
        if bins < 1:
            raise ValueError(f"bins must be positive, got {bins}")
        slot, width = np.stack([_by_mass(c, w, bins) for c, w in zip(confidence, weights, strict=True)]), bins
    else:
        raise ValueError(f"scheme is {scheme!r}; expected 'width' or 'mass'")
    flat = (slot + np.arange(len(confidence))[:, None] * width).ravel()
    total, sure, right = (
        np.bincount(flat, values.ravel(), minlength=len(confidence) * width).astype(float).reshape(*leading, width)
        for values in (weights, weights * confidence, weights * correct)
    )
    return Bins(total, sure, right)


def _by_mass(confidence: FloatArray, weight: FloatArray, bins: int) -> np.ndarray:
    """Bin of each question of one row: where the middle of its level falls in the ranking."""
    levels, level = np.unique(confidence, return_inverse=True)
    mass = np.bincount(level, weight, minlength=len(levels))
    middle = (np.cumsum(mass) - mass / 2) / mass.sum()
    return np.minimum((middle * bins).astype(np.int64), bins - 1)[level]


def ece(
    confidence: ArrayLike,
    correct: ArrayLike,
    bins: int = 15,
    *,
    scheme: Scheme = "width",
    m: int | None = None,
    weight: ArrayLike | None = None,
) -> FloatArray:
    """Expected calibration error, `[...]` in [0, 1].

    ECE = sum over bins b of (n_b / n) |mean confidence in b - mean accuracy in b| (Naeini et al. 2015; Guo et al. 2017,
    arXiv 1706.04599). It jumps when confidences cross edges, and it is above 0 for a calibrated model. Arguments as
    `binned`.
    """
    found = binned(confidence, correct, bins, scheme=scheme, m=m, weight=weight)
    return (np.abs(found.gap) * found.weight).sum(axis=-1) / found.weight.sum(axis=-1)


def debiased_ece(
    confidence: ArrayLike, correct: ArrayLike, bins: int = 15, *, weight: ArrayLike | None = None
) -> FloatArray:
    """Root mean square gap over bins of equal mass, minus what chance explains, `[...]` in [0, 1].

    sqrt(max(0, sum over bins b of (n_b / n) [gap_b^2 - acc_b (1 - acc_b) / (n_b - 1)])) (Kumar et al. 2019,
    arXiv 1909.10155, the debiased estimator of the squared error). Bins of one question are left out. It estimates
    the l2 error, which is at least `ece` in the long run. NaN where no bin has two questions. Arguments as `binned`.
    """
    found = binned(confidence, correct, bins, scheme="mass", weight=weight)
    usable = found.weight > 1
    share = np.where(usable, found.weight, 0.0)
    accuracy = found.correct / np.where(found.weight > 0, found.weight, 1.0)
    chance = accuracy * (1 - accuracy) / np.where(usable, found.weight - 1, 1.0)
    total = share.sum(axis=-1)
    square = (share * (found.gap**2 - chance)).sum(axis=-1) / np.where(total > 0, total, np.nan)
    return np.sqrt(np.maximum(square, 0.0))


def mce(
    confidence: ArrayLike,
    correct: ArrayLike,
    bins: int = 15,
    *,
    scheme: Scheme = "width",
    m: int | None = None,
    weight: ArrayLike | None = None,
) -> FloatArray:
    """Largest gap of any bin that holds a question, `[...]` in [0, 1] (Naeini et al. 2015). Arguments as `binned`."""
    return np.abs(binned(confidence, correct, bins, scheme=scheme, m=m, weight=weight).gap).max(axis=-1)


@dataclass(frozen=True)
class BrierParts:
    """Brier score = reliability - resolution + uncertainty (Murphy 1973); each `[...]`.

    Attributes:
        reliability: mean squared distance of confidence and accuracy, over levels of confidence; 0 is calibrated.
        resolution: variance of accuracy between levels; the larger, the more informative confidence is.
        uncertainty: total variance of correctness.
    """

    reliability: FloatArray
    resolution: FloatArray
    uncertainty: FloatArray


def brier_parts(confidence: ArrayLike, correct: ArrayLike, *, weight: ArrayLike | None = None) -> BrierParts:
    """Murphy's decomposition over the distinct values of confidence, which is exact.

    Shares k/M have at most M + 1 values. Where confidences hardly repeat, every question is its own level, and
    reliability and resolution are meaningless.
    """
    pairs = checked_pairs(confidence, correct, weight)
    leading, n = pairs.confidence.shape[:-1], pairs.confidence.shape[-1]
    rows = (array.reshape(-1, n) for array in pairs)
    parts = np.array([_murphy(c, r, w) for c, r, w in zip(*rows, strict=True)])
    return BrierParts(*(parts[:, i].reshape(leading) for i in range(3)))


def _murphy(confidence: FloatArray, correct: FloatArray, weight: FloatArray) -> tuple[float, float, float]:
    levels, level = np.unique(confidence, return_inverse=True)
    mass = np.bincount(level, weight, minlength=len(levels))
    accuracy = np.bincount(level, weight * correct, minlength=len(levels)) / np.where(mass > 0, mass, 1.0)
    share, mean = mass / mass.sum(), (weight * correct).sum() / weight.sum()
    return float(share @ (levels - accuracy) ** 2), float(share @ (accuracy - mean) ** 2), float(mean * (1 - mean))
