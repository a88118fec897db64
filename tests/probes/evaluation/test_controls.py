import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes.evaluation.controls import (
    confidence_strata,
    control_target,
    exchange_between_groups,
    maximum_null,
    permuted_rows,
    share_interval,
)
from probes.targets.closed import ClassTarget
from semcal.calibration.resampling import Resampling


def target_of(rows: np.ndarray) -> ClassTarget:
    return ClassTarget(tuple(f"c{index}" for index in range(rows.shape[1])), rows, 50)


@given(st.lists(st.tuples(st.integers(0, 6), st.integers(0, 3)), min_size=2, max_size=40), st.integers(0, 5))
def test_no_question_keeps_the_target_of_its_own_group(rows: list[tuple[int, int]], seed: int) -> None:
    group, strata = [f"g{g}" for g, _ in rows], np.array([s for _, s in rows])
    if 2 * max(group.count(name) for name in group) > len(group):
        with pytest.raises(ValueError, match="more than half"):
            exchange_between_groups(group, strata, seed=seed)
        return
    donor = exchange_between_groups(group, strata, seed=seed)
    assert sorted(donor) == list(range(len(rows)))
    assert all(group[i] != group[j] for i, j in enumerate(donor))


def test_the_control_task_keeps_the_strata_of_confidence() -> None:
    rng = np.random.default_rng(0)
    target = target_of(np.stack([rng.multinomial(50, row) for row in rng.dirichlet(np.full(6, 0.5), size=300)]) / 50)
    strata = confidence_strata(target)
    assert len(np.unique(strata)) == 5
    control = control_target(target, [str(i) for i in range(300)], strata, seed=0)
    np.testing.assert_array_equal(np.sort(control.distribution, 0), np.sort(target.distribution, 0))
    np.testing.assert_array_equal(confidence_strata(control), strata)
    assert (np.abs(control.distribution - target.distribution).sum(1) > 0).mean() > 0.9
    with pytest.raises(ValueError, match="lengths must agree"):
        control_target(target, ["a"], strata, seed=0)


def test_permutations_move_groups_of_one_size_as_blocks() -> None:
    group = list("abcdabcdabcd")
    for row in permuted_rows(group, 20, seed=0):
        assert sorted(row) == list(range(12))
        donors = {(name, group[donor]) for name, donor in zip(group, row, strict=True)}
        assert len(donors) == 4  # one donor group each


def test_permutations_of_single_questions_are_all_reached_alike() -> None:
    rows = permuted_rows(["a", "b", "c"], 6000, seed=0)
    _, counts = np.unique(rows, axis=0, return_counts=True)
    assert len(counts) == 6
    assert counts.min() > 850


def test_the_maximum_over_layers_adjusts_the_p_values() -> None:
    statistic = np.array([[0.1, 0.0, 0.2, 0.0], [0.0, 0.3, 0.0, 0.1]])
    q95, p = maximum_null(statistic, np.array([0.25, 0.9]))
    assert q95 == pytest.approx(np.quantile([0.1, 0.3, 0.2, 0.1], 0.95))
    np.testing.assert_allclose(p, [2 / 5, 1 / 5])
    assert np.isnan(maximum_null(np.empty((2, 0)), np.zeros(2))[0])


def test_the_interval_widens_when_questions_come_in_groups() -> None:
    rng = np.random.default_rng(0)
    baseline = np.ones(400)
    probe = np.repeat(rng.uniform(0, 1, size=40), 10)[None]
    low, high = share_interval(probe, baseline, [str(i) for i in range(400)], Resampling(500))
    grouped_low, grouped_high = share_interval(probe, baseline, [str(i // 10) for i in range(400)], Resampling(500))
    assert low[0] < 1 - probe.mean() < high[0]
    assert (grouped_high - grouped_low)[0] > 2 * (high - low)[0]
