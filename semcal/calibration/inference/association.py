"""Do two figures of the cells of a grid go together? Rank correlation, with permutations that keep the grid's ties.

Knows arrays over a grid such as model × dataset × style; does not know what they mean.
"""

import itertools
from collections.abc import Iterator
from dataclasses import dataclass
from math import factorial, prod

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm, rankdata

from semcal.arrays import FloatArray
from semcal.seeds import keyed_generator

MOST = 20_000  # arrangements that are all tried; if there are more, so many random ones


@dataclass(frozen=True)
class Association:
    """A rank correlation over the cells of a grid.

    Attributes:
        rho: Spearman's, or the partial one.
        low, high: rho ± normal quantiles of its spread under permutation, on Fisher's scale; approximate.
        p_negative: one-sided, of "not negatively related": the share of arrangements with a rho as low.
        p_positive: of "not positively related".
        detectable: the smallest |rho| found with power 0.8 one-sided at level alpha, by the same approximation.
        arrangements: number of arrangements of the grid tried, including the observed one; the smallest p is 1 in so
            many.
    """

    rho: float
    low: float
    high: float
    p_negative: float
    p_positive: float
    detectable: float
    arrangements: int


def grid_association(
    x: ArrayLike,
    y: ArrayLike,
    covariates: ArrayLike | None = None,
    *,
    level: float = 0.95,
    seed: int,
) -> Association:
    """Spearman's rho of x and y over a grid, or their partial rank correlation given covariates.

    Cells of one model, dataset or style resemble each other, so a permutation shuffles whole slices of y along each
    axis separately (as the Mantel and QAP tests do for matrices); an effect of a model, dataset or style stays in both
    arrays and does not count as many observations.

    The partial correlation is that between the residuals of ranks on the ranks of the covariates; the residuals of y
    are permuted and regressed on the covariates again (Freedman & Lane 1983).

    Args:
        x, y: `[a, b, ...]`, finite.
        covariates: `[c, a, b, ...]`.
        level: of the interval; alpha of `detectable` is 1 - level.
        seed: of the arrangements, where there are more than MOST.

    Raises:
        ValueError: different shapes, or values that are not finite.
    """
    one, two = np.asarray(x, dtype=np.float64), np.asarray(y, dtype=np.float64)
    given = np.empty((0, *one.shape)) if covariates is None else np.asarray(covariates, dtype=np.float64)
    if one.shape != two.shape or given.shape[1:] != one.shape:
        raise ValueError(
            f"x, y and covariates are of shapes {one.shape}, {two.shape}, {given.shape}; expected one grid"
        )
    if not all(np.isfinite(a).all() for a in (one, two, given)):
        raise ValueError("x, y or covariates are not finite; leave out such cells with their models")
    columns = np.stack([np.ones(one.size), *(rankdata(c) for c in given)], axis=1)  # [cell, 1 + c]
    q, _ = np.linalg.qr(columns)

    def freed(values: FloatArray) -> FloatArray:
        return values - (values @ q) @ q.T

    a, b = freed(rankdata(one)), freed(rankdata(two))
    if a @ a < 1e-9 or b @ b < 1e-9:  # all equal, or determined by the covariates
        return Association(*(float("nan"),) * 6, arrangements=0)
    cells = np.arange(one.size).reshape(one.shape)
    order = np.stack([cells[np.ix_(*axes)].ravel() for axes in _arrangements(one.shape, seed)])  # [arrangement, cell]
    moved = freed(b[order])
    rho = moved @ a / np.sqrt((a @ a) * np.maximum((moved**2).sum(axis=1), 1e-12))
    spread = float(np.arctanh(np.clip(rho, -0.999, 0.999)).std())
    observed = float(np.clip(rho[0], -1, 1))
    middle = np.arctanh(np.clip(observed, -0.999, 0.999))
    reach = float(norm.ppf((1 + level) / 2)) * spread
    return Association(
        rho=observed,
        low=float(np.tanh(middle - reach)),
        high=float(np.tanh(middle + reach)),
        p_negative=float((rho <= observed + 1e-9).mean()),
        p_positive=float((rho >= observed - 1e-9).mean()),
        detectable=float(np.tanh((norm.ppf(level) + norm.ppf(0.8)) * spread)),
        arrangements=len(rho),
    )


def _arrangements(shape: tuple[int, ...], seed: int) -> Iterator[tuple[np.ndarray, ...]]:
    """A permutation of each axis; the first leaves all as it is."""
    if prod(map(factorial, shape)) <= MOST:
        for axes in itertools.product(*(itertools.permutations(range(size)) for size in shape)):
            yield tuple(np.array(axis) for axis in axes)
        return
    yield tuple(np.arange(size) for size in shape)
    rng = keyed_generator(seed, "association")
    for _ in range(MOST):
        yield tuple(rng.permutation(size) for size in shape)
