"""Linear probes at every layer at once: softmax regression on soft labels, and ridge regression on scalars.

A leading axis B runs over independent problems (layers, penalties, permutations), solved side by side on CPU or CUDA.
Knows arrays only: nothing of layers, questions or folds.

The problems are first rotated onto the principal axes of their activations, which is exact (see `rotate`) and serves
twice: the dimension falls to min(n, d), and the Hessian at the marginal becomes nearly diagonal, so that L-BFGS, given
that diagonal, needs tens of iterations where it would need hundreds.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils.validation import check_is_fitted
from torch import Tensor

from probes.minimise import SoftmaxFit, minimise
from probes.rotation import rotate
from probes.targets import kl_divergence, smoothed


def fit_softmax(
    X: Tensor, Y: Tensor, penalty: Tensor | float, *, max_iter: int = 1000, tol: float = 1e-9
) -> SoftmaxFit:
    """Multinomial logistic regression with soft labels, B problems at once.

    Minimises mean cross-entropy(Y, softmax(XW + b)) + penalty/(2n)·‖W‖² with b free: scikit-learn's LogisticRegression
    with C = 1/penalty on the same rows (a soft label is a row repeated once a class, its sample weight the mass).

    Args:
        X: [B, n, d]; float64 unless a looser optimum will do.
        Y: [n, K] shared by all problems, or [B, n, K]; rows sum to 1.
        penalty: [B] or one number, ≥ 0.
        max_iter: L-BFGS steps at most.
        tol: stop where the estimated gain still to be had, half the Newton decrement, is below this many nats.

    Raises:
        ValueError: the shapes disagree.
    """
    if X.ndim != 3 or Y.shape[-2] != X.shape[1] or (Y.ndim == 3 and Y.shape[0] != X.shape[0]) or Y.ndim not in (2, 3):
        raise ValueError(f"X is {tuple(X.shape)} and Y is {tuple(Y.shape)}; want [B, n, d] and [n, K] or [B, n, K]")
    rotation = rotate(X, standardise=False)
    penalty = torch.as_tensor(penalty, dtype=X.dtype, device=X.device).expand(X.shape[0])
    fit = minimise(rotation.scores, rotation.spectrum, Y.to(X), penalty, max_iter=max_iter, tol=tol)
    weight = rotation.basis @ fit.weight
    return replace(fit, weight=weight, bias=fit.bias - torch.einsum("bd,bdk->bk", rotation.mean, weight))


@dataclass(frozen=True)
class RidgeFit:
    """Solutions of B × P ridge regressions."""

    weight: Tensor
    """[B, P, d]."""

    bias: Tensor
    """[B, P]."""


def fit_ridge(X: Tensor, y: Tensor, penalties: Sequence[float] | Tensor) -> RidgeFit:
    """Ridge regression for every problem and penalty: minimises ½‖y − Xw − b‖² + penalty/2·‖w‖², b free.

    In closed form on the principal axes; scikit-learn's Ridge with alpha = penalty.

    Args:
        X: [B, n, d].
        y: [n].
        penalties: [P], > 0.

    Raises:
        ValueError: the shapes disagree.
    """
    if X.ndim != 3 or y.shape != X.shape[1:2]:
        raise ValueError(f"X is {tuple(X.shape)} and y is {tuple(y.shape)}; want [B, n, d] and [n]")
    rotation = rotate(X, standardise=False)
    grid = torch.as_tensor(penalties, dtype=X.dtype, device=X.device)
    moment = torch.einsum("bnr,n->br", rotation.scores, y.to(X) - y.to(X).mean())
    theta = moment[:, None] / (rotation.spectrum[:, None] + grid[None, :, None])  # [B, P, r]
    weight = torch.einsum("bdr,bpr->bpd", rotation.basis, theta)
    return RidgeFit(weight=weight, bias=y.to(X).mean() - torch.einsum("bd,bpd->bp", rotation.mean, weight))


class LinearProbe(BaseEstimator):
    """Softmax regression from activations to a class distribution, in scikit-learn's manner.

    Features are standardised by the rows given to `fit`, and targets are `smoothed`; then as `fit_softmax`.

    Args:
        penalty: λ in mean cross-entropy + λ/(2n)·‖W‖², W in standardised units; 1/C of scikit-learn.
        max_iter: L-BFGS steps at most.
        tol: nats, see `fit_softmax`.

    Attributes:
        weight_: [d, K], for raw (not standardised) activations.
        bias_: [K].
        marginal_: [K], the mean of the smoothed training targets, baseline of `score`.
        objective_: nats.
        n_iter_: L-BFGS steps taken.
    """

    def __init__(self, penalty: float = 1.0, max_iter: int = 1000, tol: float = 1e-9) -> None:
        self.penalty = penalty
        self.max_iter = max_iter
        self.tol = tol

    def fit(self, X: np.ndarray, Y: np.ndarray) -> LinearProbe:
        """Fit to X [question, d] and Y [question, class], rows summing to 1. ValueError if the shapes disagree."""
        if X.ndim != 2 or Y.ndim != 2 or len(X) != len(Y):
            raise ValueError(f"X is {X.shape} and Y is {Y.shape}; want [question, d] and [question, class]")
        rotation = rotate(torch.as_tensor(X, dtype=torch.float64)[None], standardise=True)
        targets = smoothed(torch.as_tensor(Y, dtype=torch.float64)[None])
        penalty = torch.tensor([float(self.penalty)], dtype=torch.float64)
        fit = minimise(rotation.scores, rotation.spectrum, targets, penalty, max_iter=self.max_iter, tol=self.tol)
        if not fit.converged.all():
            warnings.warn(f"LinearProbe stopped at max_iter={self.max_iter}", ConvergenceWarning, stacklevel=2)
        weight = (rotation.basis @ fit.weight)[0] / rotation.scale[0][:, None]
        self.weight_ = weight.numpy()
        self.bias_ = (fit.bias[0] - rotation.mean[0] @ weight).numpy()
        self.marginal_ = targets[0].mean(0).numpy()
        self.objective_ = float(fit.objective)
        self.n_iter_ = int(fit.iterations)
        return self

    def predict(self, X: np.ndarray) -> np.ndarray:
        """Class probabilities [question, class] for X [question, d]."""
        return np.exp(self._log_probabilities(X))

    def score(self, X: np.ndarray, Y: np.ndarray) -> float:
        """Share of KL(Y ‖ training marginal) explained: 1 perfect, 0 as good as the marginal, below 0 worse."""
        targets = torch.as_tensor(Y, dtype=torch.float64)
        probe = kl_divergence(targets, torch.as_tensor(self._log_probabilities(X))).sum()
        baseline = kl_divergence(targets, torch.as_tensor(self.marginal_).log()).sum()
        return float(1 - probe / baseline)

    def _log_probabilities(self, X: np.ndarray) -> np.ndarray:
        check_is_fitted(self)
        logits = np.asarray(X, dtype=np.float64) @ self.weight_ + self.bias_
        return torch.log_softmax(torch.as_tensor(logits), -1).numpy()
