"""Softmax regression whose weights have few ranks: how many directions of the activations the read-out needs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from probes.rungs.linear import LogLinear
from probes.solver.minimise import minimise
from probes.solver.rotation import rotate
from probes.solver.training import descend
from probes.targets.closed import smoothed


class LowRankProbe(LogLinear):
    """`LinearProbe` with W = UV of rank r: minimises mean cross-entropy + λ/(2n)·‖UV‖².

    The solution of `LinearProbe` is cut to its r heaviest singular directions and descended from there, so nothing is
    drawn at random. From r = K − 1 on the two agree; below, the problem is not convex and the optimum is a local one.

    Args:
        rank: r, at least 1.
        penalty: λ, W in standardised units.
        max_iter: L-BFGS steps at most.
        tol: nats by which a step must still lower the objective.

    Attributes:
        directions_: [d, r], orthonormal in standardised units: the subspace that the probe reads.
        objective_: nats.
    """

    def __init__(self, rank: int = 4, penalty: float = 1.0, max_iter: int = 500, tol: float = 1e-9) -> None:
        self.rank = rank
        self.penalty = penalty
        self.max_iter = max_iter
        self.tol = tol

    def _learn(self, inputs: np.ndarray, Y: Tensor, group: Sequence[str]) -> None:  # noqa: ARG002 - nothing is split
        if self.rank < 1:
            raise ValueError(f"rank is {self.rank}; expected at least 1")
        rotation = rotate(torch.as_tensor(inputs)[None], standardise=True)
        X, targets, n = rotation.scores[0], smoothed(Y), len(Y)
        penalty = torch.tensor([float(self.penalty)], dtype=torch.float64)
        full = minimise(rotation.scores, rotation.spectrum, targets, penalty, tol=1e-6)
        # Cut and descend in units in which the Hessian is about the identity: there a cut costs the objective least,
        # and every axis is learnt at the same pace.
        stretch = ((rotation.spectrum[0] + self.penalty) / n + 1e-12).rsqrt()[:, None]
        left, sizes, right = torch.linalg.svd(full.weight[0] / stretch, full_matrices=False)
        half = sizes[: self.rank].sqrt()
        U = (left[:, : self.rank] * half).contiguous()  # [r, rank], in those units
        V = (half[:, None] * right[: self.rank]).contiguous()  # [rank, K]
        bias = full.bias[0].clone()

        def objective() -> Tensor:
            W = (stretch * U) @ V
            log_q = torch.log_softmax(X @ W + bias, 1)
            return -(targets * log_q).sum(1).mean() + self.penalty / (2 * n) * W.square().sum()

        self.objective_, converged = descend([U, V, bias], objective, max_iter=self.max_iter, tol=self.tol)
        if not converged:
            warnings.warn(f"LowRankProbe stopped at max_iter={self.max_iter}", ConvergenceWarning, stacklevel=3)
        U = stretch * U
        self._set_weights(rotation, U @ V, bias)
        self.directions_ = (rotation.basis[0] @ torch.linalg.qr(U)[0]).numpy()
