"""How well some of a question's samples tell the others: estimates of the ceiling that assume no model of the noise.

Knows counts; nothing of activations or probes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import xlogy

from probes.targets.closed import ClassTarget
from semcal.calibration.estimators.thinning import thin
from semcal.seeds import keyed_generator


@dataclass(frozen=True)
class Reliability:
    """Agreement among the M samples of a question; NaN for M = 1.

    Attributes:
        correlation: of the class frequencies in two halves of the samples, over questions and classes, each class less
            its mean; NaN where nothing varies.
        stepped_up: the correlation that M samples would have with M others, 2r/(1 + r) (Spearman 1910, Brown 1910):
            the share of the variance of the frequencies that is not sampling noise, a ceiling in squared error.
        nats: what the other M − 1 samples, as a predictor of each sample, gain on the marginal. See `reliability`.
    """

    correlation: float
    stepped_up: float
    nats: float


def reliability(target: ClassTarget, *, repeats: int = 10, seed: int) -> Reliability:
    """Predict samples by the other samples of the same question: by halves, and each by all others.

    For `nats` the predictor is the frequencies of the other M − 1 samples, drawn towards the marginal as by a Dirichlet
    prior whose weight, one number for all questions, is chosen to predict best. It is a predictor as a probe is one,
    and on average none gains more than the true `π_x`, which gains E KL(π ‖ marginal). So nats / E KL(π̂ ‖ marginal) is
    a lower bound of the ceiling in expectation, up to the one number that was fitted. `noise_ceiling` infers the same
    quantity from rare classes and lies rather above it: the truth is between. The bound is loose, by 5 to 13 points at
    M = 50 on the distributions tried, because M − 1 samples tell π_x only roughly, and a probe may well exceed it.
    Halves would be looser still (12 to 22 points), so they serve for the correlation only.

    Args:
        target: frequencies of M samples; exact ones have correlations 1 and all of KL.
        repeats: random halvings that are averaged.
        seed: of the halvings.
    """
    Y = target.distribution
    if target.m is None:
        return Reliability(1.0, 1.0, float((xlogy(Y, Y) - xlogy(Y, Y.mean(0))).sum(1).mean()))
    if target.m < 2:
        return Reliability(float("nan"), float("nan"), float("nan"))
    counts = np.rint(Y * target.m).astype(np.int64)
    halves = thin(counts, target.m // 2, rng=keyed_generator(seed, "halves"), repeats=repeats)
    r = float(np.mean([_correlation(half, counts - half) for half in halves]))
    return Reliability(r, 2 * r / (1 + r) if r > -1 else float("nan"), _gain_of_others(counts, target.m))


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    a, b = (half / half.sum(1, keepdims=True) for half in (one, other))
    a, b = a - a.mean(0), b - b.mean(0)
    spread = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / spread) if spread > 0 else float("nan")


def _gain_of_others(counts: np.ndarray, m: int) -> float:
    """Nats that the other m − 1 samples gain on the marginal in predicting each sample, of counts [question, class]."""
    question, klass = counts.nonzero()
    drawn = counts[question, klass]
    marginal = (counts.sum(0) / counts.sum())[klass]

    def loss(log_weight: float) -> float:
        weight = np.exp(log_weight)
        q = (drawn - 1 + weight * marginal) / (m - 1 + weight)
        return -float((drawn * np.log(q)).sum()) / (m * len(counts))

    best = minimize_scalar(loss, bounds=(-7, 9), method="bounded").fun  # pyright: ignore[reportAttributeAccessIssue]
    return -float((drawn * np.log(marginal)).sum()) / (m * len(counts)) - float(best)


def sampling_variance(
    counts: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], *, repeats: int = 20, seed: int
) -> float:
    """Mean variance that M samples a question leave in a statistic of its counts (B-confidence, entropy).

    Halves are drawn apart; half their mean squared difference is the variance at M/2, half of which is taken for that
    at M. Exact for means, approximate for the maximum and the entropy of frequencies, whose bias depends on M too.

    Args:
        counts: [question, class], at least 2 samples each.
        statistic: counts [question, class] -> values [question].
        repeats: random halvings.
        seed: of them.

    Returns:
        NaN where a question has fewer than 2 samples.
    """
    smallest = int(counts.sum(1).min())
    if smallest < 2:
        return float("nan")
    halves = thin(counts, smallest // 2, rng=keyed_generator(seed, "sampling variance"), repeats=repeats)
    return float(np.mean([np.mean((statistic(half) - statistic(counts - half)) ** 2) for half in halves])) / 4
