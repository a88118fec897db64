"""SmoothECE: how far accuracy departs from confidence, smoothed and averaged over the confidence axis.

Source and conventions: see `smece`. Batched over a leading axis, so that a bootstrap or a simulated null is one call.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from semcal.arrays import FloatArray, checked_pairs
from semcal.calibration.measures.kernel import CELLS, Convention, smoothed, smoothing, to_spectrum

SMALLEST_BANDWIDTH = 0.001
BISECTION_STEPS = 10
BATCH_ELEMENTS = 2**21  # rows are processed in batches of about this many values, 16 MB per array


class SmoothECE(NamedTuple):
    """smECE of each row and the bandwidth at which it was read off, both `[R]`."""

    values: FloatArray
    bandwidths: FloatArray


@dataclass(frozen=True)
class ReliabilityCurve:
    """Accuracy as a smooth function of confidence, for diagrams.

    Attributes:
        grid: `[G]` confidences at which the curve is evaluated.
        accuracy: `[..., G]` estimate of E[correct | confidence]; NaN where no confidence is near.
        density: `[..., G]` density of the confidences; its integral over [0, 1] is 1.
        residual: `[..., G]` mean_i K(t, confidence_i) (confidence_i - correct_i): above 0 where the model is
            overconfident, below 0 where it is underconfident, 0 far from every confidence. Its integral over [0, 1] is
            the signed gap, and that of its absolute value is smECE at this bandwidth (convention "exact").
        bandwidth: standard deviation of the kernel, in units of confidence.
    """

    grid: FloatArray
    accuracy: FloatArray
    density: FloatArray
    residual: FloatArray
    bandwidth: float


def smece(confidence: ArrayLike, correct: ArrayLike, *, convention: Convention = "relplot") -> float:
    """Smooth expected calibration error, in [0, 1]; 0 for perfect calibration.

    >>> round(semcal.calibration.smece([0.9, 0.8, 0.4, 0.2], [1, 0, 1, 0]), 3)
    0.19

    With residual r = confidence - correct and K_sigma the Gaussian kernel of standard deviation sigma reflected at 0
    and 1,

        smECE_sigma = integral over t in [0, 1] of | mean_i  K_sigma(t, confidence_i) r_i |,

    taken at the bandwidth sigma* where smECE_sigma = sigma (smECE_sigma falls with sigma, so there is one). Source:
    Błasiok & Nakkiran 2023, "Smooth ECE", arXiv 2309.12236, definitions 1 to 3. Finite n and finite M put a positive
    floor under it: read it against `null_of`.

    Args:
        confidence: `[n]` in [0, 1].
        correct: `[n]` in [0, 1].
        convention: "relplot" (the default) agrees with the authors' package `relplot` to 1e-3, hence with published
            numbers. It differs from the definition above in three ways: confidences of exactly 0 and 1 carry half
            weight, the kernel ends at a distance of 1/2, and the integral is a plain mean over at least 200 points.
            "exact" is the definition. The first difference matters where a model is often unanimous: prefer "exact"
            there when no comparison with relplot's numbers is needed.

    Raises:
        ValueError: lengths differ, n is 0, or a value is NaN or outside [0, 1].
    """
    pairs = checked_pairs(confidence, correct)
    if pairs.confidence.ndim != 1:
        raise ValueError(f"smece expects one row [n], got shape {pairs.confidence.shape}; use smece_batch for many")
    return float(smece_batch(pairs.confidence[None], pairs.correct[None], convention=convention).values[0])


def smece_batch(
    confidence: ArrayLike, correct: ArrayLike, *, weight: ArrayLike | None = None, convention: Convention = "relplot"
) -> SmoothECE:
    """smECE of each row; the formula and the conventions are those of `smece`.

    Args:
        confidence: `[R, n]`, or `[n]` when every row shares it.
        correct: `[R, n]` or `[n]`.
        weight: `[R, n]` or `[n]` multiplicities of the questions, e.g. of a bootstrap resample; None for all one. An
            integer weight w equals w copies of the question.

    Returns:
        `(values [R], bandwidths [R])`.

    Raises:
        ValueError: as `smece`, and for weights that are negative or sum to zero.
    """
    pairs = checked_pairs(confidence, correct, weight)
    if pairs.confidence.ndim > 2:
        raise ValueError(f"smece_batch expects [R, n], got shape {pairs.confidence.shape}")
    alike = np.ndim(confidence) == 1  # as in a bootstrap, whose rows differ only in weight
    confidence, correct, weight = (np.atleast_2d(array) for array in pairs)
    rows, n = confidence.shape
    step = max(1, BATCH_ELEMENTS // max(n, CELLS + 1))
    parts = []
    for start in range(0, rows, step):
        batch = slice(start, start + step)
        position = confidence[:1] if alike else confidence[batch]
        parts.append(_fixed_point(position, correct[batch], weight[batch], convention))
    return SmoothECE(*(np.concatenate(column) for column in zip(*parts, strict=True)))


def _fixed_point(confidence: FloatArray, correct: FloatArray, weight: FloatArray, convention: Convention) -> SmoothECE:
    """Bisection for sigma = smECE_sigma, every row at once: `[R, n]`, the confidence also `[1, n]`."""
    residual = to_spectrum(confidence, weight * (confidence - correct), convention)  # [R, CELLS + 1]
    density = to_spectrum(confidence, weight, convention)

    def error_at(bandwidths: FloatArray) -> FloatArray:
        # Bisection visits few distinct bandwidths (multiples of 2^-10), so rows that share one are smoothed together.
        error = np.empty(len(bandwidths))
        for bandwidth in np.unique(bandwidths):
            at, kernel = np.flatnonzero(bandwidths == bandwidth), smoothing(bandwidth, convention)
            kept = len(kernel.factor)
            departure = np.abs(kernel.at_points(residual[at, :kept])) @ kernel.weight
            error[at] = departure / kernel.integral(density[at, :kept])
        return np.minimum(error, 1.0)  # it is at most 1; rounding in the transform can give 1 + 2e-16

    # The upper end of the bracket is the result, as in the reference: smECE_sigma <= sigma holds there.
    low, high = np.zeros(len(weight)), np.ones(len(weight))
    value = error_at(high)
    for _ in range(BISECTION_STEPS):
        middle = (low + high) / 2
        error = error_at(middle)
        too_narrow = (middle < SMALLEST_BANDWIDTH) | (middle < error)
        low = np.where(too_narrow, middle, low)
        high = np.where(too_narrow, high, middle)
        value = np.where(too_narrow, value, error)
    return SmoothECE(value, high)


def smooth_curve(
    confidence: ArrayLike,
    correct: ArrayLike,
    bandwidth: float | None = None,
    grid: ArrayLike | None = None,
    *,
    weight: ArrayLike | None = None,
) -> ReliabilityCurve:
    """Nadaraya-Watson estimate of accuracy given confidence, with the reflected Gaussian kernel of `smece`.

    accuracy(t) = sum_i K(t, confidence_i) correct_i / sum_i K(t, confidence_i), and the signed residual under the
    integral of smECE; the kernel is the exact one, since half weights at 0 and 1 would bend the curve there.

    Args:
        confidence: `[..., n]` in [0, 1].
        correct: `[..., n]` in [0, 1].
        bandwidth: standard deviation of the kernel; None takes the bandwidth of smECE, for one row only.
        grid: `[G]` points in [0, 1]; None for 201 points.
        weight: `[..., n]` multiplicities of the questions.

    Raises:
        ValueError: as `smece`; a bandwidth below 0.001; many rows without a bandwidth.
    """
    pairs = checked_pairs(confidence, correct, weight)
    leading, n = pairs.confidence.shape[:-1], pairs.confidence.shape[-1]
    confidence, correct, weights = (array.reshape(-1, n) for array in pairs)
    points = np.linspace(0, 1, 201) if grid is None else np.asarray(grid, dtype=np.float64)
    if points.ndim != 1 or points.size == 0 or not ((points >= 0) & (points <= 1)).all():
        raise ValueError(f"grid must be one row of points in [0, 1], got shape {points.shape}")
    if bandwidth is None:
        if leading:
            raise ValueError(f"give a bandwidth to smooth many rows, got shape {pairs.confidence.shape}")
        bandwidth = float(smece_batch(confidence, correct, weight=weights).bandwidths[0])
    if not SMALLEST_BANDWIDTH <= bandwidth < np.inf:  # one cell of the grid: anything narrower would only show the grid
        raise ValueError(f"bandwidth must be at least {SMALLEST_BANDWIDTH}, got {bandwidth}")

    share = weights / weights.sum(axis=-1, keepdims=True)
    density, mass, residual = (  # each [R, CELLS + 1]
        smoothed(to_spectrum(confidence, share * values, "exact"), bandwidth, "exact")
        for values in (np.ones_like(correct), correct, confidence - correct)
    )
    # Far from every confidence both are rounding noise of the transform, and so is their ratio.
    known = density > 1e-6
    accuracy = np.divide(mass, density, out=np.full_like(mass, np.nan), where=known).clip(0, 1)
    at = np.arange(CELLS + 1) / CELLS

    def on_grid(rows: FloatArray) -> FloatArray:
        return np.stack([np.interp(points, at, row) for row in rows]).reshape(*leading, len(points))

    return ReliabilityCurve(points, on_grid(accuracy), on_grid(density.clip(0)), on_grid(residual), bandwidth)
