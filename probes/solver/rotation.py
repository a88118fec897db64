"""Training rows on their principal axes, exactly: fewer dimensions, and a Hessian that is nearly diagonal.

A leading axis B runs over independent problems (layers). Knows arrays only. Rows are what fills the memory, so they are
centred, standardised and brought to double precision a part at a time, and never copied whole but for the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_TOGETHER = 256  # rows, or features, in double precision at a time


@dataclass(frozen=True)
class Standard:
    """How features are centred and scaled, learnt from training rows."""

    mean: Tensor
    """[B, d], float64, of the training rows."""

    scale: Tensor
    """[B, d], float64, their standard deviation, infinite for constant features; 1 if not standardised."""

    @classmethod
    def of(cls, X: Tensor, *, standardise: bool) -> Standard:
        """From rows [B, n, d]. Features whose deviation is below 1e-6 of their root mean square are constant up to
        rounding; they are set to 0 rather than blown up to unit variance."""
        centre = cls(X.mean(1, dtype=torch.float64), torch.ones_like(X[:, 0], dtype=torch.float64))
        if not standardise:
            return centre
        variance = torch.zeros_like(centre.mean)
        for _, part in centre.by_rows(X):
            variance += part.square_().sum(1)
        deviation = (variance / X.shape[1]).sqrt()
        constant = deviation <= 1e-6 * torch.hypot(deviation, centre.mean)
        return cls(centre.mean, deviation.masked_fill(constant, torch.inf))

    def by_rows(self, X: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Standardised rows [B, some of n, d], float64."""
        for first in range(0, X.shape[1], _TOGETHER):
            some = slice(first, first + _TOGETHER)
            part = X[:, some].to(torch.float64, copy=True)
            yield some, part.sub_(self.mean[:, None]).div_(self.scale[:, None])

    def by_features(self, X: Tensor) -> Iterator[tuple[slice, Tensor]]:
        """Standardised features [B, n, some of d], float64."""
        for first in range(0, X.shape[2], _TOGETHER):
            some = slice(first, first + _TOGETHER)
            part = X[:, :, some].to(torch.float64, copy=True)
            yield some, part.sub_(self.mean[:, None, some]).div_(self.scale[:, None, some])


@dataclass(frozen=True)
class Rotation:
    """Training rows on their principal axes: `(X − mean) / scale = scores @ basisᵀ`."""

    scores: Tensor
    """[B, n, r], columns centred and mutually orthogonal, r = min(n, d)."""

    spectrum: Tensor
    """[B, r], squared norms of the columns of `scores`."""

    axes: Tensor
    """[B, d, r] orthonormal columns; or, where `rows` is given, [B, n, r] with `basis = standardised rowsᵀ @ axes`."""

    rows: Tensor | None
    """[B, n, d], the rows as given, if d > n: there the basis stays implicit, being costlier than its uses."""

    standard: Standard

    @property
    def basis(self) -> Tensor:
        """[B, d, r], float64, orthonormal columns (zero where the spectrum is)."""
        if self.rows is None:
            return self.axes
        return torch.cat([part.mT @ self.axes for _, part in self.standard.by_features(self.rows)], 1)

    def transform(self, X: Tensor) -> Tensor:
        """New rows [B, n', d] on the training rows' axes: [B, n', r], in the precision of `scores`."""
        out = self.scores.new_empty(*X.shape[:2], self.axes.shape[2])
        if self.rows is None:
            for some, part in self.standard.by_rows(X):
                out[:, some] = part @ self.axes
            return out
        likeness = torch.zeros(*X.shape[:2], self.rows.shape[1], dtype=torch.float64, device=X.device)
        own = self.standard.by_features(self.rows)
        for (_, new), (_, old) in zip(self.standard.by_features(X), own, strict=True):
            likeness.baddbmm_(new, old.mT)
        return out.copy_(likeness @ self.axes)


def rotate(X: Tensor, *, standardise: bool, dtype: torch.dtype = torch.float64) -> Rotation:
    """Centre, optionally standardise, and rotate each problem's rows onto their principal axes.

    Exact for any objective that is a function of the linear predictions plus an increasing function of ‖W‖: the part of
    W orthogonal to the centred rows changes no training prediction and only adds norm, so the optimum has none
    (representer theorem), and on the rest an orthonormal change of basis keeps both predictions and norm. Centring is
    exact because the bias is not penalised. For d > n this takes, say, 4096 features to n; there, axes along which the
    rows extend less than 1e-6 of the longest are dropped, which is the rounding of float32 activations.

    Args:
        X: [B, n, d], float32 or float64.
        standardise: divide each feature by its standard deviation.
        dtype: of scores and spectrum; the axes are found in double precision in any case.
    """
    standard = Standard.of(X, standardise=standardise)
    depth, n, d = X.shape
    products = torch.zeros(depth, min(n, d), min(n, d), dtype=torch.float64, device=X.device)
    if d <= n:
        for _, part in standard.by_rows(X):
            products.baddbmm_(part.mT, part)
        # Squaring halves the digits of small eigenvalues, which does no harm: the axes are orthonormal regardless.
        _, axes = torch.linalg.eigh(products)
        scores = torch.empty(X.shape, dtype=dtype, device=X.device)
        spectrum = torch.zeros(depth, d, dtype=torch.float64, device=X.device)
        for some, part in standard.by_rows(X):
            rotated = part @ axes
            scores[:, some] = rotated
            spectrum += rotated.square_().sum(1)
        return Rotation(scores, spectrum.to(dtype), axes, None, standard)
    for _, part in standard.by_features(X):
        products.baddbmm_(part, part.mT)
    squares, left = torch.linalg.eigh(products)  # standardised rows = left · √squares · basisᵀ
    kept = squares > 1e-12 * squares.amax(1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
    spectrum = squares.where(kept, 0.0)
    lengths = spectrum.sqrt()[:, None]
    axes = torch.where(kept[:, None], left / lengths, 0.0)
    return Rotation((left * lengths).to(dtype), spectrum.to(dtype), axes, X, standard)
