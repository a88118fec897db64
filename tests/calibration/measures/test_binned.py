"""Binned measures, Murphy's identity, selective answering: identities and what a calibrated model shows."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from sklearn.calibration import calibration_curve
from sklearn.metrics import brier_score_loss
from sklearn.metrics import log_loss as reference_log_loss

from semcal.calibration.measures.binned import binned, brier_parts, debiased_ece, ece, mce
from semcal.calibration.measures.scores import aurc, brier, log_loss, risk_coverage

shares = st.integers(2, 60).flatmap(
    lambda n: st.tuples(
        arrays(np.int64, n, elements=st.integers(0, 20)).map(lambda k: k / 20),
        arrays(np.int64, n, elements=st.integers(0, 1)).map(lambda x: x.astype(float)),
    )
)


@given(shares)
def test_murphys_parts_make_the_brier_score(pairs):
    confidence, correct = pairs
    parts = brier_parts(confidence, correct)
    score = brier(confidence, correct)
    assert parts.reliability - parts.resolution + parts.uncertainty == pytest.approx(score)
    assert score == pytest.approx(brier_score_loss(correct, confidence, pos_label=1))


@given(shares, st.integers(1, 20), st.sampled_from(["width", "mass"]))
def test_bins_hold_every_question_once_and_mce_bounds_ece(pairs, bins, scheme):
    confidence, correct = pairs
    found = binned(confidence, correct, bins, scheme=scheme)
    assert found.weight.sum() == len(confidence)
    assert found.correct.sum() == pytest.approx(correct.sum())
    assert found.confidence.sum() == pytest.approx(confidence.sum())
    assert ece(confidence, correct, bins, scheme=scheme) <= mce(confidence, correct, bins, scheme=scheme) + 1e-12


def test_one_bin_is_the_signed_gap():
    confidence, correct = np.random.default_rng(0).uniform(size=(2, 40))
    gap = abs(confidence.mean() - correct.mean())
    for scheme in ("width", "mass"):
        assert ece(confidence, correct, 1, scheme=scheme) == pytest.approx(gap)
        assert mce(confidence, correct, 1, scheme=scheme) == pytest.approx(gap)


def test_bins_of_equal_mass_are_those_of_scikit_learn_without_ties():
    rng = np.random.default_rng(1)
    confidence = rng.permutation(np.linspace(0.01, 0.99, 300))
    correct = (rng.uniform(size=300) < confidence).astype(float)
    accuracy, mean = calibration_curve(correct, confidence, n_bins=15, strategy="quantile")
    found = binned(confidence, correct, 15, scheme="mass")
    assert np.allclose(found.weight, 20)
    assert np.allclose(found.confidence / found.weight, mean)
    assert np.allclose(found.correct / found.weight, accuracy)


def test_equal_confidences_are_never_parted():
    confidence = np.array([0.2] * 7 + [0.5] * 2 + [0.9])
    found = binned(confidence, np.ones(10), 3, scheme="mass")
    assert max(found.weight.tolist()) == 7
    assert found.weight.sum() == 10


def test_a_calibrated_model_has_no_debiased_error_and_a_plain_one_for_lack_of_questions():
    rng = np.random.default_rng(2)
    confidence = rng.uniform(size=(400, 300))
    correct = (rng.uniform(size=confidence.shape) < confidence).astype(float)
    assert ece(confidence, correct, scheme="mass").mean() > 0.05
    assert np.sqrt((debiased_ece(confidence, correct) ** 2).mean()) < 0.04  # cut at 0, so a little is left
    lower = np.clip(confidence - 0.2, 0, 1)
    worse = (rng.uniform(size=confidence.shape) < lower).astype(float)
    truth = np.sqrt(np.mean((confidence - lower) ** 2))
    assert np.sqrt((debiased_ece(confidence, worse) ** 2).mean()) == pytest.approx(truth, abs=0.01)


def test_debiased_error_is_not_known_from_single_questions():
    assert np.isnan(debiased_ece([0.1, 0.9], [0.0, 1.0], 2))


@given(shares)
def test_log_loss_is_scikit_learns_and_smoothing_makes_it_finite(pairs):
    confidence, correct = pairs
    inside = np.clip(confidence, 0.05, 0.95)
    assert log_loss(inside, correct) == pytest.approx(reference_log_loss(correct, inside, labels=[0, 1]))
    assert np.isfinite(log_loss(confidence, correct, m=20))
    assert log_loss([1.0], [0.0]) == np.inf
    assert log_loss([1.0], [1.0]) == 0


def test_risk_coverage_by_hand():
    found = risk_coverage([0.9, 0.5, 0.5, 0.1], [1, 0, 1, 0])
    assert found.coverage.tolist() == [0.25, 0.5, 0.75, 1.0]
    assert found.risk == pytest.approx([0, 0.5 / 2, 1 / 3, 0.5])
    assert aurc([0.9, 0.5, 0.5, 0.1], [1, 0, 1, 0]) == pytest.approx(found.risk.mean())


@given(shares, st.randoms(use_true_random=False))
def test_ties_are_answered_in_random_order(pairs, random):
    confidence, correct = pairs
    order = list(range(len(confidence)))
    random.shuffle(order)
    assert aurc(confidence, correct) == pytest.approx(aurc(confidence[order], correct[order]))
    assert aurc(np.full(len(correct), 0.5), correct) == pytest.approx(1 - correct.mean())


def test_a_leading_axis_gives_what_each_row_gives():
    confidence, correct = np.random.default_rng(3).integers(0, 11, (2, 4, 50)) / 10
    for measure in (ece, mce, debiased_ece, log_loss, aurc, lambda c, r: brier_parts(c, r).resolution):
        alone = [measure(c, r) for c, r in zip(confidence, correct, strict=True)]
        assert measure(confidence, correct) == pytest.approx(np.array(alone), nan_ok=True)


@pytest.mark.parametrize("measure", [ece, mce, debiased_ece, log_loss, aurc, brier_parts])
def test_bad_input_is_named(measure):
    with pytest.raises(ValueError, match=r"confidence\[1\] is 1.5"):
        measure([0.5, 1.5], [1, 0])
    with pytest.raises(ValueError, match="shape"):
        measure([0.5], [1, 0])
    with pytest.raises(ValueError, match="scheme"):
        binned([0.5], [1.0], scheme="depth")
