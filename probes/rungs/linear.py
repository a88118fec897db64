"""Linear probes: softmax regression on soft labels, ridge regression on logits.

A leading axis B runs over independent problems (layers, penalties, permutations), solved side by side on CPU or CUDA.
Knows arrays only: nothing of layers, questions or folds.

The problems are first rotated onto the principal axes of their activations, which is exact (see `rotate`) and serves
twice: the dimension falls to min(n, d), and the Hessian at the marginal becomes nearly diagonal, so that L-BFGS, given
that diagonal, needs tens of iterations where it would need hundreds.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from scipy.special import log_softmax
from torch import Tensor

from probes.rungs.rung import Rung
from probes.solver.minimise import SoftmaxFit, minimise
from probes.solver.rotation import Rotation, rotate
from probes.solver.training import descend
from probes.targets.closed import smoothed


def fit_softmax(
    X: Tensor,
    Y: Tensor,
    penalty: Tensor | float,
    *,
    layer: Tensor | None = None,
    standardise: bool = False,
    max_iter: int = 1000,
    tol: float = 1e-9,
) -> SoftmaxFit:
    """Multinomial logistic regression with soft labels, B problems at once.

    Minimises mean cross-entropy(Y, softmax(XW + b)) + penalty/(2n)·‖W‖² with b free: scikit-learn's LogisticRegression
    with C = 1/penalty on the same rows (a soft label is a row repeated once per class, with the mass as weight).

    Args:
        X: [L, n, d]. The problems are solved in its precision; in float32 `tol` should be no smaller than 1e-6, and the
            objective is within 1e-4 nats of the optimum.
        Y: [n, K] shared by all problems, or [B, n, K]; rows sum to 1.
        penalty: [B] or one number, ≥ 0.
        layer: [B], the rows X[layer] of each problem; None: each its own, L = B. Problems on the same rows (a grid of
            penalties) share their rotation and their matrix products.
        standardise: penalise W in units in which each feature has deviation 1 over the rows; what is returned is for
            raw X in any case.
        max_iter: L-BFGS steps at most.
        tol: stop where the estimated gain still to be had, half the Newton decrement, is below this many nats.

    Raises:
        ValueError: the shapes disagree.
    """
    layer = torch.arange(len(X), device=X.device) if layer is None else layer
    if X.ndim != 3 or Y.ndim not in (2, 3) or Y.shape[-2] != X.shape[1] or (Y.ndim == 3 and len(Y) != len(layer)):
        raise ValueError(f"X is {tuple(X.shape)} and Y is {tuple(Y.shape)}; expected [L, n, d] and [n, K] or [B, n, K]")
    rotation = rotate(X, standardise=standardise, dtype=X.dtype)
    penalty = torch.as_tensor(penalty, dtype=X.dtype, device=X.device).expand(len(layer))
    settings = {"layer": layer, "max_iter": max_iter, "tol": tol}
    fit = minimise(rotation.scores, rotation.spectrum, Y.to(X), penalty, **settings)
    basis = (rotation.basis / rotation.standard.scale[:, :, None]).to(X)  # [L, d, r]
    weight = torch.stack([basis[own] @ axes for own, axes in zip(layer.tolist(), fit.weight, strict=True)])
    offset = torch.einsum("bd,bdk->bk", rotation.standard.mean.to(X)[layer], weight)
    return replace(fit, weight=weight, bias=fit.bias - offset)


class LogLinear(Rung):
    """A rung whose class probabilities are softmax(XW + b).

    Attributes:
        weight_: [d, K], for raw (not standardised) activations.
        bias_: [K].
    """

    weight_: np.ndarray
    bias_: np.ndarray

    def _log_probabilities(self, inputs: np.ndarray) -> np.ndarray:
        return log_softmax(np.asarray(inputs, dtype=np.float64) @ self.weight_ + self.bias_, axis=1)

    def _set_weights(self, rotation: Rotation, weight: Tensor, bias: Tensor) -> None:
        """From weight [r, K] and bias [K] on the axes of the training rows."""
        raw = (rotation.basis[0] @ weight) / rotation.standard.scale[0][:, None]
        self.weight_ = raw.numpy()
        self.bias_ = (bias - rotation.standard.mean[0] @ raw).numpy()


class LinearProbe(LogLinear):
    """Softmax regression from activations [question, d] to a class distribution.

    >>> rng = np.random.default_rng(0)
    >>> activations, targets = rng.normal(size=(100, 8)), rng.dirichlet(np.ones(3), size=100)
    >>> probe = probes.LinearProbe().fit(activations[:80], targets[:80])
    >>> probe.predict(activations[80:]).shape, probe.score(activations[80:], targets[80:]) < 1
    ((20, 3), True)

    Features are standardised by the rows given to `fit`; then as `fit_softmax`.

    Args:
        penalty: λ in mean cross-entropy + λ/(2n)·‖W‖², W in standardised units; 1/C of scikit-learn.
        max_iter: L-BFGS steps at most.
        tol: nats, see `fit_softmax`.

    Attributes:
        objective_: nats.
        n_iter_: L-BFGS steps taken.
    """

    def __init__(self, penalty: float = 1.0, max_iter: int = 1000, tol: float = 1e-9) -> None:
        self.penalty = penalty
        self.max_iter = max_iter
        self.tol = tol

    def _learn(self, inputs: np.ndarray, Y: Tensor, group: Sequence[str]) -> None:  # noqa: ARG002 - nothing is split
        rotation = rotate(torch.as_tensor(inputs)[None], standardise=True)
        penalty = torch.tensor([float(self.penalty)], dtype=torch.float64)
        settings = {"max_iter": self.max_iter, "tol": self.tol}
        fit = minimise(rotation.scores, rotation.spectrum, smoothed(Y), penalty, **settings)
        self._warn_unless(bool(fit.converged.all()))
        self._set_weights(rotation, fit.weight[0], fit.bias[0])
        self.objective_ = float(fit.objective)
        self.n_iter_ = int(fit.iterations)


class RidgeLogitProbe(LogLinear):
    """Ridge regression from standardised activations [question, d] onto centred log-probabilities: closed form.

    The targets are log((1 − s)·Y + s·marginal), centred over classes. Squared error on logits is not the loss that
    `score` counts, and it weighs classes that no sample showed as much as the mode; what it buys is speed.

    Args:
        penalty: λ in ½‖T − XW − b‖² + λ/2·‖W‖², W in standardised units.
        smoothing: s, a share in (0, 1); about ½/M for M samples per question.
    """

    def __init__(self, penalty: float = 1.0, smoothing: float = 0.01) -> None:
        self.penalty = penalty
        self.smoothing = smoothing

    def _learn(self, inputs: np.ndarray, Y: Tensor, group: Sequence[str]) -> None:  # noqa: ARG002 - nothing is split
        rotation = rotate(torch.as_tensor(inputs)[None], standardise=True)
        logs = ((1 - self.smoothing) * Y + self.smoothing * torch.as_tensor(self.marginal_)).log()
        logits = logs - logs.mean(1, keepdim=True)
        moment = rotation.scores[0].mT @ (logits - logits.mean(0))
        weight = moment / (rotation.spectrum[0] + self.penalty)[:, None]
        self._set_weights(rotation, weight, logits.mean(0))


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
        self._warn_unless(converged)
        U = stretch * U
        self._set_weights(rotation, U @ V, bias)
        self.directions_ = (rotation.basis[0] @ torch.linalg.qr(U)[0]).numpy()
