"""Counts to confidence: ties, unparsed answers, and the halves that free the gap of its bias."""

from __future__ import annotations

import numpy as np
import pytest

from semcal.calibration.estimators.finite_m import split_half
from semcal.semantics.class_table import ClassTable
from semcal.semantics.confidence import confidences


def test_the_most_frequent_class_is_the_answer():
    found = confidences([[7, 3, 0], [2, 1, 7], [1, 9, 0]], gold=[0, 0, -1])
    np.testing.assert_allclose(found.plug_in, [0.7, 0.7, 0.9])
    np.testing.assert_array_equal(found.correct, [1, 0, 0])
    assert not found.tied.any()


def test_tied_classes_share_the_credit():
    found = confidences([[4, 4, 2], [4, 4, 2], [5, 5, 0]], gold=[0, 2, -1])
    np.testing.assert_array_equal(found.correct, [0.5, 0, 0])
    assert found.tied.all()
    assert confidences([[2, 2, 2, 2, 2]], gold=[3]).correct[0] == pytest.approx(0.2)


def test_unparsed_may_be_the_mode_but_is_never_correct():
    found = confidences([[6, 4], [5, 5], [6, 4]], gold=[1, 1, 0], unparsed=[0, 0, 0])
    np.testing.assert_allclose(found.plug_in, [0.6, 0.5, 0.6])
    np.testing.assert_array_equal(found.correct, [0, 0.5, 0])  # last: gold itself was unreadable


@pytest.mark.parametrize(
    ("counts", "gold", "unparsed", "message"),
    [
        ([[3, 2], [3, 3]], [0, 0], None, r"counts\[0\] sums to 5, counts\[1\] to 6"),
        ([[0, 0]], [0], None, r"counts\[0\] sums to 0"),
        ([[5, -1]], [0], None, r"counts\[0, 1\] is -1"),
        ([[2.5, 2.5]], [0], None, r"counts\[0, 0\] is 2\.5"),
        ([5, 1], [0], None, r"not empty, got shape \(2,\)"),
        (np.zeros((0, 3)), [], None, r"not empty, got shape \(0, 3\)"),
        ([[5, 1]], [0, 1], None, r"gold has shape \(2,\) but counts has shape \(1, 2\)"),
        ([[5, 1]], [2], None, r"gold\[0\] is 2, .* 2 classes"),
        ([[5, 1]], [0], [-2], r"unparsed\[0\] is -2"),
    ],
)
def test_bad_input_is_named(counts, gold, unparsed, message):
    with pytest.raises(ValueError, match=message):
        confidences(counts, gold, unparsed)


def calibrated(n: int, m: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Questions with flat class distributions, whose gold class is drawn from them."""
    rng = np.random.default_rng(seed)
    pi = rng.dirichlet(np.full(8, 2.0), n)
    return rng.multinomial(m, pi), (pi.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)


@pytest.mark.parametrize("m", [4, 9, 20])
def test_split_half_is_unbiased_where_the_plug_in_is_biased_up(m):
    counts, gold = calibrated(20_000, m, seed=m)
    plug_in = confidences(counts, gold)
    halves = split_half(ClassTable.of_arrays(counts, gold), rng=np.random.default_rng(0), repeats=4)
    assert abs(halves.gap) < 0.012  # three standard errors
    assert plug_in.plug_in.mean() - plug_in.correct.mean() > 0.04


def test_split_half_of_certain_questions_is_certain():
    halves = split_half(ClassTable.of_arrays([[10, 0], [0, 10]], [0, 0]), rng=np.random.default_rng(0))
    np.testing.assert_array_equal(halves.confidence, [1, 1])
    np.testing.assert_array_equal(halves.correct, [1, 0])
    assert halves.gap == 0.5


def test_split_half_equals_its_enumeration():
    # M = 2, one sample of each of two classes: whichever is the mode of one half is absent from the other.
    halves = split_half(ClassTable.of_arrays([[1, 1]], [0]), rng=np.random.default_rng(0), repeats=4000)
    assert halves.confidence[0] == 0
    assert halves.correct[0] == pytest.approx(0.5, abs=0.03)


def test_split_half_never_credits_unparsed_and_follows_its_generator():
    counts, gold = calibrated(50, 10, seed=1)
    assert split_half(ClassTable.of_arrays(counts, gold, gold), rng=np.random.default_rng(0)).correct.sum() == 0
    first, second = (split_half(ClassTable.of_arrays(counts, gold), rng=np.random.default_rng(3)) for _ in range(2))
    np.testing.assert_array_equal(first.confidence, second.confidence)


def test_split_half_needs_two_samples():
    with pytest.raises(ValueError, match="m=1"):
        split_half(ClassTable.of_arrays([[1, 0]], [0]), rng=np.random.default_rng(0))
