"""Exponential tilts of the top class: how much log weight to add to it, as a smooth function of its confidence.

A tilt of the family W_B adds tau(c) to the log weight of every answer in the class k* of a question whose B-confidence
is c (arXiv 2511.04869, Theorem 6), so that confidence becomes sigma(logit c + tau(c)). Fits tilts; holds nothing out.
"""

from __future__ import annotations

from functools import cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import CubicSpline
from scipy.special import expit, logit

from semcal.arrays import FloatArray, IntArray, in_unit_interval

CLIP = 1e-6
"""Exact masses are kept this far from 0 and 1: about the precision of a product of token probabilities in float32."""

PENALTIES = (np.inf, 1000.0, 100.0, 10.0, 1.0)
"""Ridge penalties to choose from, the heaviest first; infinite means no tilt."""

BEND = 10.0
"""How much more heavily the part of tau that is nonlinear in logit c is penalised than its linear part."""

KNOTS = logit(np.array([0.1, 0.3, 0.6, 0.85, 0.97]))
_CARDINAL = CubicSpline(KNOTS, np.eye(len(KNOTS))[:, ::2], bc_type="natural")
_NEWTON_STEPS, _HALVINGS, _TOLERANCE = 100, 40, 1e-8


def inside(confidence: ArrayLike, m: int | None = None) -> FloatArray:
    """Confidences `[...]` as probabilities strictly between 0 and 1, so that they have a logit.

    Shares k/m of m samples are taken as (k + 1/2)/(m + 1), as in `log_loss`; without m, values are clipped to
    [CLIP, 1 - CLIP].

    Raises:
        ValueError: a value outside [0, 1], or m below 1.
    """
    shares = in_unit_interval("confidence", confidence)
    if m is not None and m < 1:
        raise ValueError(f"m is {m}; expected a number of samples of at least 1, or None for exact masses")
    return np.clip(shares, CLIP, 1 - CLIP) if m is None else (shares * m + 0.5) / (m + 1)


def loss_change(confidence: ArrayLike, correct: ArrayLike, tau: ArrayLike) -> FloatArray:
    """By how much a tilt changes the log loss of the gold answer, in nats, elementwise; below 0 where it helps.

    -tau 1[gold in k*] + log(1 + c (e^tau - 1)), which is the binary cross-entropy of sigma(logit c + tau) minus that of
    c: whatever the answer space, a tilt of W_B acts on the log loss as a recalibration of c does on the binary one.

    Args:
        confidence: `[...]` in (0, 1), see `inside`.
        correct: `[...]` in [0, 1], whether the gold answer lies in the top class.
        tau: `[...]` log weight added to the top class, in nats.
    """
    return np.log1p(np.asarray(confidence) * np.expm1(tau)) - np.asarray(correct) * np.asarray(tau)


def _splines(logits: FloatArray) -> FloatArray:
    """1, logit c, and natural cubic splines that are 1 at every other of the KNOTS and 0 at the rest: `[..., p]`."""
    within = np.clip(logits, KNOTS[0], KNOTS[-1])
    bent = (
        _CARDINAL(within) + _CARDINAL(within, 1) * (logits - within)[..., None]
    )  # a straight line beyond the last knots
    return np.concatenate([np.ones_like(logits)[..., None], logits[..., None], bent], axis=-1)


@cache
def _to_basis() -> FloatArray:
    """The transform that makes the splines orthogonal and scales them, `[p, p]`."""
    midpoints = (np.arange(1000) + 0.5) / 1000
    triangle = np.linalg.qr(_splines(logit(midpoints)) / np.sqrt(len(midpoints))).R
    return np.linalg.inv(triangle) * np.where(np.arange(len(triangle)) < 2, 1.0, 1 / np.sqrt(BEND))


def basis(logits: ArrayLike) -> FloatArray:
    """The functions that tau is a sum of, at logit c: `[..., p]`, orthogonal under the uniform distribution of c.

    They span the natural cubic splines in logit c with the fixed KNOTS. The first two span the straight lines (a
    temperature is one) and have mean square 1 over c in [0, 1]; the bent ones have 1 / BEND, so that a ridge on the
    coefficients of tau is one on its mean square, BEND times as heavy on what is bent.
    """
    return _splines(np.asarray(logits, dtype=np.float64)) @ _to_basis()


def fit_tilts(logits: FloatArray, weight: FloatArray, correct: FloatArray, penalty: ArrayLike) -> FloatArray:
    """Ridge-penalised tilts, many at once: coefficients `[..., p]` of tau over `basis`.

    Each minimises, over its questions, the sum of `loss_change` plus penalty / 2 times the sum of squared coefficients
    (see `basis`), which is convex: Newton's method, steps halved until the objective no longer rises.

    Args:
        logits: `[L]` the distinct values of logit c, shared by all fits.
        weight: `[..., L]` number of questions of each fit at each value.
        correct: `[..., L]` sum of their correctness.
        penalty: `[...]` above 0 and finite, in questions: a quarter as many questions carry about as much information
            on tau.
    """
    columns = basis(logits)  # [L, p]
    squares = (columns[:, :, None] * columns[:, None, :]).reshape(len(logits), -1)  # [L, p p]
    leading, size = weight.shape[:-1], columns.shape[1]
    weight, correct = weight.reshape(-1, len(logits)), correct.reshape(-1, len(logits))
    ridge = np.broadcast_to(penalty, leading).reshape(-1, 1).astype(np.float64)
    confidence = expit(logits)

    def objective(rows: IntArray, beta: FloatArray) -> FloatArray:
        tau = beta @ columns.T
        change = weight[rows] * np.log1p(confidence * np.expm1(tau)) - correct[rows] * tau
        return change.sum(axis=-1) + (ridge[rows] / 2 * beta**2).sum(axis=-1)

    beta = np.zeros((len(weight), size))
    value, rounding = np.zeros(len(weight)), 1e-12 * weight.sum(axis=-1)
    moving = np.arange(len(weight))
    for _ in range(_NEWTON_STEPS):
        at = beta[moving]
        share = expit(logits + at @ columns.T)  # [moving, L]
        slope = (weight[moving] * share - correct[moving]) @ columns + ridge[moving] * at
        curvature = ((weight[moving] * share * (1 - share)) @ squares).reshape(-1, size, size)
        curvature += ridge[moving, :, None] * np.eye(size)
        step = np.linalg.solve(curvature, slope[..., None])[..., 0]
        for _ in range(_HALVINGS):
            trial = objective(moving, at - step)
            worse = ~(trial <= value[moving] + rounding[moving])
            if not worse.any():
                break
            step[worse] /= 2
        beta[moving], value[moving] = at - step, trial
        moving = moving[np.abs(step).max(axis=-1) > _TOLERANCE]
        if not len(moving):
            break
    return beta.reshape(*leading, size)
