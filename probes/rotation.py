"""Training rows on their principal axes, exactly: fewer dimensions, and a Hessian that is nearly diagonal.

A leading axis B runs over independent problems (layers). Knows arrays only.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from torch.linalg import vector_norm


@dataclass(frozen=True)
class Rotation:
    """Training rows on their principal axes: `(X − mean) / scale = scores @ basisᵀ`."""

    scores: Tensor
    """[B, n, r], columns centred and mutually orthogonal, r = min(n, d)."""

    spectrum: Tensor
    """[B, r], squared norms of the columns of `scores`."""

    axes: Tensor
    """[B, d, r] orthonormal columns; or, where `rows` is given, [B, n, r] with `basis = rowsᵀ @ axes`."""

    rows: Tensor | None
    """[B, n, d], the centred rows, if d > n: there the basis stays implicit, being costlier than its uses."""

    mean: Tensor
    """[B, d], of the training rows."""

    scale: Tensor
    """[B, d], standard deviation of the training rows; 1 for constant features, and everywhere if not standardised."""

    @property
    def basis(self) -> Tensor:
        """[B, d, r], orthonormal columns (zero where the spectrum is)."""
        return self.axes if self.rows is None else self.rows.mT @ self.axes

    def transform(self, X: Tensor) -> Tensor:
        """New rows [B, n', d] on the training rows' axes: [B, n', r]."""
        Z = (X - self.mean[:, None]) / self.scale[:, None]
        return Z @ self.axes if self.rows is None else Z @ self.rows.mT @ self.axes


def rotate(X: Tensor, *, standardise: bool) -> Rotation:
    """Centre, optionally standardise, and rotate each problem's rows onto their principal axes.

    Exact for any objective that is a function of the linear predictions plus an increasing function of ‖W‖: the part of
    W orthogonal to the centred rows changes no training prediction and only adds norm, so the optimum has none
    (representer theorem), and on the rest an orthonormal change of basis keeps both predictions and norm. Centring is
    exact because the bias is not penalised. For d > n this takes, say, 4096 features to n; there, axes along which the
    rows extend less than 1e-6 of the longest are dropped, which is the rounding of float32 activations.

    Args:
        X: [B, n, d], float32 or float64; what is returned is float64.
        standardise: divide each feature by its standard deviation. Features whose deviation is below 1e-6 of their root
            mean square are constant up to rounding; they are set to 0 rather than blown up to unit variance.
    """
    mean = X.mean(1, dtype=torch.float64)
    Z = X.to(torch.float64, copy=True).sub_(mean[:, None])  # in place, as what follows: rows are what fills the memory
    scale = torch.ones_like(mean)
    if standardise:
        deviation = vector_norm(Z, dim=1) / X.shape[1] ** 0.5
        constant = deviation <= 1e-6 * torch.hypot(deviation, mean)
        scale = torch.where(constant, scale, deviation)
        Z.div_(scale[:, None]).masked_fill_(constant[:, None], 0.0)
    if X.shape[2] <= X.shape[1]:
        # Squaring halves the digits of small eigenvalues, which does no harm: the axes are orthonormal regardless.
        _, axes = torch.linalg.eigh(Z.mT @ Z)
        scores = Z @ axes
        return Rotation(scores, vector_norm(scores, dim=1).square(), axes, None, mean, scale)
    squares, left = torch.linalg.eigh(Z @ Z.mT)  # Z = left · √squares · basisᵀ
    kept = squares > 1e-12 * squares.amax(1, keepdim=True).clamp(min=torch.finfo(Z.dtype).tiny)
    spectrum = squares.where(kept, 0.0)
    lengths = spectrum.sqrt()[:, None]
    axes = torch.where(kept[:, None], left / lengths, 0.0)
    return Rotation(left * lengths, spectrum, axes, Z, mean, scale)
