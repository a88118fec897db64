"""Groups and intervals: coverage, dependence, centring."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest

from semcal.calibration.inference.bootstrap import bootstrap_interval, groups
from semcal.calibration.measures.scores import auroc, signed_gap, weighted_mean
from semcal.calibration.measures.smece import smece_batch
from semcal.calibration.resampling import Resampling


def smooth_error(confidence, correct, *, weight):
    return smece_batch(confidence, correct, weight=weight).values


def test_groups_number_the_labels():
    partition = groups(["b", "a", "b", "c"], 4)
    assert partition.count == 3
    np.testing.assert_array_equal(partition.index, [1, 0, 1, 2])
    np.testing.assert_array_equal(groups(None, 3).index, [0, 1, 2])


@pytest.mark.parametrize("labels", [["a", ""], ["a", None], [1.0, float("nan")]])
def test_missing_labels_are_refused(labels):
    with pytest.raises(ValueError, match=r"group\[1\] is missing"):
        groups(labels, 2)


def test_interval_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for seed in range(100):
        confidence = rng.uniform(0.4, 1.0, 100)
        correct = (rng.random(100) < confidence - 0.2).astype(float)  # true gap 0.2
        interval = bootstrap_interval(
            signed_gap, [confidence, correct], resampling=Resampling(bootstrap=200, level=0.9, seed=seed)
        )
        covered += interval.low <= 0.2 <= interval.high
    assert 80 <= covered <= 98


def test_replicates_are_the_statistic_of_resampled_data():
    values = np.random.default_rng(1).random(200)
    interval = bootstrap_interval(weighted_mean, [values], resampling=Resampling(bootstrap=2000, seed=0))
    assert interval.estimate == pytest.approx(values.mean())
    assert interval.replicates.mean() == pytest.approx(values.mean(), abs=2e-3)
    assert interval.replicates.std() == pytest.approx(values.std() / np.sqrt(200), rel=0.06)
    np.testing.assert_allclose([interval.low, interval.high], np.quantile(interval.replicates, [0.025, 0.975]))


def test_dependent_questions_widen_the_interval():
    rng = np.random.default_rng(2)
    sizes = rng.integers(1, 12, 60)
    labels = np.repeat(np.arange(60), sizes)
    values = np.repeat(rng.random(60), sizes)
    alone = bootstrap_interval(weighted_mean, [values], resampling=Resampling(seed=0))
    together = bootstrap_interval(weighted_mean, [values], group=labels, resampling=Resampling(seed=0))
    assert together.estimate == alone.estimate
    assert together.high - together.low > 1.8 * (alone.high - alone.low)


def test_resamples_depend_neither_on_label_values_nor_on_batches(monkeypatch):
    values = np.random.default_rng(3).random(30)
    whole = bootstrap_interval(weighted_mean, [values], resampling=Resampling(bootstrap=50, seed=4))
    monkeypatch.setattr(import_module("semcal.calibration.inference.bootstrap"), "BATCH_ELEMENTS", 100)
    labelled = bootstrap_interval(
        weighted_mean, [values], group=np.arange(30) + 7, resampling=Resampling(bootstrap=50, seed=4)
    )
    np.testing.assert_array_equal(whole.replicates, labelled.replicates)


def test_centred_interval_of_smece_holds_its_estimate():
    rng = np.random.default_rng(5)
    confidence = rng.integers(0, 51, 300) / 50
    correct = (rng.random(300) < confidence).astype(float)
    raw = bootstrap_interval(smooth_error, [confidence, correct], resampling=Resampling(bootstrap=300, seed=0))
    centred = bootstrap_interval(
        smooth_error, [confidence, correct], centred=True, bounds=(0, 1), resampling=Resampling(bootstrap=300, seed=0)
    )
    assert raw.replicates.mean() > raw.estimate  # resampling adds its own noise to a measure of absolute residuals
    assert 0 <= centred.low < centred.estimate < centred.high
    assert centred.high - centred.estimate == pytest.approx(raw.high - raw.replicates.mean())


def test_undefined_replicates_are_left_out_and_a_single_group_has_no_interval():
    interval = bootstrap_interval(auroc, [[0.1, 0.9, 0.8], [0, 1, 1]], resampling=Resampling(bootstrap=200, seed=0))
    assert np.isnan(interval.replicates).any()
    assert np.isfinite([interval.low, interval.high]).all()
    lonely = bootstrap_interval(
        weighted_mean, [[0.1, 0.9]], group=["a", "a"], resampling=Resampling(bootstrap=20, seed=0)
    )
    assert lonely.estimate == pytest.approx(0.5)
    assert np.isnan([lonely.low, lonely.high]).all()


def test_a_paired_difference_is_a_statistic_like_any_other():
    rng = np.random.default_rng(6)
    first, shift = rng.uniform(0, 0.8, 200), 0.1
    interval = bootstrap_interval(
        lambda a, b, *, weight: weighted_mean(a, weight=weight) - weighted_mean(b, weight=weight),
        [first + shift, first],
        resampling=Resampling(bootstrap=100, seed=0),
    )
    np.testing.assert_allclose([interval.low, interval.estimate, interval.high], shift)


def test_bad_input_is_named():
    with pytest.raises(ValueError, match=r"shapes \[\(2,\), \(3,\)\]"):
        bootstrap_interval(signed_gap, [[0, 1], [0, 1, 1]], resampling=Resampling(seed=0))
    with pytest.raises(ValueError, match=r"in \(0, 1\), got 95"):
        bootstrap_interval(weighted_mean, [[0, 1]], resampling=Resampling(bootstrap=10, level=95, seed=0))
    with pytest.raises(ValueError, match=r"group has shape \(1,\)"):
        bootstrap_interval(weighted_mean, [[0, 1]], group=["a"], resampling=Resampling(seed=0))
