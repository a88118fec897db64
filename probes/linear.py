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

from probes.targets import kl_divergence, smoothed

_ARMIJO = 1e-4
_BACKTRACKS = 25


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
        X: [B, n, d], float64.
        standardise: divide each feature by its standard deviation. Features whose deviation is below 1e-6 of their root
            mean square are constant up to rounding; they are set to 0 rather than blown up to unit variance.
    """
    mean = X.mean(1)
    Z = X - mean[:, None]
    scale = torch.ones_like(mean)
    if standardise:
        deviation = Z.square().mean(1).sqrt()
        constant = deviation <= 1e-6 * X.square().mean(1).sqrt()
        scale = torch.where(constant, scale, deviation)
        Z = (Z / scale[:, None]).masked_fill_(constant[:, None], 0.0)
    if X.shape[2] <= X.shape[1]:
        # Squaring halves the digits of small eigenvalues, which does no harm: the axes are orthonormal regardless.
        _, axes = torch.linalg.eigh(Z.mT @ Z)
        scores = Z @ axes
        return Rotation(scores, scores.square().sum(1), axes, None, mean, scale)
    squares, left = torch.linalg.eigh(Z @ Z.mT)  # Z = left · √squares · basisᵀ
    kept = squares > 1e-12 * squares.amax(1, keepdim=True).clamp(min=torch.finfo(X.dtype).tiny)
    spectrum = squares.where(kept, 0.0)
    lengths = spectrum.sqrt()[:, None]
    axes = torch.where(kept[:, None], left / lengths, 0.0)
    return Rotation(left * lengths, spectrum, axes, Z, mean, scale)


@dataclass(frozen=True)
class SoftmaxFit:
    """Solutions of B softmax regressions."""

    weight: Tensor
    """[B, d, K]."""

    bias: Tensor
    """[B, K]; fixed up to a constant a row."""

    objective: Tensor
    """[B], nats: mean cross-entropy + penalty/(2n)·‖W‖²."""

    iterations: Tensor
    """[B], accepted L-BFGS steps."""

    converged: Tensor
    """[B], False where `max_iter` came first."""


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
    Y = Y.to(X).expand(X.shape[0], -1, -1)
    penalty = torch.as_tensor(penalty, dtype=X.dtype, device=X.device).expand(X.shape[0])
    fit = minimise(rotation.scores, rotation.spectrum, Y, penalty, max_iter=max_iter, tol=tol)
    weight = rotation.basis @ fit.weight
    return replace(fit, weight=weight, bias=fit.bias - torch.einsum("bd,bdk->bk", rotation.mean, weight))


def minimise(
    scores: Tensor,
    spectrum: Tensor,
    Y: Tensor,
    penalty: Tensor,
    *,
    start: Tensor | None = None,
    max_iter: int = 1000,
    tol: float = 1e-9,
    history: int = 10,
) -> SoftmaxFit:
    """The softmax regressions of `fit_softmax` on rotated rows, by batched L-BFGS; the weights are for those rows.

    Every problem has its own line search, curvature history and stopping; finished ones leave the batch. The inverse
    Hessian starts from the diagonal that the Hessian has at the marginal solution (W = 0), up to a scalar from the
    newest curvature pair: Nocedal & Wright, Numerical Optimization (2006), algorithms 7.4 and 7.5. The objective is
    convex, so every step has positive curvature and backtracking to a sufficient decrease will do, without Wolfe's
    second condition.

    Args:
        scores: [B, n, r], columns centred and orthogonal (`rotate`).
        spectrum: [B, r], their squared norms.
        Y: [B, n, K], rows sum to 1.
        penalty: [B].
        start: [B, r + 1, K] to begin from, the bias in the last row; the marginal solution if None.
        max_iter: steps at most.
        tol: nats, see `fit_softmax`.
        history: curvature pairs kept.
    """
    batch, n, _ = scores.shape
    frequency = Y.mean(1)  # [B, K]
    X = torch.cat([scores, scores.new_ones(batch, n, 1)], 2)  # [B, n, r + 1]
    # Y enters only through these means, so a permutation of the targets costs no more memory than a weight matrix.
    moment = X.mT @ Y / n  # [B, r + 1, K]
    ridge = torch.cat([penalty[:, None].expand_as(spectrum), torch.zeros_like(penalty[:, None])], 1)[:, :, None] / n
    curvature = torch.cat([spectrum / n, torch.ones_like(penalty[:, None])], 1)[:, :, None]
    # A class that is absent, or nearly, would get a vanishing curvature and a first step without bound.
    share = frequency.clamp(min=0.1 / n)[:, None]
    inverse = 1 / (curvature * share * (1 - share).clamp(min=0.1 / n) + ridge + torch.finfo(X.dtype).tiny ** 0.5)
    inverse[:, :-1].masked_fill_((spectrum <= 0)[:, :, None], 0.0)
    theta = torch.cat([torch.zeros_like(moment[:, :-1]), share.log()], 1) if start is None else start

    theta_out, objective_out = theta.clone(), theta.new_empty(batch)
    iterations_out = torch.full((batch,), max_iter, device=X.device)
    converged_out = torch.zeros(batch, dtype=torch.bool, device=X.device)

    index = torch.arange(batch, device=X.device)
    problem = _Problem(X, moment, ridge)
    value, gradient = problem.evaluate(theta)
    gamma = value.new_ones(batch)
    pairs: list[tuple[Tensor, Tensor, Tensor]] = []  # step, change of gradient, 1 / their product (0: no such pair)
    for iteration in range(1, max_iter + 1):
        direction = _two_loop(gradient, pairs, inverse * gamma[:, None, None])
        slope = _dot(gradient, direction)  # ≤ 0
        finished = -slope / 2 <= tol
        stepped, new_theta, new_value, new_gradient = _line_search(problem, theta, value, gradient, direction, slope)
        finished |= ~stepped  # no decrease is representable any more
        step, change = new_theta - theta, new_gradient - gradient
        product = _dot(step, change)
        curved = product > 0
        pairs.append((step, change, torch.where(curved, 1 / product, 0.0)))
        pairs = pairs[-history:]
        gamma = torch.where(curved, product / _dot(change, inverse * change), gamma)
        theta, value, gradient = new_theta, new_value, new_gradient
        if finished.any():
            done = index[finished]
            theta_out[done], objective_out[done] = theta[finished], value[finished]
            iterations_out[done], converged_out[done] = iteration, True
            keep = ~finished
            if not keep.any():
                break
            index, problem, inverse = index[keep], problem.take(keep), inverse[keep]
            theta, value, gradient, gamma = theta[keep], value[keep], gradient[keep], gamma[keep]
            pairs = [(s[keep], y[keep], rho[keep]) for s, y, rho in pairs]
    else:
        theta_out[index], objective_out[index] = theta, value
    return SoftmaxFit(theta_out[:, :-1], theta_out[:, -1], objective_out, iterations_out, converged_out)


@dataclass(frozen=True)
class _Problem:
    X: Tensor
    moment: Tensor
    ridge: Tensor

    def take(self, index: Tensor) -> _Problem:
        return _Problem(self.X[index], self.moment[index], self.ridge[index])

    def evaluate(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Objective [b] and gradient [b, r + 1, K] at theta."""
        logits = torch.bmm(self.X, theta)  # [b, n, K]; overwritten below: at this size memory traffic is the cost
        top = logits.amax(2, keepdim=True)
        probability = logits.sub_(top).exp_()
        total = probability.sum(2, keepdim=True)
        log_total = (total.log() + top).mean((1, 2))
        probability /= total
        pull = self.ridge * theta
        value = log_total - _dot(self.moment, theta) + _dot(pull, theta) / 2
        gradient = torch.bmm(self.X.mT, probability).div_(self.X.shape[1]).sub_(self.moment).add_(pull)
        return value, gradient


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return torch.linalg.vecdot(a.flatten(1), b.flatten(1))


def _two_loop(gradient: Tensor, pairs: Sequence[tuple[Tensor, Tensor, Tensor]], inverse: Tensor) -> Tensor:
    """L-BFGS direction [b, r + 1, K]. A pair with rho = 0 drops out of both loops."""
    q = gradient.clone()
    alphas = []
    for step, change, rho in reversed(pairs):
        alpha = rho * _dot(step, q)
        q -= alpha[:, None, None] * change
        alphas.append(alpha)
    q *= inverse
    for (step, change, rho), alpha in zip(pairs, reversed(alphas), strict=True):
        q += (alpha - rho * _dot(change, q))[:, None, None] * step
    return q.neg_()


def _line_search(
    problem: _Problem, theta: Tensor, value: Tensor, gradient: Tensor, direction: Tensor, slope: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Backtrack, each problem on its own, until the decrease suffices: (stepped [b], theta, value, gradient)."""
    noise = 8 * torch.finfo(value.dtype).eps * value.abs()
    out_theta, out_value, out_gradient = theta.clone(), value.clone(), gradient.clone()
    stepped = torch.zeros_like(value, dtype=torch.bool)
    length = torch.ones_like(value)
    todo = torch.arange(len(value), device=value.device)
    part = problem
    for _ in range(_BACKTRACKS):
        t, before, fall = length[todo], value[todo], slope[todo]
        candidate = theta[todo] + t[:, None, None] * direction[todo]
        new_value, new_gradient = part.evaluate(candidate)
        enough = new_value <= before + _ARMIJO * t * fall + noise[todo]  # False for NaN
        done = todo[enough]
        out_theta[done], out_value[done] = candidate[enough], new_value[enough]
        out_gradient[done] = new_gradient[enough]
        stepped[done] = True
        if enough.all():
            break
        # minimum of the parabola through both values and the slope, kept within a tenth and a half of the last length
        parabola = -fall * t.square() / (2 * (new_value - before - fall * t))
        length[todo] = torch.where(parabola.isfinite(), parabola, 0.1 * t).clamp(min=0.1 * t, max=0.5 * t)
        part, todo = part.take(~enough), todo[~enough]
    return stepped, out_theta, out_value, out_gradient


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
