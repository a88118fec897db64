"""Calibrated within delta, and no loss left to recover: tests that can say yes, where a p-value against the null can
only fail to say no."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logit, rel_entr

from semcal.arrays import FloatArray
from semcal.calibration.inference.paired import contrast, leaves, plain_mean
from semcal.calibration.measures.kernel import Convention
from semcal.calibration.measures.loss_gap import LossGap, inside, loss_change
from semcal.calibration.measures.smece import smece_batch
from semcal.calibration.nulls.twins import Chances
from semcal.calibration.resampling import Resampling
from semcal.seeds import keyed_generator

STEPS = 7  # of the bisection for `within`


@dataclass(frozen=True)
class Equivalence:
    """Whether a calibration error of delta or more can be ruled out.

    Attributes:
        delta: the smallest error that would count as miscalibrated.
        p_value: one-sided, of "the calibration error is delta or more"; small means calibrated within delta.
        within: the smallest delta that the test accepts at level alpha; 1 if it accepts none.
        alpha: the level of the test.
    """

    delta: float
    p_value: float
    within: float
    alpha: float

    @property
    def holds(self) -> bool:
        """Calibrated within delta, at level alpha."""
        return self.p_value <= self.alpha


def equivalence(
    chances: Chances,
    confidence: FloatArray,
    correct: FloatArray,
    *,
    delta: float = 0.05,
    resampling: Resampling = Resampling(null_draws=200),
    convention: Convention = "relplot",
) -> Equivalence:
    """Test "the calibration error at M -> infinity is at least delta" against "it is smaller", at finite n and M.

    Models that are over- or underconfident by delta, evenly over all questions, are simulated as in the null, with the
    chance of a right mode lowered or raised. The p-value is the larger of the two shares of simulated smECEs that do
    not exceed the observed one: two one-sided tests (Schuirmann 1987) with the smoothed error in place of a mean. An
    even shift is used because noise around a residual of one sign cancels and leaves smECE near delta, while around
    residuals near 0 or of changing sign it adds to smECE; errors of other shapes are ruled out more easily.

    At small M the largest share overstates the largest probability, which hides underconfidence: then the test can only
    accept a large delta, and confidence by mass says more.

    Args:
        chances: the calibrated twins of the questions, see `chances_of`.
        confidence, correct: `[n]` in [0, 1], by mass or as shares of samples, as the chances are.
        delta: in (0, 1), chosen before looking.
        resampling: `null_draws` data sets are simulated in either direction, so the smallest p-value is
            1 / (1 + null_draws); alpha is 1 - level.
        convention: as in `smece`.

    Raises:
        ValueError: delta outside (0, 1).
    """
    draws, alpha = resampling.null_draws, resampling.alpha
    if not 0 < delta < 1:
        raise ValueError(f"delta must lie in (0, 1), got {delta}")
    observed = float(smece_batch(confidence, correct, convention=convention).values[0])
    uniform = chances.uniforms(draws, keyed_generator(resampling.seed, "equivalence"))

    def p_value(size: float) -> float:
        return p_of_error(chances, observed, size, uniform, convention=convention)

    low, high = 0.0, min(1.0, 2 * observed + 0.05)
    while high < 1 and p_value(high) > alpha:
        low, high = high, min(1.0, 2 * high)
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if p_value(middle) <= alpha else (middle, high)
    return Equivalence(delta, p_value(delta), high, alpha)


def p_of_error(
    chances: Chances, observed: float, size: float, uniform: FloatArray, *, convention: Convention = "relplot"
) -> float:
    """The chance of a smECE as small as `observed` under an even error of this size, in the direction that hides it
    better; arguments as `off_by`."""
    sure, least = float(chances.wrong.mean()), 0.0
    for shift, room in ((-size, sure), (size, 1 - sure)):
        values = off_by(chances, shift, uniform, convention=convention)
        if values is None:  # no such model exists, or there are too few samples to show it
            least = max(least, float(size < room))
        else:
            least = max(least, (1 + int((values <= observed + 1e-12).sum())) / (1 + len(values)))
    return least


def off_by(
    chances: Chances, shift: float, uniform: FloatArray, *, convention: Convention = "relplot"
) -> FloatArray | None:
    """smECE `[draws]` of simulated models whose accuracy differs from that of calibrated ones by `shift`, evenly.

    Args:
        chances: the calibrated twins.
        shift: in [-1, 1]; below 0 the models are overconfident.
        uniform: `[draws, n]`, see `Chances.uniforms`.
        convention: as in `smece`.

    Returns:
        None where no such model exists, or there are too few samples to show it.
    """
    chance = _shifted(chances, shift)
    return None if chance is None else smece_batch(*chances.simulate(uniform, chance), convention=convention).values


def _shifted(chances: Chances, shift: float) -> FloatArray | None:
    """Chances `[n]` that raise mean accuracy by `shift`, each by as much as the ends of [0, 1] allow; None if there is
    no room for that (no such model exists)."""
    chance, correct = chances.chance, chances.right[1]
    able = chance > 0  # none of several tied modes is right more often than by luck

    def moved(by: float) -> FloatArray:
        return np.where(able, np.clip(chance + by, 0, 1), 0.0)

    def change(by: float) -> float:
        return abs(float((correct * (moved(by) - chance)).mean()))

    sign = float(np.sign(shift))
    if change(sign) < abs(shift):
        return None
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (middle, high) if change(sign * middle) < abs(shift) else (low, middle)
    return moved(sign * high)


@dataclass(frozen=True)
class LossEquivalence:
    """Whether the loss gap of an even error of delta can be ruled out.

    Attributes:
        bound: nats that such a model leaves to recover, the smaller of under- and overconfident.
        p_value: one-sided, of "there is as much to recover"; small means there is less.
    """

    bound: float
    p_value: float


def loss_equivalence(
    confidence: ArrayLike,
    correct: ArrayLike,
    gap: LossGap,
    *,
    delta: float,
    m: int | None = None,
    group: ArrayLike | None = None,
    seed: int,
) -> LossEquivalence:
    """Compare the loss that tilts recover with what they would recover for a model that is off by delta.

    A cross-fitted loss gap is exactly 0, without an interval, where no fold chose a tilt; that does not say what was
    too small to choose. So two tilts that are not fitted are tried: those that would fix a model which is
    overconfident, or underconfident, evenly by delta (by half of the room where c is nearer to 0 or 1 than 2 delta).
    For such a model each recovers the mean KL between what is true and what is said, about delta² / 2c(1 - c) nats, and
    for a calibrated one it loses as much. The p-value is the largest of three one-sided ones: that either of the two,
    or the fitted tilt where there is one, recovers that much. Their errors come from a grouped jackknife.

    Args:
        confidence, correct, m, group, seed: as given to `loss_gap`.
        gap: what `loss_gap` found.
        delta: in (0, 1/2), the smallest calibration error that counts.
    """
    said, right = inside(np.asarray(confidence, dtype=float), m), np.asarray(correct, dtype=float)
    recovered, bounds = [], []
    for sign, room in ((-1, said), (1, 1 - said)):
        truth = said + sign * np.minimum(delta, room / 2)
        bounds.append(float((rel_entr(truth, said) + rel_entr(1 - truth, 1 - said)).mean()))
        recovered.append(-loss_change(said, right, logit(truth) - logit(said)))
    against = list(zip(recovered, bounds, strict=True))
    if np.ptp(gap.drops) > 0:
        against.append((gap.drops, min(bounds)))
    p_values = []
    for values, bound in against:
        found = leaves(plain_mean, values, right, stratum="", group=group, seed=seed)
        p_values.append(contrast([(1.0, found)]).p_below(bound))
    return LossEquivalence(min(bounds), float(np.max(p_values)))  # NaN if a single group leaves no error
