"""Calibrated within delta: the test that can say yes, where a p-value against the null can only fail to say no."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from semcal.arrays import FloatArray, checked_pairs
from semcal.calibration.measures.kernel import Convention
from semcal.calibration.measures.smece import smece_batch
from semcal.calibration.nulls.null import Chances, exact_chances, exchange_chances
from semcal.seeds import keyed_generator
from semcal.semantics.confidence import confidences

STEPS = 7  # of the bisection for `within`


@dataclass(frozen=True)
class Equivalence:
    """Whether a calibration error of delta or more can be ruled out.

    Attributes:
        delta: the smallest error that would count as miscalibrated.
        p_value: one-sided, of "the calibration error is delta or more"; small means calibrated within delta.
        within: the smallest delta that the test accepts at level alpha; 1 where it accepts none.
        alpha: that level.
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
    counts: ArrayLike,
    gold: ArrayLike,
    *,
    delta: float = 0.05,
    alpha: float = 0.05,
    draws: int = 200,
    seed: int,
    convention: Convention = "relplot",
) -> Equivalence:
    """Test "the calibration error at M -> infinity is at least delta" against "it is less", at finite n and M.

    Models that are over- or underconfident by delta, evenly over all questions, are simulated as in `exchange_null`,
    with the chance of a right mode lowered or raised. The p-value is the larger of the two shares of simulated smECEs
    that do not exceed the observed one: two one-sided tests (Schuirmann 1987) with the smoothed error in place of a
    mean. An even shift is taken because noise around a residual of one sign cancels and leaves smECE near delta, while
    around residuals near 0 or of changing sign it adds to smECE; errors of other shapes are ruled out more easily.

    At small M the largest share overstates the largest probability, which hides underconfidence: then the test can only
    accept a large delta, and `exact_equivalence` on mass-based confidences says more.

    Args:
        counts, gold: as in `exchange_null`.
        delta: in (0, 1), chosen before looking.
        alpha: level.
        draws: simulated data sets in either direction; the smallest p-value is 1 / (1 + draws).
        seed: of the draws.
        convention: as in `smece`.

    Raises:
        ValueError: as `exchange_null`; delta or alpha outside (0, 1).
    """
    found = confidences(counts, gold)
    chances = exchange_chances(counts, gold)
    return equivalence_of(
        chances,
        found.plug_in,
        found.correct,
        delta=delta,
        alpha=alpha,
        draws=draws,
        seed=seed,
        convention=convention,
    )


def exact_equivalence(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    delta: float = 0.05,
    alpha: float = 0.05,
    draws: int = 200,
    seed: int,
    convention: Convention = "relplot",
) -> Equivalence:
    """The same where confidence is known without sampling noise, or nearly (`class_masses`).

    Args:
        confidence, correct: `[n]` in [0, 1].
        others: as in `equivalence`.
    """
    pairs = checked_pairs(confidence, correct)
    chances = exact_chances(pairs.confidence)
    return equivalence_of(
        chances,
        pairs.confidence,
        pairs.correct,
        delta=delta,
        alpha=alpha,
        draws=draws,
        seed=seed,
        convention=convention,
    )


def equivalence_of(
    chances: Chances,
    confidence: FloatArray,
    correct: FloatArray,
    *,
    delta: float,
    alpha: float,
    draws: int,
    seed: int,
    convention: Convention = "relplot",
) -> Equivalence:
    """The same for confidences `[n]` whose calibrated twins `chances` are known."""
    if not 0 < delta < 1 or not 0 < alpha < 1 or draws < 1:
        raise ValueError(f"delta and alpha must lie in (0, 1) and draws be positive, got {delta}, {alpha}, {draws}")
    observed = float(smece_batch(confidence, correct, convention=convention).values[0]) + 1e-12
    uniform = keyed_generator(seed, "equivalence").random((draws, len(confidence)))
    sure = float(confidence.mean())

    def p_value(size: float) -> float:
        """The chance of so small a smECE under an error of this size in the direction that hides it better."""
        least = 0.0
        for shift, room in ((-size, sure), (size, 1 - sure)):
            chance = _shifted(chances, shift)
            if chance is None:  # no such model exists, or samples so few that they cannot show it
                least = max(least, float(size < room))
            else:
                values = smece_batch(*chances.simulate(uniform, chance), convention=convention).values
                least = max(least, (1 + int((values <= observed).sum())) / (1 + draws))
        return least

    low, high = 0.0, min(1.0, 2 * observed + 0.05)
    while high < 1 and p_value(high) > alpha:
        low, high = high, min(1.0, 2 * high)
    for _ in range(STEPS):
        middle = (low + high) / 2
        low, high = (low, middle) if p_value(middle) <= alpha else (middle, high)
    return Equivalence(delta, p_value(delta), high, alpha)


def _shifted(chances: Chances, shift: float) -> FloatArray | None:
    """Chances `[n]` that raise mean accuracy by `shift`, each by as much as the ends of [0, 1] allow; None where there
    is no room for that (no such model exists)."""
    chance, correct = chances.chance, chances.right[1]
    able = chance > 0  # of tied modes none is right more often than by luck

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
