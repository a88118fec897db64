"""Paired tests: levels, power, what a swap tests and what it does not, Holm's steps."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest

from semcal.calibration.inference.bootstrap import bootstrap_interval
from semcal.calibration.inference.paired import STATISTICS, holm, paired_difference, smallest_difference
from semcal.calibration.measures.scores import signed_gap
from semcal.calibration.nulls.null import simulated_null
from semcal.calibration.resampling import Resampling
from semcal.semantics.confidence import confidences


def two_runs(seed: int, n: int = 150, groups: int | None = None, shift: float = 0.0):
    """Two runs on the same questions, alike but for `shift` in the confidence of the second.

    Ease and outcome hang together between the runs and within groups.
    """
    rng = np.random.default_rng(seed)
    label = np.arange(n) if groups is None else rng.integers(groups, size=n)
    ease, luck = rng.normal(size=n)[label], rng.random(n)[label]

    def run(shift: float):
        chance = 0.1 + 0.7 / (1 + np.exp(-ease - 0.5 * rng.normal(size=n)))
        outcome = np.where(rng.random(n) < 0.5, luck, rng.random(n)) < chance
        return rng.binomial(50, chance + shift) / 50, outcome.astype(float)

    return run(0.0), run(shift), label


@pytest.mark.long
@pytest.mark.parametrize("name", ["signed_gap", "confidence", "accuracy", "brier", "auroc"])
@pytest.mark.parametrize("groups", [None, 25])
def test_where_the_runs_are_alike_both_tests_keep_their_level(name, groups):
    found = []
    for seed in range(200):
        a, b, label = two_runs(seed, groups=groups)
        d = paired_difference(STATISTICS[name], a, b, group=label, resampling=Resampling(bootstrap=99, seed=seed))
        found.append((d.p_value, d.p_exchange, not d.low <= 0 <= d.high))
    rejected = (np.array(found)[:, :2] <= 0.1).sum(axis=0)
    assert (rejected >= 8).all(), rejected  # 20 expected of 200, standard deviation 4.2
    assert (rejected <= 33).all(), rejected
    assert np.array(found)[:, 2].sum() <= 22  # 95 % intervals: 10 expected


def test_dependent_questions_taken_as_independent_are_found_different_too_often():
    alone = 0
    for seed in range(200):
        rng = np.random.default_rng(seed)
        label = np.repeat(np.arange(15), 10)
        a, b = (np.repeat(rng.random(15), 10), np.repeat(rng.random(15), 10))
        d = paired_difference(STATISTICS["confidence"], (a, a), (b, b), resampling=Resampling(bootstrap=99, seed=seed))
        alone += d.p_value <= 0.1
        if seed == 0:
            assert (
                paired_difference(
                    STATISTICS["confidence"], (a, a), (b, b), group=label, resampling=Resampling(seed=0)
                ).blocks
                == 15
            )
    assert alone > 80


def opposite(seed: int, n: int = 300):
    """One run overconfident by 0.15, the other underconfident by as much: the same smECE."""
    rng = np.random.default_rng(seed)
    ease = rng.uniform(0.3, 0.7, n)
    runs = []
    for gap in (0.15, -0.15):
        confidence = np.clip(ease + 0.05 * rng.normal(size=n), 0.2, 0.8)
        runs.append((confidence, (rng.random(n) < confidence - gap).astype(float)))
    return runs


@pytest.mark.long
def test_a_swap_tests_exchangeability_and_the_t_test_the_statistic():
    found = [
        paired_difference(STATISTICS["smece"], *opposite(seed), resampling=Resampling(bootstrap=39, seed=seed))
        for seed in range(16)
    ]
    assert sum(d.p_exchange <= 0.05 for d in found) >= 4  # the runs do differ, though not in smECE
    assert sum(d.p_value <= 0.05 for d in found) <= 3


@pytest.mark.long
def test_calibrated_runs_are_not_found_different_in_smece():
    found = []
    for seed in range(16):
        a, b, _ = two_runs(seed)
        found.append(paired_difference(STATISTICS["smece"], a, b, resampling=Resampling(bootstrap=39, seed=seed)))
    assert sum(d.p_value <= 0.1 for d in found) <= 4
    assert sum(d.p_exchange <= 0.1 for d in found) <= 5


def test_a_difference_of_floors_is_in_smece_and_hardly_in_its_excess():
    raw, excess = [], []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        runs, floors = [], []
        for concentration in (0.3, 2.0):  # sharp and flat class distributions, both calibrated, ten samples
            pi = rng.dirichlet(np.full(6, concentration), 300)
            counts = rng.multinomial(10, pi)
            found = confidences(counts, (pi.cumsum(axis=1) > rng.random((300, 1))).argmax(axis=1))
            runs.append((found.plug_in, found.correct))
            floors.append(simulated_null(counts, null_draws=50, seed=seed).mean)
        d = paired_difference(STATISTICS["smece"], *runs, resampling=Resampling(bootstrap=39, seed=seed))
        moved = d.minus(*floors)
        assert moved.high - moved.low == pytest.approx(d.high - d.low)
        assert np.isnan(moved.p_exchange)
        raw.append(d.estimate)
        excess.append(moved.estimate)
    assert np.mean(raw) > 0.04
    assert abs(np.mean(excess)) < np.mean(raw) / 2


@pytest.mark.long
def test_power_grows_with_the_number_of_questions():
    def power(n: int) -> float:
        found = [two_runs(seed, n, shift=0.06) for seed in range(60)]
        tests = [paired_difference(signed_gap, a, b, resampling=Resampling(bootstrap=99, seed=0)) for a, b, _ in found]
        return float(np.mean([d.p_value <= 0.05 for d in tests]))

    few, some, many = power(50), power(200), power(800)
    assert few < some < many
    assert many > 0.6


@pytest.mark.parametrize("groups", [None, 60])
def test_the_smallest_difference_is_found_four_times_out_of_five(groups):
    errors = []
    for seed in range(20):
        a, b, label = two_runs(seed, 200, groups)
        errors.append(
            paired_difference(
                signed_gap, a, b, group=label, resampling=Resampling(bootstrap=200, seed=seed)
            ).standard_error
        )
    shift = smallest_difference(float(np.mean(errors)))
    found = 0
    for seed in range(100, 300):
        a, b, label = two_runs(seed, 200, groups, shift=shift)
        found += (
            paired_difference(signed_gap, a, b, group=label, resampling=Resampling(bootstrap=99, seed=seed)).p_value
            <= 0.05
        )
    assert 0.71 <= found / 200 <= 0.89  # standard deviation 0.028


def test_the_standard_error_of_a_mean_is_that_of_its_groups():
    a, b, _ = two_runs(0, 120)
    difference = b[1] - a[1]
    alone = paired_difference(STATISTICS["accuracy"], a, b, resampling=Resampling(bootstrap=20, seed=0))
    assert alone.standard_error == pytest.approx(difference.std(ddof=1) / np.sqrt(120))
    together = paired_difference(
        STATISTICS["accuracy"], a, b, group=np.arange(120) // 4, resampling=Resampling(bootstrap=20, seed=0)
    )
    assert together.standard_error == pytest.approx(difference.reshape(30, 4).mean(axis=1).std(ddof=1) / np.sqrt(30))
    many = two_runs(0, 3000)
    blocks = paired_difference(STATISTICS["accuracy"], *many[:2], resampling=Resampling(bootstrap=20, seed=0))
    assert blocks.blocks == 200
    assert blocks.standard_error == pytest.approx((many[1][1] - many[0][1]).std() / np.sqrt(3000), rel=0.15)


def test_pairing_narrows_the_interval():
    a, b, _ = two_runs(0, 400)
    b = (b[0], np.where(np.random.default_rng(1).random(400) < 0.8, a[1], b[1]))
    d = paired_difference(STATISTICS["accuracy"], a, b, resampling=Resampling(seed=0))
    apart = [
        bootstrap_interval(signed_gap, [np.zeros(400), right], resampling=Resampling(seed=i))
        for i, (_, right) in enumerate((a, b))
    ]
    unpaired = np.subtract(apart[0].replicates, apart[1].replicates)
    assert d.standard_error < 0.7 * unpaired.std()
    assert d.low <= d.estimate <= d.high


def test_a_difference_that_every_question_shows_is_certain_and_none_is_none():
    a, _, _ = two_runs(0)
    same = paired_difference(STATISTICS["smece"], a, a, resampling=Resampling(bootstrap=20, seed=0))
    assert (same.estimate, same.low, same.high, same.p_value, same.p_exchange) == (0, 0, 0, 1, 1)
    shifted = paired_difference(
        STATISTICS["confidence"], a, (a[0] * 0 + 1, a[1]), resampling=Resampling(bootstrap=199, seed=0)
    )
    assert shifted.estimate == pytest.approx(1 - a[0].mean())
    assert shifted.p_value < 1e-6
    assert shifted.p_exchange == 1 / 200


def test_what_cannot_be_tested_is_nan():
    a, b, _ = two_runs(0, 20)
    lonely = paired_difference(signed_gap, a, b, group=["a"] * 20, resampling=Resampling(bootstrap=50, seed=0))
    assert np.isnan([lonely.low, lonely.standard_error, lonely.p_value]).all()
    assert lonely.p_exchange == 1  # one group: the swap and its mirror
    right = paired_difference(STATISTICS["auroc"], (a[0], np.ones(20)), b, resampling=Resampling(bootstrap=50, seed=0))
    assert np.isnan([right.estimate, right.p_value, right.p_exchange]).all()


def test_results_follow_the_seed_and_not_the_batches(monkeypatch):
    a, b, label = two_runs(0, groups=30)
    whole = paired_difference(signed_gap, a, b, group=label, resampling=Resampling(bootstrap=60, seed=1))
    for module in ("bootstrap", "paired"):
        monkeypatch.setattr(import_module(f"semcal.calibration.inference.{module}"), "BATCH_ELEMENTS", 1000)
    assert paired_difference(signed_gap, a, b, group=label, resampling=Resampling(bootstrap=60, seed=1)) == whole
    assert paired_difference(signed_gap, a, b, group=label, resampling=Resampling(bootstrap=60, seed=2)) != whole


def test_holm_steps_down():
    # 0.01 * 4, 0.02 * 3, then 0.022 * 2 = 0.044 may not fall below the one before, and 0.5 * 1.
    np.testing.assert_allclose(holm([0.022, 0.01, 0.5, 0.02]), [0.06, 0.04, 0.5, 0.06])
    np.testing.assert_allclose(holm([0.6, np.nan, 0.9]), [1.0, np.nan, 1.0])
    assert holm([]).size == 0
    with pytest.raises(ValueError, match=r"in \[0, 1\]"):
        holm([0.5, 1.5])


def test_holm_keeps_the_chance_of_any_false_rejection():
    p = np.random.default_rng(0).random((4000, 8))
    assert np.mean([holm(row).min() <= 0.05 for row in p]) == pytest.approx(0.05, abs=0.01)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"same questions \[n\] in both runs, got shapes \[\(2,\), \(3,\)\]"):
        paired_difference(signed_gap, ([0, 1], [0, 1]), ([0, 1, 1], [0, 1, 1]), resampling=Resampling(seed=0))
    with pytest.raises(ValueError, match=r"confidence\[1\] is 1\.5"):
        paired_difference(signed_gap, ([0, 1], [0, 1]), ([0, 1.5], [0, 1]), resampling=Resampling(seed=0))
    with pytest.raises(ValueError, match=r"got 0\.05 and 1"):
        smallest_difference(0.1, power=1)
