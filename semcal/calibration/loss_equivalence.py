"""No loss left on the table: the test that can say so, since a loss gap estimated as 0 has no interval of its own."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike

from semcal.calibration.equivalence import shifted
from semcal.calibration.loss_gap import simulated_loss_gap
from semcal.calibration.null import Chances
from semcal.seeds import keyed_generator


def loss_equivalence(
    chances: Chances,
    estimate: float,
    *,
    delta: float,
    m: int | None = None,
    group: ArrayLike | None = None,
    folds: int = 5,
    draws: int = 200,
    seed: int,
) -> float:
    """One-sided p-value of "the loss gap is that of a model which is off by delta, evenly"; small means it is smaller.

    A cross-fitted loss gap is exactly 0 where no fold chose a tilt, and then a bootstrap has nothing to resample. So
    models are simulated that are over- or underconfident by delta, as in `equivalence`, and the p-value is the larger
    of the two shares of them that would have shown a loss gap as small as the estimate. Where n is too small to tell
    such a model's tilt from chance, that share is large.

    Args:
        chances: the run's calibrated twins, `exact_chances` or `exchange_chances`.
        estimate: the run's `loss_gap`, nats.
        delta: the smallest calibration error that counts.
        m, group, folds, seed: as given to `loss_gap`.
        draws: simulated data sets a direction; the smallest p-value is 1 / (1 + draws).
    """
    uniform = keyed_generator(seed, "loss equivalence").random((draws, len(chances.chance)))
    sure = float((chances.chance * chances.right[0] + (1 - chances.chance) * chances.wrong).mean())
    least = 0.0
    for shift, room in ((-delta, sure), (delta, 1 - sure)):
        chance = shifted(chances, shift)
        if chance is None:  # no such model exists, or samples so few that they cannot show it
            least = max(least, float(delta < room))
            continue
        confidence, correct = chances.simulate(uniform, chance)
        confidence = np.broadcast_to(confidence, correct.shape)
        null = simulated_loss_gap(confidence, correct, m=m, group=group, folds=folds, seed=seed)
        least = max(least, (1 + int((null.values <= estimate + 1e-12).sum())) / (1 + draws))
    return least
