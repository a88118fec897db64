"""Thresholds with a guarantee, against the risk that they are found to have on questions to come."""

import math

import numpy as np
import pytest
from scipy.stats import binom

from semcal.calibration.inference.risk_control import fewest_groups, gate
from semcal.errors import UserError


def world(n: int, seed: int, *, together: int = 1, over: float = 0.0) -> tuple[np.ndarray, np.ndarray, list[str]]:
    """Confidence on the grid of M = 50, correctness that is right less often than it says, and groups that share both."""
    rng = np.random.default_rng(seed)
    sure = np.repeat(rng.integers(1, 51, n // together) / 50, together)
    right = np.repeat(rng.random(n // together), together) < np.clip(sure - over, 0, 1)
    return sure, right.astype(float), [str(i // together) for i in range(n)]


def true_risk(threshold: float, over: float) -> tuple[float, float]:
    """Share of wrong answers among the answers, and of questions answered wrongly, in `world`."""
    grid = np.arange(1, 51) / 50
    given = grid >= threshold - 1e-12
    wrong = (1 - np.clip(grid - over, 0, 1))[given]
    return (float(wrong.mean()) if given.any() else 0.0), float(wrong.sum() / 50)


@pytest.mark.parametrize("together", [1, 4])
@pytest.mark.parametrize("over", [0.0, 0.15])
def test_of_the_answers_at_most_the_risk_is_wrong_but_for_one_time_in_ten(together: int, over: float) -> None:
    """Also where questions of a group are right and wrong together, which a test of single questions takes for more
    evidence than it is."""
    runs, found = 300, []
    for seed in range(runs):
        own = gate(*world(300 * together, seed, together=together, over=over), risk=0.2, delta=0.1)
        found.append(true_risk(own.threshold, over)[0] > 0.2 + 1e-9)
    assert sum(found) <= binom.ppf(0.999, runs, 0.1)


@pytest.mark.parametrize("together", [1, 4])
def test_of_the_questions_at_most_the_risk_is_answered_wrongly_on_average(together: int) -> None:
    found = [
        true_risk(
            gate(
                *world(40 * together, s, together=together, over=0.3), risk=0.2, guarantee="of the questions"
            ).threshold,
            0.3,
        )[1]
        for s in range(400)
    ]
    assert 0.12 < np.mean(found) <= 0.2  # and most of it is used


def test_more_questions_let_more_be_answered_up_to_where_the_risk_is_reached() -> None:
    coverage = [np.mean([gate(*world(n, s), risk=0.2).coverage for s in range(20)]) for n in (100, 1000, 10_000)]
    assert coverage == sorted(coverage)
    assert 0.35 < coverage[-1] < 0.45  # the upper 0.4 of a uniform confidence is wrong one time in five


def test_a_confidence_that_says_nothing_answers_nothing_and_one_that_knows_answers_what_is_right() -> None:
    rng = np.random.default_rng(0)
    group, right = [str(i) for i in range(600)], (rng.random(600) < 0.5).astype(float)
    nothing = gate(rng.random(600), right, group, risk=0.1)
    assert (nothing.threshold, nothing.coverage) == (math.inf, 0)
    assert math.isnan(nothing.wrong)
    knows = gate(right, right, group, risk=0.1)
    assert (knows.coverage, knows.wrong) == (right.mean(), 0)


def test_the_fewest_groups_are_those_from_which_a_threshold_can_be_found() -> None:
    for guarantee in ("of the answers", "of the questions"):
        for risk in (0.05, 0.2):
            n = fewest_groups(risk, 0.1, guarantee)
            ones, names = np.ones(n), [str(i) for i in range(n)]
            assert gate(ones, ones, names, risk=risk, guarantee=guarantee).coverage == 1
            with pytest.raises(UserError, match=f"it would take {n}; ask more questions"):
                gate(ones[1:], ones[1:], names[1:], risk=risk, guarantee=guarantee)


def test_conformal_risk_control_is_that_of_its_definition() -> None:
    sure, right, group = world(60, 3, over=0.2)
    own = gate(sure, right, group, risk=0.15, guarantee="of the questions")
    kept = [t for t in np.arange(1, 101) / 100 if (((sure >= t - 1e-12) * (1 - right)).sum() + 1) / 61 <= 0.15]
    assert own.threshold == min(kept)
