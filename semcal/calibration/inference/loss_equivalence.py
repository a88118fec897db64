"""No loss left on the table: the test that can say so, since a loss gap estimated as 0 has no interval of its own."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import logit, rel_entr

from semcal.calibration.inference.contrasts import contrast, leaves, plain_mean
from semcal.calibration.measures.loss_gap import LossGap
from semcal.calibration.measures.tilt import inside, loss_change


@dataclass(frozen=True)
class LossEquivalence:
    """Whether the loss gap of an even error of delta can be ruled out.

    Attributes:
        bound: nats that such a model leaves on the table, the smaller of under- and overconfident.
        p_value: one-sided, of "there is as much to recover"; small means less.
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
    """Hold the loss that tilts recover against what they would recover of a model that is off by delta.

    A cross-fitted loss gap is exactly 0 where no fold chose a tilt, which says nothing of what was too small to choose.
    So two tilts that fit nothing are tried: those that would mend a model which is overconfident, or underconfident,
    evenly by delta (by half of the room where c is nearer to 0 or 1 than 2 delta). Of such a model each recovers the
    mean KL between what is true and what is said, about delta² / 2c(1 - c) nats, and of a calibrated one it loses as
    much. The p-value is the largest of three one-sided ones: that either of the two, or the fitted tilt where there is
    one, recovers that much. Their errors are by grouped jackknife.

    Args:
        confidence, correct, m, group, seed: as given to `loss_gap`.
        gap: what it found.
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
    return LossEquivalence(min(bounds), float(np.max(p_values)))  # NaN where a single group leaves no error
