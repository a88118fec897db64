"""Remedies fix what is miscalibrated out of fold, leave what is calibrated, and never see what they are judged on."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.special import expit, logit

from semcal.calibration.estimators.recalibration import recalibrated, remedies, temperature
from semcal.calibration.inference.bootstrap import folds_by_group
from semcal.calibration.measures.scores import auroc, brier, log_loss, signed_gap
from semcal.calibration.measures.smece import smece
from semcal.calibration.resampling import Resampling

METHODS = ["temperature", "isotonic", "beta", "tilt"]


def world(n: int, t: float, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Confidence, its true accuracy sigma(logit(c) / t), and answers."""
    rng = np.random.default_rng(seed)
    confidence = rng.beta(2, 1.2, n)
    accuracy = expit(logit(confidence) / t)
    return confidence, accuracy, (rng.random(n) < accuracy).astype(float)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("t", [0.5, 2.0])
def test_log_loss_falls_towards_that_of_the_truth_on_questions_not_fitted_on(method, t):
    confidence, accuracy, correct = world(4000, t, 0)
    before, best = (float(log_loss(c, correct)) for c in (confidence, accuracy))
    after = float(log_loss(recalibrated(confidence, correct, method), correct))
    assert before - after > 0.75 * (before - best)
    assert after > best - 1e-3


@pytest.mark.parametrize("t", [0.5, 1.0, 2.0, 3.0])
def test_temperature_is_recovered(t):
    confidence, _, correct = world(40_000, t, 1)
    assert temperature(confidence, correct) == pytest.approx(t, rel=0.05)
    shares = np.random.default_rng(2).binomial(1000, confidence) / 1000
    assert temperature(shares, correct, m=1000) == pytest.approx(t, rel=0.05)


def test_temperature_at_its_ends():
    assert temperature([0.9, 0.8, 0.7], [0, 0, 0]) == np.inf
    assert temperature([0.5, 0.5], [1, 0]) == 1
    assert 1 / 20 <= temperature([0.9, 0.2], [1, 0]) < 0.1  # as steep as it may be, or as makes no difference


@pytest.mark.parametrize("method", ["temperature", "isotonic", "beta"])
@pytest.mark.parametrize("t", [0.5, 2.0])
def test_maps_rise(method, t):
    confidence, _, correct = world(600, t, 3)
    fixed, fold = recalibrated(confidence, correct, method), folds_by_group(None, 600, 5, seed=0)
    for held_out in range(5):
        order = np.argsort(confidence[fold == held_out])
        assert (np.diff(fixed[fold == held_out][order]) >= -1e-12).all()
    assert ((fixed >= 0) & (fixed <= 1)).all()


@pytest.mark.parametrize("method", METHODS)
def test_no_remedy_harms_a_calibrated_model_by_more_than_sampling_noise(method):
    harm = []
    for seed in range(12):
        confidence, _, correct = world(1500, 1.0, 10 + seed)
        harm.append(float(log_loss(recalibrated(confidence, correct, method), correct) - log_loss(confidence, correct)))
    # A temperature costs 1 / (2 n) on average, beta 3 / (2 n); isotonic, a step function, n^(-2/3) or so.
    assert np.mean(harm) < (0.02 if method == "isotonic" else 3 / 1500)


@pytest.mark.parametrize("method", METHODS)
def test_no_group_is_in_both_fit_and_evaluation(method):
    confidence, _, correct = world(600, 3.0, 5)
    group = np.arange(600) % 30  # groups of 20
    before, leaking = (recalibrated(confidence, correct, method, group=labels) for labels in (group, None))
    for label in (0, 7, 29):
        own = group == label
        planted = np.where(own, confidence < 0.5, correct)  # the contrary of what its confidence says
        after = recalibrated(confidence, planted, method, group=group)
        np.testing.assert_allclose(after[own], before[own], atol=1e-9)
        assert np.abs(after[~own] - before[~own]).max() > 1e-3
        assert np.abs(recalibrated(confidence, planted, method)[own] - leaking[own]).max() > 1e-3  # it could be seen


@pytest.mark.parametrize("method", ["temperature", "isotonic", "beta"])
def test_a_fraction_is_that_much_of_a_right_answer(method):
    confidence, _, correct = world(400, 2.0, 6)
    correct[:80] = 0.5
    fixed = recalibrated(confidence, correct, method)
    # Spelled out: every question twice, a fraction once right and once wrong.
    twice = np.concatenate([np.ceil(correct), np.floor(correct)])
    spelled = recalibrated(np.tile(confidence, 2), twice, method, group=np.tile(np.arange(400), 2))
    # Only the ends of the isotonic map depend on the number of questions.
    np.testing.assert_allclose(spelled[:400], fixed, atol=0.005 if method == "isotonic" else 1e-4)


def test_the_table_is_the_packages_own_measures_before_and_after():
    confidence, _, correct = world(500, 2.0, 7)
    confidence = np.round(confidence * 20) / 20
    table = remedies(confidence, correct, m=20, resampling=Resampling(bootstrap=100, null_draws=100, seed=1))
    assert [row.method for row in table] == ["none", *METHODS]
    for row in table:
        sure = recalibrated(confidence, correct, row.method, m=20, seed=1)
        assert row.smece == pytest.approx(smece(sure, correct))
        assert row.smece_low <= row.smece <= row.smece_high
        assert row.excess == pytest.approx(row.smece - row.null_mean)
        assert row.signed_gap == pytest.approx(float(signed_gap(sure, correct)))
        assert row.brier == pytest.approx(float(brier(sure, correct)))
        assert row.log_loss == pytest.approx(float(log_loss(sure, correct, m=20 if row.method == "none" else None)))
        assert row.auroc == pytest.approx(float(auroc(sure, correct)))
    none, *fixed = table
    np.testing.assert_array_equal(recalibrated(confidence, correct, "none"), confidence)
    assert none.p_value == pytest.approx(1 / 101)
    for row in fixed:
        assert row.smece < 0.6 * none.smece
        assert row.log_loss < none.log_loss
        assert row.p_value > 0.01


def test_one_confidence_for_all_becomes_the_accuracy():
    correct = np.tile([1.0, 1.0, 0.0, 0.0, 0.0], 40)
    for method in ("isotonic", "beta"):
        np.testing.assert_allclose(recalibrated(np.full(200, 0.9), correct, method), 0.4, atol=0.05)
    np.testing.assert_allclose(recalibrated(np.full(200, 0.5), correct, "temperature"), 0.5)


def test_bad_input_is_named():
    confidence = np.linspace(0.1, 0.9, 9)
    with pytest.raises(ValueError, match="3 groups of questions cannot fill 5 folds"):
        recalibrated(confidence, np.arange(9) % 2, "beta", group=np.arange(9) // 3)
    with pytest.raises(ValueError, match="all answers outside fold 0 are right"):
        recalibrated(confidence, np.ones(9), "temperature")
    with pytest.raises(ValueError, match="all answers outside fold 0 are wrong"):
        remedies(confidence, np.zeros(9), resampling=Resampling(bootstrap=10, null_draws=10))
    with pytest.raises(ValueError, match="method is 'platt'; expected one of none, temperature"):
        recalibrated(confidence, np.arange(9) % 2, "platt")
    with pytest.raises(ValueError, match=r"expects one row"):
        recalibrated(np.full((2, 9), 0.5), np.ones((2, 9)), "beta")
