"""Twins by mass know no more than the samples have seen; twins of grouped questions go together as far as observed."""

from __future__ import annotations

import numpy as np
import pytest

from semcal.calibration.nulls.null import null_of
from semcal.calibration.nulls.twins import chances_of, exact_chances
from semcal.semantics.class_table import ClassTable
from semcal.semantics.confidence import class_masses, left_out_by_mass

LOG = np.log


def answers(words: list[list[tuple[str, int, float]]], gold: list[set[str]]) -> ClassTable:
    """Questions whose distinct answers are (class, count, probability)."""
    classes, counts, logprobs = ([[w[i] for w in own] for own in words] for i in range(3))
    ids = [str(i) for i in range(len(words))]
    table = ClassTable.of_answers(ids, ids, classes, counts, [frozenset(g) for g in gold])
    return table.with_masses(classes, counts, [[LOG(p) for p in own] for own in logprobs])


def test_leaving_a_sample_out_gives_the_masses_of_the_others():
    table = answers([[("a", 2, 0.3), ("a", 1, 0.1), ("b", 1, 0.05), ("b", 1, 0.05), ("c", 3, 0.2)]], [{"a"}])
    assert table.left_out is not None
    without_c = class_masses([0] * 5, [0, 0, 1, 1, 2], [2, 1, 1, 1, 2], LOG([0.3, 0.1, 0.05, 0.05, 0.2]), shape=(1, 3))
    column = table.classes[0].index("c")
    np.testing.assert_allclose(table.left_out[0, column], [without_c.max(), 0, 1, 1], atol=1e-12)
    # One of the three samples of class a is the only one of its wording, so its mass is no longer seen without it.
    twice = class_masses([0] * 5, [0, 0, 1, 1, 2], [1, 1, 1, 1, 3], LOG([0.3, 0.1, 0.05, 0.05, 0.2]), shape=(1, 3))
    once = class_masses([0] * 4, [0, 1, 1, 2], [2, 1, 1, 3], LOG([0.3, 0.05, 0.05, 0.2]), shape=(1, 3))
    column = table.classes[0].index("a")
    np.testing.assert_allclose(table.left_out[0, column, 0], (2 * twice.max() + once.max()) / 3, atol=1e-12)


def test_where_no_two_answers_agree_leaving_one_out_is_counting():
    table = answers([[("a", 1, 1e-9)] * 3 + [("b", 1, 1e-9)] * 3 + [("c", 1, 1e-9)]], [{"b"}])
    assert table.left_out is not None
    got = {label: table.left_out[0, k] for k, label in enumerate(table.classes[0])}
    np.testing.assert_allclose(got["a"], [3 / 6, 0, 1, 1], atol=1e-6)  # b alone is on top of the other six
    np.testing.assert_allclose(got["c"], [3 / 6, 0, 0.5, 0.5], atol=1e-6)  # a and b are tied


def test_a_table_keeps_what_was_left_out_on_disk():
    table = answers([[("a", 2, 0.5), ("b", 1, 0.1)], [("c", 3, 0.9)]], [{"a"}, {"d"}])
    again = ClassTable.from_frame(table.to_frame())
    assert table.left_out is not None
    assert again.left_out is not None
    for row, labels in enumerate(table.classes):
        np.testing.assert_array_equal(again.left_out[row, : len(labels)], table.left_out[row, : len(labels)])
    one, two = table.by_mass_left_out, again.by_mass_left_out
    assert one is not None
    assert two is not None
    np.testing.assert_array_equal(one.plug_in, two.plug_in)


def test_by_mass_without_log_probabilities_is_refused():
    with pytest.raises(ValueError, match="no log-probabilities"):
        chances_of(ClassTable.of_arrays([[2, 1]], [0]), by_mass=True)


def seen_once(n: int, m: int, seed: int) -> ClassTable:
    """A calibrated model of which no two answers agree in their wording."""
    rng = np.random.default_rng(seed)
    pi = rng.dirichlet(np.ones(20), size=n)
    gold = (pi.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    row, label = np.nonzero(drawn := rng.multinomial(m, pi))
    times = drawn[row, label]
    row, label = np.repeat(row, times), np.repeat(label, times)
    one, logprob = np.ones(len(row), dtype=int), np.full(len(row), -20.0)
    right = gold[:, None] == np.arange(20)
    return ClassTable(
        questions=tuple(map(str, range(n))),
        groups=np.array([str(i) for i in range(n)]),
        classes=tuple(tuple(map(str, range(20))) for _ in range(n)),
        counts=drawn,
        masses=class_masses(row, label, one, logprob, shape=pi.shape),
        seen_mass=np.zeros(n),
        gold=right,
        unparsed=np.full(n, -1),
        left_out=left_out_by_mass(row, label, one, logprob, right),
    )


def test_a_confidence_that_saw_little_is_not_taken_for_exact():
    table = seen_once(600, 10, 0)
    found, chances = table.by_mass_left_out, chances_of(table, by_mass=True)
    assert found is not None
    assert chances is not None
    assert found.plug_in.mean() > chances.expected.mean() + 0.05  # the largest share overstates the largest probability
    assert chances.expected.mean() == pytest.approx(found.correct.mean(), abs=0.05)


def test_twins_of_tied_tops_are_right_in_the_same_fractions():
    table = seen_once(600, 5, 0)
    found, chances = table.by_mass_left_out, chances_of(table, by_mass=True)
    assert found is not None
    assert chances is not None
    assert found.tied.mean() > 0.3
    correct = chances.simulate(chances.uniforms(200, np.random.default_rng(0)))[1]
    assert set(np.unique(correct[:, found.tied]).round(6)) <= {0, 0.25, 0.333333, 0.5}
    assert (correct**2).mean() == pytest.approx((found.correct**2).mean(), rel=0.15)


# ---- groups ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [3, 10])
def test_groups_that_share_their_fate_are_recognised(size):
    rng = np.random.default_rng(0)
    chance = np.full(300 * size, 0.6)
    group = np.repeat(np.arange(300), size)
    together = (rng.random(300) < 0.6)[group].astype(float)
    alone = (rng.random(300 * size) < 0.6).astype(float)
    assert exact_chances(chance).grouped(together, group).shared > 0.9
    assert exact_chances(chance).grouped(alone, group).shared < 0.1
    assert exact_chances(chance).grouped(alone, None).groups is None


def test_shared_variates_keep_each_chance_and_tie_a_group_together():
    chances = exact_chances(np.full(400, 0.3)).grouped(np.repeat([1.0, 0.0] * 20, 10), np.repeat(np.arange(40), 10))
    _, correct = chances.simulate(chances.uniforms(2000, np.random.default_rng(0)))
    assert correct.mean() == pytest.approx(0.3, abs=0.01)
    of_group = correct.reshape(2000, 40, 10).mean(axis=-1)
    assert of_group.var() > 5 * 0.21 / 10  # of independent questions it would be 0.21 / 10


def test_the_null_of_grouped_questions_is_wider():
    rng = np.random.default_rng(1)
    pi = np.repeat(rng.dirichlet(np.ones(5), size=40), 10, axis=0)
    gold = np.repeat((pi[::10].cumsum(axis=1) > rng.random((40, 1))).argmax(axis=1), 10)
    counts = rng.multinomial(30, pi)
    alone = null_of(ClassTable.of_arrays(counts, gold), null_draws=200, seed=0)
    grouped = null_of(ClassTable.of_arrays(counts, gold, groups=np.repeat(np.arange(40), 10)), null_draws=200, seed=0)
    assert grouped.quantile95 > 1.5 * alone.quantile95
