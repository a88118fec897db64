"""How much any probe could explain at finite M: the ceiling, from above (sampling noise) and from below (how well some
of a question's samples predict the others).

Knows class distributions and counts; nothing of activations or probes.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import xlogy

from probes.targets.closed import ClassTarget
from semcal.calibration.estimators.finite_m import thin
from semcal.seeds import keyed_generator


@dataclass(frozen=True)
class Ceiling:
    """What a predictor that knows the true `π_x` would explain, from two sides; NaN where a side is not known.

    Attributes:
        high: share; approximate, rather too high (`noise_ceiling`).
        low: share; a lower bound in expectation, often a loose one (`reliability`).
        reliability: share of the variance of the frequencies that is not sampling noise: a ceiling in squared error,
            not in KL.
    """

    high: float = float("nan")
    low: float = float("nan")
    reliability: float = float("nan")


def ceiling_of(target: ClassTarget, baseline: float, *, seed: int) -> Ceiling:
    """Both sides of the ceiling of a target whose baseline is off by `baseline` nats; unknown where M does not tell the
    noise (`ClassTarget.fixed_classes`) or nothing is to be explained.

    Args:
        seed: of the halvings of `reliability`.
    """
    if not target.fixed_classes or not baseline > 0:
        return Ceiling()
    stepped_up, nats = reliability(target, seed=seed)
    return Ceiling(noise_ceiling(target, baseline), float(np.clip(nats / baseline, 0, 1)), stepped_up)


def noise_ceiling(target: ClassTarget, baseline: float) -> float:
    """Share of KL(π̂ ‖ marginal) that a predictor knowing the true `π_x` would explain: 1 − sampling noise / baseline.

    Approximate, and on the high side (see `sampling_noise`), so that a share of the ceiling is understated if anything.

    Args:
        target: frequencies π̂ and the number of samples M behind each; `m=None`: exact, and the ceiling is 1.
        baseline: mean KL(π̂ ‖ marginal) in nats.

    Returns:
        A share in [0, 1]; NaN if the baseline is 0 (nothing to explain) or M = 1 (noise and spread look alike).
    """
    if not baseline > 0:
        return float("nan")
    return float(np.clip(1 - sampling_noise(target) / baseline, 0.0, 1.0))


def sampling_noise(target: ClassTarget) -> float:
    """Estimate of the mean of E KL(π̂ ‖ π) over questions: what even the true π_x is off by, in nats.

    E KL(π̂ ‖ π) = H(π) − E H(π̂), exactly what the plug-in entropy falls short. The classical value (K − 1)/2M asks for
    the number K of possible classes; with the number observed it is far too small where many are rarer than 1/M. So
    H(π) is estimated from the classes seen once and twice, and from log-probabilities where they are known
    (`entropies`). From counts alone it still falls short for long tails: by 5 to 20 % at M = 50 on the distributions
    tried, by a half at M = 5. NaN where M does not tell the noise.
    """
    found = target.known_entropies
    return float((found.point - found.plug_in).mean()) if found is not None else float("nan")


def reliability(target: ClassTarget, *, seed: int) -> tuple[float, float]:
    """Predict samples by the other samples of the same question: by halves, and each by all others.

    The predictor of each sample is the frequencies of the other M − 1, drawn towards the marginal as by a Dirichlet
    prior whose weight, one number for all questions, is chosen to predict best. On average no predictor, and no probe,
    gains more than the true `π_x`, which gains E KL(π ‖ marginal). So nats / E KL(π̂ ‖ marginal) is
    a lower bound of the ceiling in expectation, and the truth lies between it and `noise_ceiling`. The bound is loose
    (by 5 to 13 points at M = 50 on the distributions tried), so a probe may exceed it. Halves would be looser still and
    serve for the correlation only.

    Args:
        target: frequencies of M samples; exact ones have correlation 1 and all of KL.
        seed: of the random halvings.

    Returns:
        The correlation that M samples would have with M others, 2r/(1 + r) for the mean correlation r of two halves
        over questions and classes, each class minus its mean (Spearman 1910, Brown 1910): a ceiling in squared error.
        And the nats that the other M − 1 samples gain on the marginal. NaN for M = 1 or where nothing varies.
    """
    Y = target.distribution
    if target.m is None:
        return 1.0, float((xlogy(Y, Y) - xlogy(Y, Y.mean(0))).sum(1).mean())
    if target.m < 2:
        return float("nan"), float("nan")
    counts = np.rint(Y * target.m).astype(np.int64)
    halves = thin(counts, target.m // 2, rng=keyed_generator(seed, "halves"), repeats=10)
    r = float(np.mean([_correlation(half, counts - half) for half in halves]))
    return 2 * r / (1 + r) if r > -1 else float("nan"), _gain_of_others(counts, target.m)


def _correlation(one: np.ndarray, other: np.ndarray) -> float:
    a, b = (half / half.sum(1, keepdims=True) for half in (one, other))
    a, b = a - a.mean(0), b - b.mean(0)
    spread = np.sqrt((a**2).sum() * (b**2).sum())
    return float((a * b).sum() / spread) if spread > 0 else float("nan")


def _gain_of_others(counts: np.ndarray, m: int) -> float:
    """Nats that the other m − 1 samples gain on the marginal in predicting each sample, of counts [question, class]."""
    question, label = counts.nonzero()
    drawn = counts[question, label]
    marginal = (counts.sum(0) / counts.sum())[label]

    def loss(log_weight: float) -> float:
        weight = np.exp(log_weight)
        q = (drawn - 1 + weight * marginal) / (m - 1 + weight)
        return -float((drawn * np.log(q)).sum()) / (m * len(counts))

    best = minimize_scalar(loss, bounds=(-7, 9), method="bounded").fun  # pyright: ignore[reportAttributeAccessIssue]
    return -float((drawn * np.log(marginal)).sum()) / (m * len(counts)) - float(best)
