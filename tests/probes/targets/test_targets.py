import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probes.targets.closed import (
    OTHER,
    ClassTarget,
    b_confidence,
    class_target,
    kl_divergence,
    mode_correctness,
    number_of_classes,
    ranked_target,
    semantic_entropy,
    share_target,
    smoothed,
)

counts = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 50), min_size=1)


def test_classes_are_ordered_by_mass_with_every_question_weighing_the_same() -> None:
    target = class_target([{"rare": 1, "common": 99}, {"rare": 1}, {"rare": 1}], m=100)
    assert target.classes == ("rare", "common")
    np.testing.assert_allclose(target.distribution, [[0.01, 0.99], [1, 0], [1, 0]])


def test_light_classes_are_pooled_in_a_last_class() -> None:
    target = class_target([{"a": 5, "b": 3, "c": 1, "d": 1}, {"b": 5, "a": 5}], max_classes=3, m=10)
    assert target.classes == ("a", "b", OTHER)
    np.testing.assert_allclose(target.distribution, [[0.5, 0.3, 0.2], [0.5, 0.5, 0]])


def test_a_class_that_is_itself_called_other_joins_the_pool() -> None:
    target = class_target([{OTHER: 6, "a": 3, "b": 1}], max_classes=2, m=10)
    assert target.classes == ("a", OTHER)
    np.testing.assert_allclose(target.distribution, [[0.3, 0.7]])


@given(st.lists(counts, min_size=1, max_size=6), st.integers(1, 10))
def test_rows_are_distributions_whatever_is_pooled(distributions: list[dict[str, int]], max_classes: int) -> None:
    target = class_target(distributions, max_classes=max_classes, m=50)
    assert len(target.classes) == len(set(target.classes)) <= max_classes
    np.testing.assert_allclose(target.distribution.sum(1), 1)


def test_scalars_agree_with_their_definitions() -> None:
    distributions = [{"a": 50}, {"a": 25, "b": 25}, {"a": 0, "b": 3}]
    np.testing.assert_allclose(b_confidence(distributions), [1, 0.5, 1])
    np.testing.assert_allclose(semantic_entropy(distributions), [0, np.log(2), 0], atol=1e-12)


@pytest.mark.parametrize("bad", [[{"a": 1}, {}], [{"a": 1}, {"a": 0}], [{"a": 1}, {"a": 2, "b": -1}]])
def test_a_question_without_a_distribution_is_named(bad: list[dict[str, float]]) -> None:
    with pytest.raises(ValueError, match="question 1"):
        class_target(bad, m=10)


def test_a_target_whose_rows_are_no_distributions_is_refused() -> None:
    with pytest.raises(ValueError, match="row 1"):
        ClassTarget(("a", "b"), np.array([[1.0, 0.0], [0.7, 0.7]]), 10)
    with pytest.raises(ValueError, match="3 classes"):
        ClassTarget(("a", "b", "c"), np.eye(2), 10)


def test_smoothing_adds_the_weight_of_one_uniform_question() -> None:
    Y = torch.eye(3, dtype=torch.float64)[[0, 0, 1]]
    expected = (Y.sum(0) + 1 / 3) / 4
    torch.testing.assert_close(smoothed(Y).mean(0), expected)


def test_kl_counts_absent_classes_as_nothing() -> None:
    Y = torch.tensor([[0.0, 1.0], [0.5, 0.5]], dtype=torch.float64)
    expected = torch.tensor([np.log(2), 0.0], dtype=torch.float64)
    torch.testing.assert_close(kl_divergence(Y, torch.full((2,), np.log(0.5), dtype=torch.float64)), expected)


def test_counts_and_correctness_agree_with_their_definitions() -> None:
    distributions = [{"a": 3, "b": 1}, {"a": 2, "b": 2}, {"a": 1, "b": 0}]
    np.testing.assert_array_equal(number_of_classes(distributions), [2, 2, 1])
    np.testing.assert_array_equal(mode_correctness(distributions, [{"b"}, {"b", "c"}, {"a"}]), [0, 0.5, 1])
    with pytest.raises(ValueError, match="2 sets of gold classes for 3 questions"):
        mode_correctness(distributions, [{"a"}, {"b"}])


def test_ranked_masses_forget_the_names() -> None:
    target = ranked_target([{"x": 5, "y": 3, "z": 1, "w": 1}, {"q": 7}], top=2, m=10)
    assert target.classes == ("1st", "2nd", "rest")
    np.testing.assert_allclose(target.distribution, [[0.5, 0.3, 0.2], [1, 0, 0]])
    assert ranked_target([{"x": 1}], top=5, m=1).classes == ("1st", "2nd", "3rd", "4th", "5th", "rest")
    with pytest.raises(ValueError, match="top=0"):
        ranked_target([{"x": 1}], top=0, m=1)


@given(st.lists(counts, min_size=1, max_size=6), st.integers(1, 10))
def test_the_first_rank_is_b_confidence(distributions: list[dict[str, int]], top: int) -> None:
    target = ranked_target(distributions, top=top, m=50)
    np.testing.assert_allclose(target.distribution[:, 0], b_confidence(distributions))
    assert (np.diff(target.distribution[:, :-1]) <= 0).all()


def test_a_share_becomes_two_classes() -> None:
    target = share_target(np.array([0.25, 1]), name="correct", m=4)
    assert target.classes == ("correct", "not correct")
    np.testing.assert_allclose(target.distribution, [[0.25, 0.75], [1, 0]])
    with pytest.raises(ValueError, match="entropy is no share at question 1"):
        share_target(np.array([0.5, 1.2]), name="entropy", m=4)
