"""Softmax regressions on soft labels, many at once, by one batched L-BFGS on rotated rows.

Problems that live on the same rows (penalties, permutations, targets of one layer) share them: their weights form
one matrix product, and the rows are held once. Knows arrays only: nothing of layers, questions or folds.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, Self

import torch
from einops import rearrange
from torch import Tensor

from semcal.sampling.exponential import exp_

_ARMIJO = 1e-4
_BACKTRACKS = 25
_HISTORY = 10  # curvature pairs kept


@dataclass(frozen=True)
class SoftmaxFit:
    """Solutions of B softmax regressions."""

    weight: Tensor
    """[B, d, K]."""

    bias: Tensor
    """[B, K]; fixed up to a constant per row."""

    objective: Tensor
    """[B], nats: mean cross-entropy + penalty/(2n)·‖W‖²."""

    iterations: Tensor
    """[B], accepted L-BFGS steps."""

    converged: Tensor
    """[B], False where `max_iter` came first."""


def minimise(
    scores: Tensor,
    spectrum: Tensor,
    Y: Tensor,
    penalty: Tensor,
    *,
    layer: Tensor | None = None,
    start: Tensor | None = None,
    max_iter: int = 1000,
    tol: float = 1e-9,
) -> SoftmaxFit:
    """The softmax regressions of `fit_softmax` on rotated rows, by batched L-BFGS; the weights are for those rows.

    Every problem has its own line search, curvature history and stopping; finished ones leave the batch. The inverse
    Hessian starts from the diagonal that the Hessian has at the marginal solution (W = 0), up to a scalar from the
    newest curvature pair: Nocedal & Wright, Numerical Optimization (2006), algorithms 7.4 and 7.5. The objective is
    convex, so every step has positive curvature and backtracking to a sufficient decrease will do, without Wolfe's
    second condition.

    Args:
        scores: [L, n, r], columns centred and orthogonal (`rotate`).
        spectrum: [L, r], their squared norms.
        Y: [B, n, K], rows sum to 1; or [n, K], shared by all problems.
        penalty: [B].
        layer: [B], which of the L row sets a problem lives on; None: each its own, L = B.
        start: [B, r + 1, K], the bias in the last row; None: the marginal solution.
        max_iter: steps at most.
        tol: nats, see `fit_softmax`.
    """
    batch, n = len(penalty), scores.shape[1]
    layer = torch.arange(batch, device=scores.device) if layer is None else layer
    # Y enters only through these means, so a permutation of the targets costs no more memory than a weight matrix.
    moment = _moments(scores, Y, layer)  # [B, r + 1, K]
    frequency, spectrum = moment[:, -1], spectrum[layer]
    ridge = torch.cat([penalty[:, None].expand_as(spectrum), torch.zeros_like(penalty[:, None])], 1)[:, :, None] / n
    curvature = torch.cat([spectrum / n, torch.ones_like(penalty[:, None])], 1)[:, :, None]
    # A class that is absent, or nearly, would get a vanishing curvature and a first step without bound.
    share = frequency.clamp(min=0.1 / n)[:, None]
    inverse = 1 / (curvature * share * (1 - share).clamp(min=0.1 / n) + ridge + torch.finfo(scores.dtype).tiny ** 0.5)
    inverse[:, :-1].masked_fill_((spectrum <= 0)[:, :, None], 0.0)
    theta = torch.cat([torch.zeros_like(moment[:, :-1]), share.log()], 1) if start is None else start
    found = lbfgs(_Problem(scores, layer, moment, ridge), theta, inverse, max_iter=max_iter, tol=tol)
    weight, bias = found.theta[:, :-1], found.theta[:, -1]
    return SoftmaxFit(weight, bias, found.objective, found.iterations, found.converged)


class Problems(Protocol):
    """B smooth convex problems, each in a matrix of its own."""

    def evaluate(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Objectives [B] and gradients [B, r, K] at theta [B, r, K]."""
        ...

    def take(self, index: Tensor) -> Self:
        """Some of the problems, by indices or a mask."""
        ...


@dataclass(frozen=True)
class Descent:
    """Where L-BFGS ended: theta [B, r, K], objective [B], accepted steps [B], and whether they sufficed [B]."""

    theta: Tensor
    objective: Tensor
    iterations: Tensor
    converged: Tensor


def lbfgs(problem: Problems, theta: Tensor, inverse: Tensor, *, max_iter: int, tol: float) -> Descent:
    """Solve B convex problems together; see `minimise`.

    Args:
        theta: [B, r, K], where they start.
        inverse: [B, r, K], diagonal of the inverse Hessian, roughly; 0 where a coefficient stays as it is.
        max_iter: steps at most.
        tol: stop where a step promises to lower the objective by less.
    """
    batch = len(theta)
    theta_out, objective_out = theta.clone(), theta.new_empty(batch)
    iterations_out = torch.full((batch,), max_iter, device=theta.device)
    converged_out = torch.zeros(batch, dtype=torch.bool, device=theta.device)

    index = torch.arange(batch, device=theta.device)
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
        pairs = pairs[-_HISTORY:]
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
            for age, pair in enumerate(pairs):  # one by one, so that old and new are never both there
                pairs[age] = (pair[0][keep], pair[1][keep], pair[2][keep])
    else:
        theta_out[index], objective_out[index] = theta, value
    return Descent(theta_out, objective_out, iterations_out, converged_out)


def _moments(scores: Tensor, Y: Tensor, layer: Tensor) -> Tensor:
    """[scores, 1]ᵀ Y / n of every problem: [B, r + 1, K]."""
    if Y.ndim == 2:
        return torch.cat([scores.mT @ Y / len(Y), Y.mean(0).expand(len(scores), 1, -1)], 1)[layer]
    moment = scores.new_empty(len(layer), scores.shape[2] + 1, Y.shape[2])
    for own, mine in _by_layer(layer, len(scores)):
        flat = rearrange(Y[mine], "b n k -> n (b k)")
        moment[mine, :-1] = rearrange(scores[own].mT @ flat, "r (b k) -> b r k", k=Y.shape[2]) / len(flat)
        moment[mine, -1] = rearrange(flat.mean(0), "(b k) -> b k", k=Y.shape[2])
    return moment


def _by_layer(layer: Tensor, layers: int) -> list[tuple[int, Tensor]]:
    """(layer, indices of its problems) for the layers that have any."""
    found = [(own, (layer == own).nonzero()[:, 0]) for own in range(layers)]
    return [(own, mine) for own, mine in found if len(mine)]


@dataclass(frozen=True)
class _Problem:
    scores: Tensor  # [L, n, r]; the column of ones for the bias is never written out, for rows fill the memory
    layer: Tensor  # [b]
    moment: Tensor  # [b, r + 1, K]
    ridge: Tensor  # [b, r + 1, 1]

    def take(self, index: Tensor) -> _Problem:
        return _Problem(self.scores, self.layer[index], self.moment[index], self.ridge[index])

    def evaluate(self, theta: Tensor) -> tuple[Tensor, Tensor]:
        """Objective [b] and gradient [b, r + 1, K] at theta."""
        log_total, expected = theta.new_empty(len(theta)), torch.empty_like(theta)
        n, K = self.scores.shape[1], theta.shape[2]
        for own, mine in _by_layer(self.layer, len(self.scores)):
            rows = self.scores[own]
            flat = rearrange(theta[mine], "b r k -> r (b k)")
            logits = torch.addmm(flat[-1], rows, flat[:-1]).view(n, len(mine), K)
            top = logits.amax(2, keepdim=True)
            probability = exp_(logits.sub_(top))  # in place: at this size memory traffic is the cost
            total = probability.sum(2, keepdim=True)
            log_total[mine] = (total.log() + top).mean((0, 2))
            probability /= total
            expected[mine, :-1] = rearrange(rows.mT @ probability.view(n, -1), "r (b k) -> b r k", k=K)
            expected[mine, -1] = probability.sum(0)
        pull = self.ridge * theta
        value = log_total - _dot(self.moment, theta) + _dot(pull, theta) / 2
        return value, expected.div_(n).sub_(self.moment).add_(pull)


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
    problem: Problems, theta: Tensor, value: Tensor, gradient: Tensor, direction: Tensor, slope: Tensor
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
