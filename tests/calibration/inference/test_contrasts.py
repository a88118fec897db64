"""Contrasts over runs: equal to the paired difference of two, right in their errors, silent where nothing varies."""

from __future__ import annotations

import numpy as np
import pytest

from semcal.calibration.inference.equivalence import loss_equivalence, loss_margins
from semcal.calibration.inference.paired import STATISTICS, contrast, leaves, paired_difference, plain_mean
from semcal.calibration.measures.loss_gap import loss_gap
from semcal.calibration.resampling import Resampling


def test_two_runs_give_the_paired_difference():
    rng = np.random.default_rng(0)
    confidence, correct = rng.random((2, 300)), rng.integers(2, size=(2, 300)).astype(float)
    group = np.arange(300) // 2
    for name in ("smece", "signed_gap"):
        runs = [
            leaves(STATISTICS[name], c, r, stratum="q", group=group, seed=3)
            for c, r in zip(confidence, correct, strict=True)
        ]
        ours = contrast([(-1.0, runs[0]), (1.0, runs[1])])
        theirs = paired_difference(
            STATISTICS[name],
            (confidence[0], correct[0]),
            (confidence[1], correct[1]),
            group=group,
            resampling=Resampling(bootstrap=10, seed=3),
        )
        assert ours.estimate == pytest.approx(theirs.estimate)
        assert ours.standard_error == pytest.approx(theirs.standard_error)
        assert 2 * min(ours.p_above(0), ours.p_below(0)) == pytest.approx(theirs.p_value)


def test_the_mean_over_datasets_has_the_error_that_repetition_shows():
    rng = np.random.default_rng(1)
    found = []
    for _ in range(200):
        own = [rng.normal(0.1, s, n) for s, n in ((1.0, 50), (0.3, 200))]
        runs = [leaves(plain_mean, v, v, stratum=str(i), group=None, seed=0) for i, v in enumerate(own)]
        found.append(contrast([(0.5, run) for run in runs]))
    spread = np.std([c.estimate for c in found])
    assert np.mean([c.standard_error for c in found]) == pytest.approx(spread, rel=0.1)
    covered = [c.interval(0.95)[0] <= 0.1 <= c.interval(0.95)[1] for c in found]
    assert 0.9 < np.mean(covered) < 0.99
    assert all(45 < c.freedom < 120 for c in found)  # the noisier of the two decides


def test_what_is_hard_for_all_runs_cancels():
    rng = np.random.default_rng(2)
    hard = rng.normal(size=400)
    runs = [leaves(plain_mean, v, v, stratum="q", group=None, seed=0) for v in (hard, hard + 0.1)]
    apart = contrast([(1.0, runs[1]), (-1.0, runs[0])])
    assert apart.standard_error < 1e-9
    assert contrast([(1.0, runs[0])]).standard_error > 0.04
    exactly = contrast([(1.0, runs[0]), (-1.0, runs[0])])
    assert (exactly.p_above(-1), exactly.p_below(1)) == (1.0, 1.0)  # nothing varied, so nothing is shown
    short = leaves(plain_mean, hard[:150], hard[:150], stratum="q", group=None, seed=0)
    with pytest.raises(ValueError, match="200 and 150 blocks"):
        contrast([(1.0, runs[0]), (1.0, short)])


def loss_test(off: float, seed: int, n: int = 1000) -> float:
    rng = np.random.default_rng([seed, 7])
    truth = rng.beta(2, 2, n)
    confidence, correct = np.clip(truth + off, 0.001, 0.999), (rng.random(n) < truth).astype(float)
    gap = loss_gap(confidence, correct, resampling=Resampling(bootstrap=1))
    return loss_equivalence([loss_margins(confidence, correct, gap, delta=0.05, seed=0)]).p_value


def test_no_loss_left_is_found_of_calibrated_models_and_seldom_of_others():
    assert np.mean([loss_test(0.0, seed) <= 0.05 for seed in range(30)]) > 0.8
    for off in (-0.05, 0.05):
        assert np.mean([loss_test(off, seed) <= 0.05 for seed in range(30)]) <= 0.1
