import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from probes.targets.closed import (
    OTHER,
    ClassTarget,
    class_target,
    kl_divergence,
    ranked_target,
    share_target,
    smoothed,
)
from probes.targets.scalars import b_confidence, mode_correctness, number_of_classes, semantic_entropy
from semcal.semantics.class_table import UNEXPLORED
from tests.probes.tables import table_of

counts = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 50), min_size=1)


def test_classes_are_ordered_by_mass_with_every_question_weighing_the_same() -> None:
    target = class_target(table_of([{"rare": 1, "common": 99}, {"rare": 1}, {"rare": 1}]))
    assert target.classes == ("rare", "common")
    np.testing.assert_allclose(target.distribution, [[0.01, 0.99], [1, 0], [1, 0]])


def test_light_classes_are_pooled_in_a_last_class() -> None:
    target = class_target(table_of([{"a": 5, "b": 3, "c": 1, "d": 1}, {"b": 5, "a": 5}]), max_classes=3)
    assert target.classes == ("a", "b", OTHER)
    np.testing.assert_allclose(target.distribution, [[0.5, 0.3, 0.2], [0.5, 0.5, 0]])


def test_a_class_that_is_itself_called_other_joins_the_pool() -> None:
    target = class_target(table_of([{OTHER: 6, "a": 3, "b": 1}]), max_classes=2)
    assert target.classes == ("a", OTHER)
    np.testing.assert_allclose(target.distribution, [[0.3, 0.7]])


@given(st.lists(counts, min_size=1, max_size=6), st.integers(1, 10))
def test_rows_are_distributions_whatever_is_pooled(distributions: list[dict[str, int]], max_classes: int) -> None:
    target = class_target(table_of(distributions), max_classes=max_classes)
    assert len(target.classes) == len(set(target.classes)) <= max_classes
    np.testing.assert_allclose(target.distribution.sum(1), 1)


def test_scalars_agree_with_their_definitions() -> None:
    table = table_of([{"a": 50}, {"a": 25, "b": 25}, {"a": 0, "b": 3}])
    np.testing.assert_allclose(b_confidence(table), [1, 0.5, 1])
    np.testing.assert_allclose(semantic_entropy(table), [0, np.log(2), 0], atol=1e-12)


def test_a_question_without_an_answer_has_the_class_of_what_was_not_explored() -> None:
    table = table_of([{"a": 0.5, "b": 0.25}, {"a": 0.0}], enumerated=True)
    target = class_target(table)
    assert target.classes == (UNEXPLORED, "a", "b")
    np.testing.assert_allclose(target.distribution, [[0, 2 / 3, 1 / 3], [1, 0, 0]])
    assert target.m is None
    np.testing.assert_allclose(b_confidence(table), [2 / 3, 1])
    np.testing.assert_array_equal(number_of_classes(table), [2, 1])
    np.testing.assert_array_equal(mode_correctness(table), [0, 0])


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
    table = table_of([{"a": 3, "b": 1}, {"a": 2, "b": 2}, {"a": 1, "b": 0}], [{"b"}, {"b", "c"}, {"a"}])
    np.testing.assert_array_equal(number_of_classes(table), [2, 2, 1])
    np.testing.assert_array_equal(mode_correctness(table), [0, 0.5, 1])


def test_ranked_masses_forget_the_names() -> None:
    target = ranked_target(table_of([{"x": 5, "y": 3, "z": 1, "w": 1}, {"q": 7}]), top=2)
    assert target.classes == ("1st", "2nd", "rest")
    np.testing.assert_allclose(target.distribution, [[0.5, 0.3, 0.2], [1, 0, 0]])
    assert ranked_target(table_of([{"x": 1}]), top=5).classes == ("1st", "2nd", "3rd", "4th", "5th", "rest")
    with pytest.raises(ValueError, match="top=0"):
        ranked_target(table_of([{"x": 1}]), top=0)


@given(st.lists(counts, min_size=1, max_size=6), st.integers(1, 10))
def test_the_first_rank_is_b_confidence(distributions: list[dict[str, int]], top: int) -> None:
    target = ranked_target(table_of(distributions), top=top)
    np.testing.assert_allclose(target.distribution[:, 0], b_confidence(table_of(distributions)))
    assert (np.diff(target.distribution[:, :-1]) <= 0).all()


def test_a_share_becomes_two_classes() -> None:
    target = share_target(np.array([0.25, 1]), name="correct", m=4)
    assert target.classes == ("correct", "not correct")
    np.testing.assert_allclose(target.distribution, [[0.25, 0.75], [1, 0]])
    with pytest.raises(ValueError, match=r"entropy must lie in \[0, 1\]; at question 1 it is 1.2"):
        share_target(np.array([0.5, 1.2]), name="entropy", m=4)
