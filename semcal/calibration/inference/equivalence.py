"""Calibrated within delta, and no loss left to recover: tests that can say yes, where a p-value against the null can
only fail to say no."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logit, rel_entr

from semcal.arrays import FloatArray
from semcal.calibration.inference.paired import Leaves, contrast, leaves, plain_mean
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
    correct: FloatArray,
    *,
    delta: float = 0.05,
    resampling: Resampling = Resampling(null_draws=200),
    convention: Convention = "relplot",
) -> Equivalence:
    """Test "the calibration error of the top classes is at least delta" against "it is smaller", at finite n and M.

    The top classes are those of the M samples. With few samples they are often not the most probable classes, and an
    error of the latter is then diluted: what is ruled out at small M is less.

    The error is measured from what a calibrated model would be right, `Chances.expected`, rather than from the
    confidence itself: at finite M the largest share overstates the largest probability, and an underconfident model
    could hide in that. Models that are over- or underconfident by delta, evenly over all questions, are simulated, with
    the chance of a right mode lowered or raised. The p-value is the larger of the two shares of simulated smECEs that
    do not exceed the observed one: two one-sided tests (Schuirmann 1987) with the smoothed error in place of a mean. An
    even shift is used because noise around a residual of one sign cancels and leaves smECE near delta, while around
    residuals near 0 or of changing sign it adds to smECE; errors of other shapes are ruled out more easily.

    Args:
        chances: the calibrated twins of the questions, see `chances_of`.
        correct: `[n]` in [0, 1], of the same questions and confidence.
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
    uniform = chances.uniforms(draws, keyed_generator(resampling.seed, "equivalence"))

    def p_value(size: float) -> float:
        return p_of_error(chances, correct, size, uniform, convention=convention)

    low, high = 0.0, min(1.0, 2 * error_from_expected(chances, correct, convention=convention) + 0.05)
    while high < 1 and p_value(high) > alpha:
        low, high = high, min(1.0, 2 * high)
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if p_value(middle) <= alpha else (middle, high)
    return Equivalence(delta, p_value(delta), high, alpha)


def error_from_expected(chances: Chances, correct: FloatArray, *, convention: Convention = "relplot") -> float:
    """smECE of `correct` against what a calibrated model would be right (`Chances.expected`)."""
    return float(smece_batch(chances.expected, correct, convention=convention).values[0])


def p_of_error(
    chances: Chances, correct: FloatArray, size: float, uniform: FloatArray, *, convention: Convention = "relplot"
) -> float:
    """The chance of an error as small as observed under an even one of this size, in the direction that hides it
    better; arguments as `equivalence` and `off_by`."""
    observed = error_from_expected(chances, correct, convention=convention) + 1e-12
    sure, least = float(chances.expected.mean()), 0.0
    for shift, room in ((-size, sure), (size, 1 - sure)):
        values = off_by(chances, shift, uniform, convention=convention)
        if values is None:  # no such model exists, or there are too few samples to show it
            least = max(least, float(size < room))
        else:
            least = max(least, (1 + int((values <= observed).sum())) / (1 + len(values)))
    return least


def off_by(
    chances: Chances, shift: float, uniform: FloatArray, *, convention: Convention = "relplot"
) -> FloatArray | None:
    """`error_from_expected` `[draws]` of simulated models that are right more often than calibrated ones by `shift`.

    Where the observed gold answers are among the draws behind the chances, the chances have moved by 1 / (M + 1) of the
    error; the rest of it is simulated.

    Args:
        chances: the calibrated twins.
        shift: in [-1, 1], even over questions; below 0 the models are overconfident.
        uniform: `[draws, n]`, see `Chances.uniforms`.
        convention: as in `smece`.

    Returns:
        None where no such model exists, or there are too few samples to show it.
    """
    chance = _shifted(chances, shift if chances.m is None else shift * chances.m / (chances.m + 1))
    if chance is None:
        return None
    _, correct = chances.simulate(uniform, chance)
    return smece_batch(chances.expected, correct, convention=convention).values


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


@dataclass(frozen=True)
class LossMargins:
    """How much less tilts recover than they would for a model that is off by delta, in nats; below 0 is less.

    Attributes:
        bound: nats that such a model leaves to recover, the smaller of under- and overconfident.
        tilts: the tilt that would fix overconfidence, the one that would fix underconfidence, the fitted one.
        fitted: whether any fold chose a tilt; if none did, the fitted one says nothing.
    """

    bound: float
    tilts: tuple[Leaves, Leaves, Leaves]
    fitted: bool


def loss_margins(
    confidence: ArrayLike,
    correct: ArrayLike,
    gap: LossGap,
    *,
    delta: float,
    m: int | None = None,
    group: ArrayLike | None = None,
    stratum: str = "",
    seed: int,
) -> LossMargins:
    """What tilts recover minus what they would recover for a model that is off by delta, question blocks left out.

    A cross-fitted loss gap is exactly 0, without an interval, where no fold chose a tilt; that does not say what was
    too small to choose. So two tilts that are not fitted are tried: those that would fix a model which is
    overconfident, or underconfident, evenly by delta (by half of the room where c is nearer to 0 or 1 than 2 delta).
    For such a model each recovers the mean KL between what is true and what is said, about delta² / 2c(1 - c) nats, and
    for a calibrated one it loses as much.

    Args:
        confidence, correct, m, group, seed: as given to `loss_gap`.
        gap: what `loss_gap` found.
        delta: in (0, 1/2), the smallest calibration error that counts.
        stratum: name of the questions, see `Leaves`.
    """
    said, right = inside(np.asarray(confidence, dtype=float), m), np.asarray(correct, dtype=float)

    def margin(recovered: FloatArray, bound: float) -> Leaves:
        return leaves(plain_mean, recovered, right, stratum=stratum, group=group, seed=seed).minus(bound)

    even, bounds = [], []
    for sign, room in ((-1, said), (1, 1 - said)):
        truth = said + sign * np.minimum(delta, room / 2)
        bounds.append(float((rel_entr(truth, said) + rel_entr(1 - truth, 1 - said)).mean()))
        even.append(margin(-loss_change(said, right, logit(truth) - logit(said)), bounds[-1]))
    tilts = (*even, margin(gap.drops, min(bounds)))
    return LossMargins(min(bounds), tilts, bool(np.ptp(gap.drops) > 0))  # pyright: ignore[reportArgumentType]


def loss_equivalence(cells: Sequence[LossMargins]) -> LossEquivalence:
    """Compare the loss that tilts recover, on average over cells, with what they would for models off by delta.

    The p-value is the largest of three one-sided ones: that either of the tilts which are not fitted, or the fitted
    ones where there are any, recover that much. Their errors come from a grouped jackknife; NaN if a single group
    leaves none.

    Raises:
        ValueError: no cells.
    """
    kinds = (0, 1, 2) if any(cell.fitted for cell in cells) else (0, 1)
    p = [contrast([(1 / len(cells), cell.tilts[kind]) for cell in cells]).p_below(0.0) for kind in kinds]
    return LossEquivalence(float(np.mean([cell.bound for cell in cells])), float(np.max(p)))
