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


def repeated(rng: np.random.Generator, places: int = 8, seeds: int = 3):
    """Cells of places that each seed repeats, with gaps and errors of their own that have nothing to do with each other;
    seeds differ by little."""
    x, y = (np.tile(rng.uniform(0, 0.6, places), seeds) + rng.normal(0, 0.01, places * seeds) for _ in "xy")
    known = np.full(places * seeds, 0.01)
    labels = [np.tile(np.arange(places), seeds).tolist(), np.repeat(np.arange(seeds), places).tolist()]
    return (x, y, known, known), labels


@pytest.mark.long
def test_what_every_seed_repeats_is_not_taken_for_a_slope():
    """By seeds alone a slope is found in a third of these studies; a test of size 5 % rejects in 20 or fewer of 200."""
    rng = np.random.default_rng(2)
    studies = [repeated(rng) for _ in range(200)]
    assert sum(slope(*data, clusters=labels).p_positive <= 0.05 for data, labels in studies) <= 20
    assert sum(slope(*data, clusters=labels[1:]).p_positive <= 0.05 for data, labels in studies) > 40


def test_errors_of_two_labellings_add_up_and_are_never_smaller_than_one():
    data, labels = repeated(np.random.default_rng(3))
    by_place, by_seed, by_cell = (slope(*data, clusters=some).standard_error for some in ([labels[0]], [labels[1]], []))
    both = slope(*data, clusters=labels)
    assert both.standard_error == pytest.approx(
        max(by_place**2, by_seed**2, by_place**2 + by_seed**2 - by_cell**2) ** 0.5
    )
    assert both.clusters == 3
    assert both.estimate == slope(*data).estimate
    assert np.isnan(slope(*data, clusters=[[0, 1] * 12]).standard_error)


def test_what_could_have_been_shown_is_so_many_standard_errors():
    rng = np.random.default_rng(4)
    found = slope(*points(0.5, rng))
    assert found.detectable(0.05) == pytest.approx((1.699 + 0.854) * found.standard_error, rel=1e-3)
