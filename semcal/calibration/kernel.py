"""The reflected Gaussian kernel on [0, 1], applied to many weighted point sets at once on one grid.

Knows nothing of calibration. Values are put on the grid once; a symmetric kernel that is reflected at both ends is
diagonal under the type-I cosine transform, so that each further bandwidth costs one inverse transform.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import fft, sparse

from semcal.calibration.checks import FloatArray, IntArray

Convention = Literal["relplot", "exact"]
"""How the smoothing integral is discretised; see `semcal.calibration.smece.smece`."""

CELLS = 1000
"""Grid cells on [0, 1]: the reference's own grid, and a multiple of the usual M, so that shares k/M lie on it."""


def to_spectrum(position: FloatArray, values: FloatArray, convention: Convention) -> FloatArray:
    """Point masses on the grid, cosine-transformed: the only step whose cost grows with n.

    Args:
        position: `[R, n]` in [0, 1], or `[1, n]` where every row has the same.
        values: `[R, n]` the mass at each position, of any sign.
        convention: "exact" gives a mass at 0 or 1 its full weight. "relplot" gives the two outermost grid points half
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
    return grid.reshape(rows, CELLS + 1)


def _placed_alike(cell: IntArray, upper: FloatArray, values: FloatArray) -> FloatArray:
    """The same where all rows share `cell [n]` and `upper [n]`: one sparse product, five times as fast."""
    question = np.arange(len(cell))
    entries = np.concatenate([1 - upper, upper]), (np.tile(question, 2), np.concatenate([cell, cell + 1]))
    return values @ sparse.csr_array(entries, shape=(len(cell), CELLS + 1))


def smoothed(spectrum: FloatArray, bandwidth: float, convention: Convention) -> FloatArray:
    """The density of the smoothed masses at the grid points, `[R, CELLS + 1]`; its integral is their total mass."""
    return np.asarray(fft.idct(spectrum * transfer(bandwidth, convention), type=1, overwrite_x=True))


def smoothed_sum(
    spectrum: FloatArray, bandwidth: float, convention: Convention, grid_weight: FloatArray
) -> FloatArray:
    """`smoothed(spectrum, ...) @ grid_weight`, `[R]`, without the transform of every row.

    The sum is linear in the spectrum, so one transform, of the `grid_weight [CELLS + 1]`, serves all rows.
    """
    ends_twice = grid_weight.copy()
    ends_twice[[0, -1]] *= 2  # type I takes its first and last entry once and all others twice, on either side
    each = np.asarray(fft.dct(ends_twice, type=1)) / (2 * CELLS)
    each[[0, -1]] /= 2
    return spectrum @ (each * transfer(bandwidth, convention))


def transfer(bandwidth: float, convention: Convention) -> FloatArray:
    """What smoothing multiplies each cosine coefficient by, `[CELLS + 1]`; times CELLS, for it makes a density of mass.

    "exact" multiplies by the Gaussian's own transform exp(-(pi k sigma)^2 / 2). "relplot" cuts the kernel off at a
    distance of 1/2, as the reference implementation does; the two differ once sigma is above about 0.15.
    """
    if convention == "exact":
        return CELLS * np.exp(-0.5 * (np.pi * bandwidth * np.arange(CELLS + 1)) ** 2)
    distance = np.arange(CELLS + 1) / CELLS
    kernel = np.where(distance <= 0.5, np.exp(-0.5 * (distance / bandwidth) ** 2), 0.0)
    found = np.asarray(fft.dct(kernel, type=1))
    return found * (CELLS / found[0])
