"""Activations of one model as those of another, linearly: reduced-rank ridge regression on questions that both read.

Knows pairs of activations and groups of questions; nothing of classes or probes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from probes.evaluation.folds import inner_split
from probes.solver.rotation import Rotation, Standard, rotate
from semcal.arrays import FloatArray, IntArray

RIDGES = (0.01, 0.1, 1.0, 10.0, 100.0)  # relative to the mean variance of a standardised feature
RANKS = (4, 16, 64, 256)
_FEWEST_GROUPS = 4


@dataclass(frozen=True)
class LinearMap:
    """A fitted map, ŷ = ȳ + scale · (x on the axes of the training rows) @ weights.

    Attributes:
        rotation: of the training rows of the model mapped from.
        into: mean and scale of the model mapped to.
        weights: [axis, d of the model mapped to].
        ridge, rank: as chosen.
    """

    rotation: Rotation
    into: Standard
    weights: Tensor
    ridge: float
    rank: int

    def __call__(self, X: FloatArray) -> FloatArray:
        """[question, d] -> [question, d of the model mapped to], float32."""
        mapped = self.rotation.transform(torch.as_tensor(X)[None])[0] @ self.weights
        scale = torch.where(self.into.scale[0].isfinite(), self.into.scale[0], 0.0)
        return (self.into.mean[0] + scale * mapped).float().numpy()


def fit_map(X: FloatArray, Y: FloatArray, group: Sequence[str], *, seed: int) -> LinearMap:
    """Learn to write the activations of one model as those of another.

    Features of both are standardised on the rows given, and the squared error is summed over the features mapped to.
    The fit is truncated to its leading principal axes (reduced-rank regression: Izenman 1975, J. Multivariate Analysis
    5:248, with a ridge: Mukherjee & Zhu 2011, Statistical Analysis and Data Mining 4:612). Ridge and rank do best on
    one inner split by group; then the map is fitted to all rows.

    Args:
        X, Y: [question, d of each model], of the same questions, finite.
        group: [question], questions that must not straddle the split.
        seed: of the split.

    Raises:
        ValueError: different numbers of questions, or fewer than 4 groups.
    """
    if not len(X) == len(Y) == len(group):
        raise ValueError(f"{len(X)} and {len(Y)} activations and {len(group)} group labels; expected one of each")
    if (groups := len(set(group))) < _FEWEST_GROUPS:
        raise ValueError(f"{groups} groups of questions that both models read are too few to learn a map from")
    fit, validation = inner_split(group, 5, seed=seed)
    losses = {(ridge, rank): _error(X, Y, chosen, validation) for ridge, rank, chosen in _path(X[fit], Y[fit])}
    ridge, rank = min(losses, key=lambda pair: losses[pair])
    return next(chosen for r, k, chosen in _path(X, Y, (ridge,), (rank,)))


def _path(
    X: FloatArray, Y: FloatArray, ridges: Sequence[float] = RIDGES, ranks: Sequence[int] = RANKS
) -> list[tuple[float, int, LinearMap]]:
    """A map for every ridge and rank."""
    rotation = rotate(torch.as_tensor(X)[None], standardise=True)
    targets = torch.as_tensor(Y)[None]
    into = Standard.of(targets, standardise=True)
    standard = torch.cat([part[0] for _, part in into.by_rows(targets)])
    scores, spectrum = rotation.scores[0], rotation.spectrum[0]
    found = []
    for ridge in ridges:
        weights = scores.mT @ standard / (spectrum + ridge * len(X))[:, None]
        _, _, axes = torch.linalg.svd(scores @ weights, full_matrices=False)
        for rank in ranks:
            leading = axes[:rank]
            found.append((ridge, rank, LinearMap(rotation, into, weights @ leading.mT @ leading, ridge, rank)))
    return found


def _error(X: FloatArray, Y: FloatArray, chosen: LinearMap, rows: IntArray) -> float:
    return float(squared_errors(chosen, X[rows], Y[rows])[0].sum())


def squared_errors(chosen: LinearMap, X: FloatArray, Y: FloatArray) -> tuple[FloatArray, FloatArray]:
    """[question] squared errors of the map, and those of the mean activation, over features in units of their standard
    deviation; 1 − their ratio is r²."""
    scale, mean = chosen.into.scale[0].numpy(), chosen.into.mean[0].numpy()
    return (((chosen(X) - Y) / scale) ** 2).sum(1), (((Y - mean) / scale) ** 2).sum(1)
