"""Coarser Bs: functions of a class alone, from ones that begin like it to hashes of it."""

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest

from semcal.semantics.class_table import UNEXPLORED, UNPARSED, ClassTable
from semcal.semantics.collapsing.coarser import HASH, as_clusters, coarsenings

LABELS = ("united states", "1984", "Ünïted", "", "8", "mercury", "a b c", "東京")


def table(*, enumerated=False):
    classes = [("paris", "pau", "lyon", UNPARSED), ("rome", "paris")]
    weights = [[4, 3, 2, 1], [10, 0]]
    if enumerated:
        weights = [[w / 10 for w in row] for row in weights]
    return ClassTable.of_answers(
        *(["a", "b"], ["a", "b"], classes, weights), [frozenset({"pau"}), frozenset({"paris"})], enumerated=enumerated
    )


def test_there_are_at_least_sixty_with_names_of_their_own():
    names = [b.name for b in coarsenings()]
    assert len(names) == len(set(names)) >= 60


@pytest.mark.parametrize("b", coarsenings(), ids=lambda b: b.name)
def test_each_gives_every_class_one_class_and_leaves_what_is_no_answer_alone(b):
    assert all(isinstance(b.apply(label), str) for label in LABELS)
    assert [b.apply(label) for label in LABELS] == [b.apply(label) for label in LABELS]
    assert b.apply(UNPARSED) == UNPARSED
    assert b.apply(UNEXPLORED) == UNEXPLORED


def test_what_some_of_them_say():
    b = {one.name: one.apply for one in coarsenings()}
    assert b["class"]("united states") == "united states"
    assert (b["first letters, 2"]("St. Ives"), b["last letters, 2"]("St. Ives")) == ("st", "es")
    assert (b["alphabet in 2"]("Mercury"), b["alphabet in 2"]("neptune"), b["alphabet in 2"]("8")) == (
        "0",
        "1",
        "other",
    )
    assert (b["second word"]("united states"), b["second word"]("rome")) == ("states", "")
    assert [b[f"{nth} word"]("salt and pepper") for nth in ("first", "third", "fourth")] == ["salt", "pepper", ""]
    assert (b["digit sum"]("1984"), b["digit sum mod 9"]("1984")) == ("22", "4")
    assert (b["characters in 5s"]("united states"), b["number of words"]("united states")) == ("2", "2")


@pytest.mark.parametrize("b", [b for b in coarsenings() if b.kind == HASH], ids=lambda b: b.name)
def test_a_hash_divides_evenly(b):
    size = int(b.name.split()[2])
    found = Counter(b.apply(f"answer {i}") for i in range(200 * size))
    assert len(found) == size
    assert max(abs(count - 200) for count in found.values()) < 5 * 200**0.5


def test_two_hashes_of_one_size_are_independent():
    one, other = (b for b in coarsenings() if b.name.startswith("hash in 2 "))
    same = np.mean([one.apply(str(i)) == other.apply(str(i)) for i in range(4000)])
    assert abs(same - 0.5) < 0.05


@pytest.mark.parametrize("enumerated", [False, True])
def test_counts_of_joined_classes_add_up_and_gold_goes_along(enumerated):
    joined = table(enumerated=enumerated).coarser(lambda label: label[:1])
    unit = 0.1 if enumerated else 1
    assert joined.distributions[0] == pytest.approx({"p": 0.7, "l": 0.2, "(": 0.1})
    assert joined.classes == (("p", "l", "("), ("r", "p"))
    whole = joined.masses if enumerated else joined.counts
    assert whole is not None
    np.testing.assert_allclose(whole, np.array([[7, 2, 1], [10, 0, 0]]) * unit)
    assert joined.gold_classes == (frozenset({"p"}), frozenset({"p"}))
    assert joined.by_count.correct.tolist() == [1, 0]


def test_the_unparsed_class_is_never_correct():
    unread = next(b for b in coarsenings() if b.name == "hash in 2 (a)").apply
    joined = table().coarser(unread)
    assert joined.classes[0][joined.unparsed[0]] == UNPARSED
    assert not joined.gold[0, joined.unparsed[0]]


def test_the_probability_seen_of_joined_classes_adds_up():
    seen = np.log([[0.35, 0.25, 0.1, 0.05], [0.8, 1e-9, 1e-9, 1e-9]])
    whole = table()
    joined = replace(whole, log_seen=np.pad(seen, ((0, 0), (0, whole.gold.shape[1] - 4)))).coarser(lambda c: c[:1])
    assert joined.log_seen is not None
    np.testing.assert_allclose(np.exp(joined.log_seen[0]), [0.6, 0.1, 0.05])


def test_which_classes_are_joined_does_not_depend_on_gold():
    other = ClassTable.of_answers(
        *(["a", "b"], ["a", "b"], [("paris", "pau", "lyon"), ("rome", "paris")], [[4, 3, 3], [6, 4]]),
        [frozenset({"lyon"}), frozenset({"rome"})],
    )
    exchanged = replace(other, gold=other.gold[::-1])
    for b in coarsenings():
        assert other.coarser(b.apply).distributions == exchanged.coarser(b.apply).distributions


def test_clusters_join_by_number():
    b = as_clusters("2 clusters", ["x", "y", "z"], [0, 1, 0])
    assert b.apply("x") == b.apply("z") != b.apply("y")
