import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.targets.closed import OTHER, ClassTarget, class_target
from probes.targets.open import OpenTarget, open_target, pooled_share, sparse
from semcal.semantics.class_table import UNEXPLORED
from tests.probes.tables import table_of

counts = st.dictionaries(st.sampled_from("abcdefgh"), st.integers(1, 50), min_size=1)


def read(target: OpenTarget) -> list[list[tuple[str, float]]]:
    """[question] (label, mass) of its entries."""
    pairs = [(target.classes[c], float(m)) for c, m in zip(target.column, target.mass, strict=True)]
    return [pairs[a:b] for a, b in zip(target.starts[:-1], target.starts[1:], strict=True)]


def test_entries_are_a_questions_own_classes_heaviest_first_ties_by_label() -> None:
    target = open_target(table_of([{"b": 1, "a": 1, "z": 2}, {"c": 4, "unseen": 0}]))
    assert target.classes == ("a", "b", "c", "z")
    assert read(target) == [[("z", 0.5), ("a", 0.25), ("b", 0.25)], [("c", 1.0)]]
    assert target.m == 4
    assert target.question.tolist() == [0, 0, 0, 1]


def test_a_question_without_an_answer_has_the_class_of_what_was_not_explored() -> None:
    target = open_target(table_of([{"a": 0.5, "b": 0.25}, {"a": 0.0}], enumerated=True))
    assert read(target) == [[("a", pytest.approx(2 / 3)), ("b", pytest.approx(1 / 3))], [(UNEXPLORED, 1.0)]]
    assert target.m is None


@given(st.lists(counts, min_size=1, max_size=6), st.integers(1, 10))
def test_a_closed_target_keeps_its_masses_in_the_open_form(rows: list[dict[str, int]], max_classes: int) -> None:
    closed = class_target(table_of(rows), max_classes=max_classes)
    found = sparse(closed)
    dense = np.zeros((len(rows), len(found.classes)))
    dense[found.question, found.column] = found.mass
    np.testing.assert_array_equal(dense[:, [found.classes.index(c) for c in closed.classes]], closed.distribution)
    assert found.classes == tuple(sorted(closed.classes))


@given(st.lists(counts, min_size=2, max_size=8), st.data())
def test_selecting_questions_is_selecting_rows_of_the_table(rows: list[dict[str, int]], data: st.DataObject) -> None:
    whole = open_target(table_of(rows))
    picked = data.draw(st.lists(st.integers(0, len(rows) - 1), min_size=1, max_size=10))
    found = whole.select(np.array(picked))
    assert read(found) == [read(whole)[i] for i in picked]
    assert found.classes == whole.classes
    np.testing.assert_array_equal(whole.mass[whole.entries(np.array(picked))], found.mass)


def test_a_mask_selects_as_row_numbers_do() -> None:
    target = open_target(table_of([{"a": 1}, {"b": 1}, {"a": 1, "c": 1}]))
    assert read(target.select(np.array([True, False, True]))) == read(target.select([0, 2]))


def test_the_pooled_share_is_what_lies_beyond_the_classes_kept() -> None:
    table = table_of([{"a": 5, "b": 3, "c": 2}, {"a": 3, "d": 7}])
    assert pooled_share(table, 3) == pytest.approx((0.5 + 0.0) / 2)  # a and d are kept
    assert pooled_share(table, 4) == 0.0


def test_the_class_that_is_called_other_is_pooled_mass() -> None:
    assert sparse(class_target(table_of([{"a": 6, "b": 3, "c": 1}]), max_classes=2)).classes == (OTHER, "a")


@pytest.mark.parametrize(
    ("starts", "column", "mass", "message"),
    [
        ([0, 1], [0], [0.5], "sum to 0.5; expected 1"),
        ([0, 1, 1], [0], [1.0], "question 1 has no class; leave it out"),
        ([0, 2], [0, 0], [0.5, 0.5], "same class twice"),
        ([0, 2], [0, 1], [1.0, 0.0], "question 0 has a class of mass 0.0; expected positive"),
        ([0, 2], [0, 1], [1.0, np.nan], "question 0 has a class of mass nan"),
        ([0, 1], [2], [1.0], "not an index into 2 classes"),
        ([0, 3], [0, 1], [0.5, 0.5], "expected one of each per entry"),
        ([0], [], [], "at least one question"),
    ],
)
def test_what_is_no_distribution_is_refused(starts: list, column: list, mass: list, message: str) -> None:
    arrays = np.array(starts, dtype=np.int64), np.array(column, dtype=np.int64), np.array(mass, dtype=np.float64)
    with pytest.raises(ValueError, match=message) as error:
        OpenTarget(("a", "b"), *arrays, m=None)
    assert "\n" not in str(error.value)


def test_no_question_is_refused() -> None:
    with pytest.raises(ValueError, match="expected at least one question"):
        open_target(table_of([{"a": 1}]).select([]))


def test_columns_follow_another_order_of_the_classes() -> None:
    target = ClassTarget(("b", "c", "a"), np.array([[0.5, 0.2, 0.3], [0.0, 1.0, 0.0]]), None)
    found = sparse(target)
    at = found.question, found.columns(target.classes)
    np.testing.assert_allclose(target.distribution[at], found.mass)
