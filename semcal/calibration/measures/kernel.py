"""The reflected Gaussian kernel on [0, 1], applied to many weighted point sets at once on one grid.

Knows nothing of calibration. Values are put on the grid once; a symmetric kernel that is reflected at both ends is
diagonal under the type-I cosine transform, so that each further bandwidth costs one inverse transform at most.
"""

from functools import cache, lru_cache
from typing import Literal, NamedTuple

import numpy as np
from scipy import fft, sparse

from semcal.arrays import FloatArray, IntArray

Convention = Literal["relplot", "exact"]
"""How the smoothing integral is discretised; see `semcal.calibration.measures.smece.smece`."""

CELLS = 1000
"""Grid cells on [0, 1]: the reference's own grid, and a multiple of the usual M, so that shares k/M lie on it."""


def to_spectrum(position: FloatArray, values: FloatArray, convention: Convention) -> FloatArray:
    """Point masses on the grid, cosine-transformed: the only step whose cost grows with n.

    Args:
        position: `[R, n]` in [0, 1], or `[1, n]` where every row has the same.
        values: `[R, n]` the mass at each position, of any sign.
        convention: "exact" gives a mass at 0 or 1 full weight. "relplot" gives the two outermost grid points half
            of it, as the reference implementation does: it mirrors the grid about its end points without repeating
            them, so that a mass elsewhere appears twice on the mirrored line and a mass on the mirror once.

    Returns:
        `[R, CELLS + 1]` type-I cosine coefficients.
    """
    scaled = position * CELLS
    cell = np.minimum(scaled.astype(np.int64), CELLS - 1)
    upper = scaled - cell  # a mass is shared linearly by its two neighbours, which keeps its mean position
    grid = _placed(cell, upper, values) if len(position) == len(values) else _placed_alike(cell[0], upper[0], values)
    if convention == "exact":
        grid[:, [0, -1]] *= 2
    return np.asarray(fft.dct(grid, type=1, overwrite_x=True))


def _placed(cell: IntArray, upper: FloatArray, values: FloatArray) -> FloatArray:
    """Masses `[R, n]` summed at grid points `[R, CELLS + 1]`."""
    rows, places = len(values), len(values) * (CELLS + 1)
    slot = (cell + np.arange(rows)[:, None] * (CELLS + 1)).ravel()
    above = (upper * values).ravel()
    grid = np.bincount(slot, values.ravel() - above, places) + np.bincount(slot + 1, above, places)
    return np.asarray(grid, dtype=np.float64).reshape(rows, CELLS + 1)


def _placed_alike(cell: IntArray, upper: FloatArray, values: FloatArray) -> FloatArray:
    """The same if all rows share `cell [n]` and `upper [n]`: one sparse product, five times as fast."""
    question = np.arange(len(cell))
    entries = np.concatenate([1 - upper, upper]), (np.tile(question, 2), np.concatenate([cell, cell + 1]))
    return np.asarray(values @ sparse.csr_array(entries, shape=(len(cell), CELLS + 1)), dtype=np.float64)


def smoothed(spectrum: FloatArray, bandwidth: float, convention: Convention) -> FloatArray:
    """The density of the smoothed masses at the grid points, `[R, CELLS + 1]`; its integral is their total mass."""
    return np.asarray(fft.idct(spectrum * transfer(bandwidth, convention), type=1, overwrite_x=True))


def transfer(bandwidth: float, convention: Convention) -> FloatArray:
    """What smoothing multiplies each cosine coefficient by, `[CELLS + 1]`; times CELLS, because it turns mass into
    density.

    "exact" multiplies by the Gaussian's own transform exp(-(pi k sigma)^2 / 2). "relplot" cuts the kernel off at a
    distance of 1/2, as the reference implementation does; the two differ once sigma is above about 0.15.
    """
    if convention == "exact":
        return CELLS * np.exp(-0.5 * (np.pi * bandwidth * np.arange(CELLS + 1)) ** 2)
    distance = np.arange(CELLS + 1) / CELLS
    kernel = np.where(distance <= 0.5, np.exp(-0.5 * (distance / bandwidth) ** 2), 0.0)
    found = np.asarray(fft.dct(kernel, type=1))
    return found * (CELLS / found[0])


class Smoothing(NamedTuple):
    """The kernel of one bandwidth, and the points at which what it smooths is integrated.

    Attributes:
        factor: `[kept]` of the cosine coefficients; those beyond `kept` are smoothed away.
        cell: `[points]` the grid point below each point of integration.
        upper: `[points]` share of the grid point above it, in [0, 1].
        weight: `[points]` of each point in the integral, up to a common factor.
        integrand: `[kept]` what each cosine coefficient adds to the integral.
    """

    factor: FloatArray
    cell: IntArray
    upper: FloatArray
    weight: FloatArray
    integrand: FloatArray

    def at_points(self, spectrum: FloatArray) -> FloatArray:
        """The smoothed density, `[R, points]`, of `[R, kept]`."""
        if len(self.factor) > 4 * len(spectrum):  # few rows: one transform each; many: one product with smoothed waves
            return self._between(np.asarray(fft.idct(spectrum * self.factor, type=1, n=CELLS + 1)))
        return spectrum @ self._between(_waves()[: len(self.factor)] * self.factor[:, None])

    def integral(self, spectrum: FloatArray) -> FloatArray:
        """`at_points(spectrum) @ weight`, `[R]`, without the transform."""
        return spectrum @ self.integrand

    def _between(self, grid: FloatArray) -> FloatArray:
        """Linear interpolation of `[..., CELLS + 1]` at the points."""
        if len(self.cell) == CELLS + 1:
            return grid
        return grid[:, self.cell] * (1 - self.upper) + grid[:, self.cell + 1] * self.upper


@lru_cache(maxsize=512)  # bisection revisits the same multiples of a power of two
def smoothing(bandwidth: float, convention: Convention) -> Smoothing:
    """The points are the grid under the trapezoid rule; for "relplot" its 200 or 10/sigma points and the plain mean."""
    factor = transfer(bandwidth, convention)
    kept = 1 + int(np.flatnonzero(np.abs(factor) > 1e-14 * CELLS)[-1])
    points = CELLS + 1 if convention == "exact" else int(np.clip(round(10 / bandwidth), 200, CELLS + 1))
    at = np.linspace(0, CELLS, points)
    cell = np.minimum(at.astype(np.int64), CELLS - 1)
    upper, weight = at - cell, np.ones(points)
    if convention == "exact":
        weight[[0, -1]] = 0.5
    return Smoothing(factor[:kept], cell, upper, weight, _integrals(cell, upper, weight)[:kept] * factor[:kept])


def _integrals(cell: IntArray, upper: FloatArray, weight: FloatArray) -> FloatArray:
    """`[CELLS + 1]` the weighted sum over points of each cosine wave: the integral is linear in the spectrum."""
    on_grid = np.bincount(cell, weight * (1 - upper), CELLS + 1)
    on_grid += np.bincount(cell + 1, weight * upper, CELLS + 1)
    on_grid[[0, -1]] *= 2  # type I counts its first and last entry once and all others twice
    each = np.asarray(fft.dct(on_grid, type=1)) / (2 * CELLS)
    each[[0, -1]] /= 2
    return each


@cache
def _waves() -> FloatArray:
    """`[CELLS + 1, CELLS + 1]` the wave of each cosine coefficient on the grid."""
    return np.asarray(fft.idct(np.eye(CELLS + 1), type=1))
