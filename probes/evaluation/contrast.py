"""Two runs on the same questions: is the class distribution of one more predictable than that of the other?

Knows held-out losses; nothing of models. Both runs need the same questions in the same order, the same M and the same
seed of folds.
"""

from collections.abc import Sequence
from math import nan

import numpy as np
import pandas as pd

from probes.evaluation.result import Evaluation
from semcal.calibration.inference.paired import Difference, difference_of, holm
from semcal.calibration.resampling import Resampling

_KEYS = ["rung", "target", "layer", "measure"]


def compare_explained(
    a: Evaluation,
    b: Evaluation,
    *,
    group: Sequence[str],
    of_ceiling: bool = True,
    resampling: Resampling,
) -> pd.DataFrame:
    """The difference b − a in the share explained, one row for each rung, target and layer that both have.

    Two models differ in how flat their distributions are, and the noise of M samples drowns flat ones sooner: hence the
    shares of each run's own ceiling, which is taken as known. Interval and p-value are those of
    `paired_difference`: the same resampled groups for both runs, the probes not refitted; `p_value`
    is of "the shares are equal", `p_exchange` of "the runs are alike". `p_holm` is adjusted over the rows.

    Args:
        a, b: of the same questions in the same order.
        group: [question].
        of_ceiling: False compares the shares explained themselves.
        resampling: as in `paired_difference`.

    Returns:
        Columns rung, target, layer, measure, a, b, difference, low, high, p_value, p_holm, p_exchange, n. NaN where a
        run has nothing to explain, or no ceiling.

    Raises:
        ValueError: different numbers of questions, or no common row.
    """
    found = explained_differences(a, b, group=group, of_ceiling=of_ceiling, resampling=resampling)
    rows = [
        dict(zip(_KEYS, key, strict=True))
        | {"a": d.a, "b": d.b, "difference": d.estimate, "low": d.low, "high": d.high}
        | {"p_value": d.p_value, "p_exchange": d.p_exchange, "n": len(group)}
        for key, d in found.items()
    ]
    frame = pd.DataFrame(rows)
    frame.insert(frame.columns.get_loc("p_exchange"), "p_holm", holm(frame["p_value"]))  # pyright: ignore[reportArgumentType]
    return frame


def explained_differences(
    a: Evaluation,
    b: Evaluation,
    *,
    group: Sequence[str],
    of_ceiling: bool = True,
    resampling: Resampling,
) -> dict[tuple[str, str, str, str], Difference]:
    """(rung, target, layer, measure) -> the difference b − a; see `compare_explained`.

    Raises:
        ValueError: different numbers of questions, or no common row.
    """
    if not len(a.baseline) == len(b.baseline) == len(group):
        raise ValueError(
            f"{len(a.baseline)} and {len(b.baseline)} questions and {len(group)} group labels; compare runs "
            "on the same questions"
        )
    places = [{tuple(row): at for at, row in enumerate(one.frame[_KEYS].to_numpy().tolist())} for one in (a, b)]
    common = [key for key in places[0] if key in places[1]]
    if not common:
        raise ValueError("the two evaluations have no rung, target and layer in common; evaluate both at the same ones")
    found = {}
    for key in common:
        pairs = [_gain_and_room(one, rows[key], of_ceiling) for one, rows in zip((a, b), places, strict=True)]
        found[key] = _difference(pairs[0], pairs[1], group, resampling)
    return found


def _gain_and_room(of: Evaluation, row: int, of_ceiling: bool) -> tuple[np.ndarray, np.ndarray] | None:
    """What the probe gains on the baseline, and could gain: [question] each; None if that is zero or unknown."""
    reachable = float(of.frame["ceiling"].iloc[row]) if of_ceiling else 1.0
    if not (reachable > 0 and of.baseline.sum() > 0):
        return None
    return of.baseline - of.losses[row], reachable * of.baseline


def _difference(
    a: tuple[np.ndarray, np.ndarray] | None,
    b: tuple[np.ndarray, np.ndarray] | None,
    group: Sequence[str],
    resampling: Resampling,
) -> Difference:
    if a is None or b is None:
        return Difference(nan, nan, nan, nan, nan, 0, nan)
    return difference_of(_share, (*a, *b), group=list(group), resampling=resampling)


def _share(gain: np.ndarray, room: np.ndarray, *, weight: np.ndarray | None = None) -> np.ndarray:
    """Σ gain / Σ room over the last axis, resamples or swaps before it."""
    if weight is None:
        weight = np.ones(gain.shape[-1])
    return (weight * gain).sum(-1) / (weight * room).sum(-1)
