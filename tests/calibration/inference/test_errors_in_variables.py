"""The slope with errors in both variables: unbiased where least squares is not, of the right size where there is none."""

import numpy as np
import pytest

from semcal.calibration.inference.errors_in_variables import slope


def points(b: float, rng: np.random.Generator, k: int = 30, error: float = 0.1):
    x = rng.uniform(0, 0.6, k)
    e = np.full(k, error)
    return x + rng.normal(0, error, k), b * x + rng.normal(0, error / 4, k), e, e / 4


def test_a_slope_is_not_drawn_towards_0_by_the_error_of_x():
    rng = np.random.default_rng(0)
    found, plain = [], []
    for _ in range(100):
        data = points(0.5, rng)
        found.append(slope(*data).estimate)
        plain.append(np.polyfit(data[0], data[1], 1)[0])
    assert np.mean(plain) < 0.4
    assert np.mean(found) == pytest.approx(0.5, abs=0.05)


def test_where_nothing_is_related_it_is_seldom_said_to_be():
    """A test of size 5 % rejects in 20 or fewer of 200 with a chance of 99.9 %."""
    rng = np.random.default_rng(1)
    assert sum(slope(*points(0.0, rng)).p_positive <= 0.05 for _ in range(200)) <= 20


def test_exact_points_give_their_line_and_too_few_are_refused():
    x = np.array([0.0, 1, 2, 3])
    assert slope(x, 1 - 2 * x, np.zeros(4), np.zeros(4)).estimate == pytest.approx(-2, abs=1e-3)
    with pytest.raises(ValueError, match="at least 3"):
        slope(x[:2], x[:2], x[:2], x[:2])
