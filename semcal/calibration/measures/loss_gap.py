"""The loss gap: the log loss that the best tilt of the top class would recover, measured on questions held out.

A tilt of the family W_B adds tau(c) to the log weight of every answer in the class k* of a question whose B-confidence
is c, so that confidence becomes sigma(logit c + tau(c)). A model is B-confidence calibrated iff no tilt lowers its log
loss (arXiv 2511.04869, Theorem 6); otherwise the gap says, in nats, how far the loss is from its local optimum.
"""

from dataclasses import dataclass
from functools import cache

import numpy as np
from numpy.typing import ArrayLike
from scipy.interpolate import CubicSpline
from scipy.special import expit, logit

from semcal.arrays import FloatArray, IntArray, checked_pairs, in_unit_interval
from semcal.calibration.inference.bootstrap import bootstrap_interval, folds_by_group
from semcal.calibration.nulls.null import Null
from semcal.calibration.resampling import Resampling

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


CELL = 0.05  # of logit c, in nats: tilts are fitted to questions counted in cells of this width
_CELLS = 200  # of them occupied, or so
BATCH_ELEMENTS = 2**22  # tilts times cells held at once, 32 MB an array


@dataclass(frozen=True)
class LossGap:
    """Log loss that tilting the top class would recover, in nats per question, and the tilt that does it.

    Attributes:
        estimate: mean fall of the log loss of held-out questions under the tilt fitted on the others; exactly 0 where
            no fold chose a tilt, slightly below 0 where one was chosen in vain.
        low, high: percentile interval over questions (or groups), the fitted tilts taken as given.
        grid: `[G]` confidences.
        tilt: `[G]` tau(c) in nats, fitted on all questions; below 0 the top class deserves less than it gets
            (overconfident at c), above 0 more. 0 everywhere if no tilt was worth it.
        mean_tilt: mean of `tilts`: below 0 overconfident, above 0 underconfident over the questions asked.
        tilts: `[n]` tau of each question, from the fold that held it out.
        drops: `[n]` fall of each question's loss, whose mean is the estimate; pair them to compare two runs.
        penalties: ridge penalty chosen for each fold, infinite for no tilt.
    """

    estimate: float
    low: float
    high: float
    grid: FloatArray
    tilt: FloatArray
    mean_tilt: float
    tilts: FloatArray
    drops: FloatArray
    penalties: tuple[float, ...]


def loss_gap(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    m: int | None = None,
    group: ArrayLike | None = None,
    folds: int = 5,
    resampling: Resampling = Resampling(),
) -> LossGap:
    """What the best tilt of W_B would recover of a model's log loss, cross-fitted by group.

    Whole groups are held out, fold by fold. Tau is fitted on the other folds (`tilt.basis`, ridge towards no tilt), its
    penalty chosen by leaving each of those out in turn, no tilt being a choice; then the fall of the loss is measured
    on the fold held out. A fitted tilt recovers at most what the best one does, so the estimate lies below the loss gap
    on average, most of all where n is too small to tell a tilt from chance, and approaches it as n grows. Tau is
    smooth in logit c: it misses a gap that changes sign within a tenth of confidence and cancels out.

    Confidences that are shares of samples are noisy, and the best tilt shrinks them: a calibrated model then has a loss
    gap above 0 too. `simulated_loss_gap` says how large.

    Args:
        confidence: `[n]` B-confidence.
        correct: `[n]` in [0, 1], whether the gold answer lies in the top class; a tie-break's fraction is its weight.
        m: samples per question, where confidences are shares of samples (taken as (k + 1/2)/(m + 1)); None for exact
            masses (clipped to [CLIP, 1 - CLIP]).
        group: `[n]` labels of questions that depend on one another: held out and resampled together.
        folds: at least 3, for the penalty needs 2 to choose on.
        resampling: of the interval; its seed also deals the folds.

    Raises:
        ValueError: as `checked_pairs`; fewer than 3 folds; fewer groups than folds.
    """
    pairs = checked_pairs(confidence, correct)
    if pairs.confidence.ndim != 1:
        raise ValueError(
            f"loss_gap expects one row, got shape {pairs.confidence.shape}; use simulated_loss_gap for many"
        )
    held = inside(pairs.confidence, m)
    fold = folds_by_group(group, len(held), folds, seed=resampling.seed)
    tilts, penalties = held_out_tilts(held[None], pairs.correct[None], fold)
    drops = -loss_change(held, pairs.correct, tilts[0])

    def mean(values: FloatArray, *, weight: FloatArray) -> FloatArray:
        return (values * weight).sum(axis=-1) / weight.sum(axis=-1)

    interval = bootstrap_interval(mean, [drops], group=group, resampling=resampling)
    grid = np.linspace(0.01, 0.99, 99)
    beta, _ = _fit_choosing_penalty(*_in_cells(held[None], pairs.correct[None], fold))
    return LossGap(
        interval.estimate,
        interval.low,
        interval.high,
        grid,
        basis(logit(grid)) @ beta[0],
        float(tilts.mean()),
        tilts[0],
        drops,
        tuple(penalties[0].tolist()),
    )


def simulated_loss_gap(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    m: int | None = None,
    group: ArrayLike | None = None,
    folds: int = 5,
    seed: int = 0,
) -> Null:
    """The loss gap of simulated calibrated models: what finite M and n alone would show, to compare `loss_gap` with.

    Args:
        confidence: `[null_draws, n]` confidences of simulated models, calibrated by construction.
        correct: `[null_draws, n]` their correctness.
        m, group, folds, seed: as given to `loss_gap`, so that both split the questions alike.

    Returns:
        Mean, quantile, excess and p-value as for smECE; its values are the estimates of `loss_gap`, in nats.

    Raises:
        ValueError: as `loss_gap`; arrays that are not [null_draws, n].
    """
    pairs = checked_pairs(confidence, correct)
    if pairs.confidence.ndim != 2:
        raise ValueError(f"simulated_loss_gap expects [null_draws, n], got shape {pairs.confidence.shape}")
    held = inside(pairs.confidence, m)
    draws, n = held.shape
    fold = folds_by_group(group, n, folds, seed=seed)
    step = max(1, BATCH_ELEMENTS // (max(n, _CELLS * folds) * len(PENALTIES)))
    values = np.empty(draws)
    for start in range(0, draws, step):
        block = slice(start, start + step)
        tilts, _ = held_out_tilts(held[block], pairs.correct[block], fold)
        values[block] = -loss_change(held[block], pairs.correct[block], tilts).mean(axis=-1)
    return Null.of(values)


def _in_cells(confidence: FloatArray, correct: FloatArray, fold: IntArray) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Questions counted in cells of logit c: the cells `[L]`, and number and correctness in them `[draw, fold, L]`.

    Only for fitting, whose cost then hardly grows with n; tilts are applied, and losses taken, at c itself.
    """
    cells, cell = np.unique(np.round(logit(confidence) / CELL), return_inverse=True)
    shape = (len(confidence), int(fold.max()) + 1, len(cells))
    slot = (np.arange(shape[0])[:, None] * shape[1] + fold) * shape[2] + cell.reshape(confidence.shape)
    weight, right = (
        np.bincount(slot.ravel(), values.ravel(), minlength=np.prod(shape)).reshape(shape).astype(np.float64)
        for values in (np.ones(confidence.shape), correct)
    )
    return cells * CELL, weight, right


def _fit_choosing_penalty(logits: FloatArray, weight: FloatArray, correct: FloatArray) -> tuple[FloatArray, FloatArray]:
    """Tilts `[draw, p]` fitted on all folds given, and their penalties `[draw]`, chosen by leaving each fold out.

    The penalty is the one of least held-out loss; but there is no tilt (coefficients 0, penalty infinite) unless that
    loss falls by more than its standard error (Breiman et al. 1984, the one-standard-error rule). The error is taken
    over questions, a fractional correctness being a chance of being right, or over folds where that is larger, as it
    is where questions of a group are related. Without the rule a calibrated model is tilted in vain in 4 of 10 folds.

    Args:
        logits: `[L]` middles of the cells.
        weight, correct: `[draw, fold, L]` number of questions and sum of correctness.
    """
    whole, right = weight.sum(axis=1), correct.sum(axis=1)  # [draw, L]
    finite = np.array(PENALTIES[1:])
    others = np.broadcast_to(whole[:, None] - weight, (len(finite), *weight.shape))  # [penalty, draw, fold, L]
    tau = fit_tilts(logits, others, np.broadcast_to(right[:, None] - correct, others.shape), finite[:, None, None])
    tau = tau @ basis(logits).T
    wrong = np.log1p(expit(logits) * np.expm1(tau))  # change of the loss where wrong; where right, minus tau
    by_fold = (weight * wrong - correct * tau).sum(axis=-1)  # [penalty, draw, fold]
    change = by_fold.sum(axis=-1)
    square = (weight * wrong**2 + correct * tau * (tau - 2 * wrong)).sum(axis=(-1, -2))
    variance = square - change**2 / whole.sum(axis=-1)
    error = np.sqrt(np.maximum(variance, by_fold.shape[-1] * by_fold.var(axis=-1, ddof=1)))

    best = np.argmin(change, axis=0)
    worth_it = np.take_along_axis(change + error, best[None], axis=0)[0] < 0
    beta = fit_tilts(logits, whole, right, finite[best])
    return np.where(worth_it[:, None], beta, 0.0), np.where(worth_it, finite[best], np.inf)


def held_out_tilts(confidence: FloatArray, correct: FloatArray, fold: IntArray) -> tuple[FloatArray, FloatArray]:
    """Tau of each question by the tilt fitted without its fold, `[draw, n]`, and the penalties `[draw, fold]`.

    Args:
        confidence: `[draw, n]` in (0, 1).
        correct: `[draw, n]`.
        fold: `[n]` in [0, 3) or more.
    """
    cells, weight, right = _in_cells(confidence, correct, fold)
    columns = basis(logit(confidence))  # [draw, n, p]
    tilts, penalties = np.empty(confidence.shape), np.empty(weight.shape[:2])
    for held_out in range(weight.shape[1]):
        rest = np.delete(weight, held_out, axis=1), np.delete(right, held_out, axis=1)
        beta, penalties[:, held_out] = _fit_choosing_penalty(cells, *rest)
        questions = fold == held_out
        tilts[:, questions] = np.einsum("dp,dqp->dq", beta, columns[:, questions])
    return tilts, penalties
