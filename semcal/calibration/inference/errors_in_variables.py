"""A straight line through points that are uncertain in both directions, with errors that are known."""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.stats import t

from semcal.arrays import FloatArray

LEAST_ERROR = 1e-4  # of either variable, so that no point is taken for exact
ANGLES = 181  # first tried, from -90 to 90 degrees


@dataclass(frozen=True)
class Slope:
    """The slope of y on x.

    Attributes:
        estimate: units of y per unit of x.
        standard_error: by jackknife over clusters; NaN with fewer than three.
        clusters: number of them, of the labelling that has fewest.
    """

    estimate: float
    standard_error: float
    clusters: int

    @property
    def p_positive(self) -> float:
        """One-sided, of "the slope is at most 0"; NaN where there is no error."""
        return float(t.sf(self.estimate / self.standard_error, self.clusters - 1))

    def detectable(self, alpha: float, *, power: float = 0.8) -> float:
        """The smallest positive slope that would have been shown at `alpha` with this power; NaN without an error."""
        freedom = self.clusters - 1
        return float((t.ppf(1 - alpha, freedom) + t.ppf(power, freedom)) * self.standard_error)

    def interval(self, level: float) -> tuple[float, float]:
        """The slope ± the quantile of t times the standard error."""
        reach = float(t.ppf((1 + level) / 2, self.clusters - 1)) * self.standard_error
        return self.estimate - reach, self.estimate + reach


def slope(
    x: ArrayLike,
    y: ArrayLike,
    x_error: ArrayLike,
    y_error: ArrayLike,
    *,
    clusters: Sequence[Sequence[Hashable]] = (),
) -> Slope:
    """The line that fits best where both variables carry known errors (York 1966, eq. 11, uncorrelated errors).

    It minimises sum (y - a - b x)² / (y_error² + b² x_error²) over a and b. Least squares of y on x would draw the
    slope towards 0, by as much as x is uncertain. Points are weighed by their precision, so they may come from
    different n.

    What points have in common beside the line makes them say less than their number. Training seeds share a machine's
    luck, and a dataset in a style has an error and a gap of its own, which every seed repeats: with one labelling for
    each, variances add up as in two-way clustering (Cameron, Gelbach & Miller 2011), the jackknife being over the
    labels of each, and over single points for what is counted twice; the sum is never taken to be below its largest
    part.

    Args:
        x, y: `[k]` finite.
        x_error, y_error: `[k]` standard errors.
        clusters: labellings of the points, `[k]` each; those of one label are left out together. Without any, each by
            itself.

    Raises:
        ValueError: different lengths, fewer than three points, or values that are not finite.
    """
    arrays = [np.asarray(a, dtype=np.float64) for a in (x, y, x_error, y_error)]
    k = len(arrays[0])
    if k < 3 or any(a.shape != (k,) or not np.isfinite(a).all() for a in arrays):
        raise ValueError(f"expected four finite rows of one length, at least 3, got {[a.shape for a in arrays]}")
    labellings = [np.array([str(label) for label in labels]) for labels in clusters] or [np.arange(k)]
    variances = [_jackknife(arrays, of) for of in labellings]
    if len(labellings) > 1:
        variances.append(sum(variances) - (len(labellings) - 1) * _jackknife(arrays, np.arange(k)))
    fewest = min(len(np.unique(of)) for of in labellings)
    return Slope(line(*arrays), float(np.sqrt(np.max(variances))), fewest)


def _jackknife(arrays: Sequence[FloatArray], of: Any) -> float:
    """Variance of the slope, the points of each label of `of` `[k]` left out in turn; NaN with fewer than three."""
    labels = np.unique(of)
    if len(labels) < 3:
        return float("nan")
    without = [line(*(a[of != label] for a in arrays)) for label in labels]
    return float((len(labels) - 1) * np.var(without))


def line(x: FloatArray, y: FloatArray, x_error: FloatArray, y_error: FloatArray) -> float:
    """The slope that `slope` estimates, alone: of arrays `[k]`; NaN with fewer than two points."""
    if len(x) < 2:
        return float("nan")
    in_x, in_y = np.maximum(x_error, LEAST_ERROR) ** 2, np.maximum(y_error, LEAST_ERROR) ** 2

    def misfit(angle: FloatArray | float) -> FloatArray:
        """[...] of lines at angles [...]."""
        b = np.tan(angle)[..., None]
        weight = 1 / (in_y + b * b * in_x)
        left = y - b * x
        centre = (weight * left).sum(-1, keepdims=True) / weight.sum(-1, keepdims=True)
        return (weight * (left - centre) ** 2).sum(-1)

    angles = np.linspace(-np.pi / 2, np.pi / 2, ANGLES)[1:-1]
    # Of a line in units of the data, so that the grid of angles is as fine for small slopes as for large ones.
    scale = max(float(np.ptp(y)), 1e-12) / max(float(np.ptp(x)), 1e-12)
    angles = np.arctan(np.tan(angles) * scale)
    best = int(misfit(angles).argmin())
    low, high = angles[max(best - 1, 0)], angles[min(best + 1, len(angles) - 1)]
    return float(np.tan(minimize_scalar(misfit, bounds=(low, high), method="bounded", options={"xatol": 1e-10}).x))
