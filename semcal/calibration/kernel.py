"""The reflected Gaussian kernel on [0, 1], applied to many weighted point sets at once on one grid.

Knows nothing of calibration. Values are put on the grid once; a symmetric kernel that is reflected at both ends is
diagonal under the type-I cosine transform, so that each further bandwidth costs one inverse transform.
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from scipy import fft

from semcal.calibration.checks import FloatArray, IntArray

Convention = Literal["relplot", "exact"]
"""How the smoothing integral is discretised; see `semcal.calibration.smece.smece`."""

CELLS = 1000
"""Grid cells on [0, 1]: the reference's own grid, and a multiple of the usual M, so that shares k/M lie on it."""


def to_spectrum(position: FloatArray, values: FloatArray, convention: Convention) -> FloatArray:
    """Point masses on the grid, cosine-transformed: the only step whose cost grows with n.

    Args:
        position: `[R, n]` in [0, 1].
        values: `[R, n]` the mass at each position, of any sign.
        convention: "exact" gives a mass at 0 or 1 its full weight. "relplot" gives the two outermost grid points half
            of it, as the reference implementation does: it mirrors the grid about its end points without repeating
            them, so that a mass elsewhere appears twice on the mirrored line and a mass on the mirror once.

    Returns:
        `[R, CELLS + 1]` type-I cosine coefficients.
    """
    rows = len(position)
    scaled = position * CELLS
    cell = np.minimum(scaled.astype(np.int64), CELLS - 1)
    upper = (scaled - cell) * values  # a mass is shared linearly by its two neighbours, which keeps its mean position
    slot = cell + np.arange(rows)[:, None] * (CELLS + 1)

    def total(where: IntArray, mass: FloatArray) -> FloatArray:
        return np.asarray(np.bincount(where.ravel(), mass.ravel(), rows * (CELLS + 1)), dtype=np.float64)

    grid = (total(slot, values - upper) + total(slot + 1, upper)).reshape(rows, CELLS + 1)
    if convention == "exact":
        grid[:, [0, -1]] *= 2
    return np.asarray(fft.dct(grid, type=1))


def smoothed(spectrum: FloatArray, bandwidth: float, convention: Convention) -> FloatArray:
    """The density of the smoothed masses at the grid points, `[R, CELLS + 1]`; its integral is their total mass.

    "exact" multiplies by the Gaussian's own transform exp(-(pi k sigma)^2 / 2). "relplot" cuts the kernel off at a
    distance of 1/2, as the reference implementation does; the two differ once sigma is above about 0.15.
    """
    if convention == "exact":
        transfer = np.exp(-0.5 * (np.pi * bandwidth * np.arange(CELLS + 1)) ** 2)
    else:
        distance = np.arange(CELLS + 1) / CELLS
        kernel = np.where(distance <= 0.5, np.exp(-0.5 * (distance / bandwidth) ** 2), 0.0)
        transfer = np.asarray(fft.dct(kernel, type=1))
        transfer = transfer / transfer[0]
    return np.asarray(fft.idct(spectrum * transfer, type=1)) * CELLS
