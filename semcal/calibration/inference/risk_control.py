"""When to answer: a threshold on confidence with a guarantee about the wrong answers of questions to come.

Two guarantees, both for any confidence, any model and any number of questions, as long as the groups of questions
calibrated on and those to come are exchangeable. Knows confidence, correctness and groups.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from semcal.arrays import FloatArray, IntArray
from semcal.errors import UserError

Guarantee = Literal["of the answers", "of the questions"]
GRID = np.arange(1, 101) / 100  # thresholds that may be chosen, fixed before looking
_STARTS = (1.0, 0.9, 0.7, 0.5, 0.3)  # of the sequences of tests
_BETS = (np.arange(20) + 0.5) / 20  # as shares of the largest


@dataclass(frozen=True)
class Gate:
    """A threshold, and what it does to the questions it was found on.

    Attributes:
        guarantee: "of the answers": with probability 1 − delta over the questions calibrated on, at most `risk` of the
            answers that are given are wrong. "of the questions": the expected share of questions that are answered
            wrongly is at most `risk`.
        risk: in (0, 1).
        delta: in (0, 1); 0 for "of the questions", which holds in expectation.
        threshold: answer where confidence is at least this; infinite if no threshold is known to keep the risk.
        coverage: share of questions answered.
        wrong: share of the answers given that are wrong; NaN if none is given.
    """

    guarantee: Guarantee
    risk: float
    delta: float
    threshold: float
    coverage: float
    wrong: float


def gate(
    confidence: ArrayLike,
    correct: ArrayLike,
    group: Sequence[str],
    *,
    risk: float,
    delta: float = 0.1,
    guarantee: Guarantee = "of the answers",
) -> Gate:
    """The lowest threshold that is known to keep the risk, so that most questions are answered.

    "of the questions" is conformal risk control (Angelopoulos et al. 2022, arXiv 2208.02814): the share of questions
    answered wrongly falls as the threshold rises, and the lowest threshold is taken at which (L + 1) / (G + 1) is at
    most the risk, L the sum over G groups of that share.

    "of the answers" is no such loss, for a higher threshold may have a larger share of wrong answers. Thresholds are
    tested from high to low until one fails (learn then test, Angelopoulos et al. 2021, arXiv 2110.01052), from five
    starting points at delta / 5 each. The test bets against "more than `risk` of the answers are wrong" (Waudby-Smith
    and Ramdas 2024), with the mean over a group as one observation, which is exact at any number of groups.

    Args:
        confidence, correct: [n] in [0, 1].
        group: [n] labels; questions of one group may depend on each other. Both guarantees are about a question drawn
            from a group drawn at random.
        risk, delta: in (0, 1).

    Raises:
        ValueError: shapes that disagree, or values outside their ranges.
        UserError: fewer groups than the guarantee needs even if every answer were right, with the number.
    """
    sure, right = np.asarray(confidence, float), np.asarray(correct, float)
    if sure.shape != right.shape or sure.shape != (len(group),) or not len(group):
        raise ValueError(f"expected [n] confidence, correct and group, got {sure.shape}, {right.shape}, {len(group)}")
    for name, values in (("confidence", sure), ("correct", right)):
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"{name} must lie in [0, 1]")
    if not (0 < risk < 1 and 0 < delta < 1):
        raise ValueError(f"risk and delta must lie in (0, 1), got {risk} and {delta}")
    code, size = np.unique(np.asarray(group), return_inverse=True, return_counts=True)[1:]
    share = 1 / size[code]  # [n] of its group
    groups, needed = len(size), fewest_groups(risk, delta, guarantee)
    if groups < needed:
        raise UserError(
            f"{groups} groups of questions cannot show a risk of {risk:g} {guarantee}: were every answer right, "
            f"it would take {needed}; ask more questions, or allow a larger risk"
        )
    answered = sure >= GRID[:, None] - 1e-12  # [threshold, n]
    if guarantee == "of the questions":
        kept = (answered @ (share * (1 - right)) + 1) / (groups + 1) <= risk
        lowest = int(np.argmax(kept)) if kept.any() else None
        delta = 0.0
    else:
        lowest = _lowest(answered, share * (right - (1 - risk)), code, risk, delta)
    return _gate(guarantee, risk, delta, lowest, answered, right)


def fewest_groups(risk: float, delta: float, guarantee: Guarantee = "of the answers") -> int:
    """The number of groups below which no threshold can be found even if every answer were right."""
    if guarantee == "of the questions":
        return math.ceil(1 / risk - 1 - 1e-9)
    least, most = 1, 2**40
    while least < most:
        middle = (least + most) // 2
        if _log_mean_exp(middle * np.log1p(_bets(risk) * risk)) >= math.log(len(_STARTS) / delta):
            most = middle
        else:
            least = middle + 1
    return least


def _lowest(answered: NDArray[np.bool_], gained: FloatArray, code: IntArray, risk: float, delta: float) -> int | None:
    """Index of the lowest threshold that a sequence of tests reaches.

    Args:
        answered: [threshold, n] bool.
        gained: [n] share of the question in its group times (risk − wrong).
        code: [n] number of the group.
    """
    reached = None
    for start in _STARTS:
        at = int(np.argmin(np.abs(GRID - start)))
        while at >= 0 and (reached is None or at < reached):
            mean = np.bincount(code, answered[at] * gained)  # [group]
            if _log_mean_exp(np.log1p(_bets(risk)[:, None] * mean).sum(1)) < math.log(len(_STARTS) / delta):
                break
            reached, at = at, at - 1
    return reached


def _bets(risk: float) -> FloatArray:
    """[bet] of what is at hand, on answers being right; the largest would lose all of it to one wrong group."""
    return _BETS / (1 - risk)


def _log_mean_exp(values: FloatArray) -> float:
    return float(np.logaddexp.reduce(values)) - math.log(len(values))


def _gate(
    guarantee: Guarantee, risk: float, delta: float, lowest: int | None, answered: NDArray[np.bool_], right: FloatArray
) -> Gate:
    if lowest is None:
        return Gate(guarantee, risk, delta, math.inf, 0.0, math.nan)
    given = answered[lowest]
    wrong = float(1 - right[given].mean()) if given.any() else math.nan
    return Gate(guarantee, risk, delta, float(GRID[lowest]), float(given.mean()), wrong)
