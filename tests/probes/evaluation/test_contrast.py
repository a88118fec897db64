"""The difference of two runs in the KL gap, from the gaps of the same questions."""

from functools import partial

import numpy as np
import pytest

from probes.evaluation.contrast import gap_difference
from semcal.calibration.resampling import Resampling

N = 120
GROUPS = [f"g{row // 2}" for row in range(N)]
difference = partial(gap_difference, group=GROUPS, resampling=Resampling(bootstrap=300))


def nats(gap: float, seed: int, hard: float = 0.5) -> np.ndarray:
    """[question] KL gaps of a run, on average about `gap`, more for questions that are hard for every run."""
    own, shared = np.random.default_rng(seed), np.random.default_rng(99).uniform(-hard, hard, N)
    return gap + shared - shared.mean() + own.normal(0, 0.1, N)


def test_a_planted_difference_is_found_with_its_size() -> None:
    a, b = nats(0.8, 0), nats(0.5, 1)
    found = difference(a, b)
    assert found.estimate == pytest.approx(-0.3, abs=0.04)
    assert (found.a, found.b) == pytest.approx((a.mean(), b.mean()))
    assert found.low < found.estimate < found.high < 0
    assert found.p_value < 1e-6
    assert found.p_exchange < 0.01


def test_pairing_takes_off_what_is_hard_for_both() -> None:
    a, b = nats(0.8, 0, hard=3.0), nats(0.75, 1, hard=3.0)
    assert a.std() > 1
    found = difference(a, b)
    assert found.high - found.low < 0.1
    assert found.p_value < 0.01


def test_a_run_does_not_differ_from_itself() -> None:
    a = nats(0.5, 0)
    found = difference(a, a)
    assert (found.estimate, found.p_value, found.p_exchange) == (0, 1, 1)


def test_equal_runs_are_called_different_about_as_often_as_the_level_says() -> None:
    few = Resampling(bootstrap=20)
    p = [difference(nats(0.5, 2 * s), nats(0.5, 2 * s + 1), resampling=few).p_value for s in range(100)]
    assert np.mean(np.array(p) <= 0.05) <= 0.12  # binomial(100, 0.05) exceeds 12 once in 700 times


def test_other_numbers_of_questions_are_refused() -> None:
    with pytest.raises(ValueError, match="120 and 120 questions and 119 group labels; compare runs on the same"):
        difference(nats(0.5, 0), nats(0.5, 1), group=GROUPS[1:])
    with pytest.raises(ValueError, match="120 and 119 questions"):
        difference(np.ones(N), np.ones(N - 1))
