"""Gap, ECE, Brier score and AUROC: against scikit-learn, against repeats, and off the grid of shares."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.metrics import brier_score_loss, roc_auc_score

from semcal.calibration.measures.binned import ece, ece_edges
from semcal.calibration.measures.scores import auroc, brier, signed_gap, weighted_mean

MEASURES = [signed_gap, ece, brier, auroc]


def rows(shape: tuple[int, ...], seed: int, m: int = 10) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    confidence = rng.integers(0, m + 1, shape) / m
    return confidence, (rng.random(shape) < confidence).astype(float)


@pytest.mark.parametrize("measure", MEASURES)
def test_leading_axes_are_a_batch(measure):
    confidence, correct = rows((3, 4, 50), 0)
    batch = measure(confidence, correct)
    assert batch.shape == (3, 4)
    for index in np.ndindex(3, 4):
        assert batch[index] == pytest.approx(float(measure(confidence[index], correct[index])))


@pytest.mark.parametrize("measure", MEASURES)
def test_weights_are_repeats(measure):
    confidence, correct = rows((60,), 1)
    weight = np.random.default_rng(2).integers(0, 4, (5, 60))
    batch = measure(confidence, correct, weight=weight)
    for value, times in zip(batch, weight, strict=True):
        assert value == pytest.approx(float(measure(np.repeat(confidence, times), np.repeat(correct, times))))


@pytest.mark.parametrize("measure", MEASURES)
def test_bad_input_is_refused(measure):
    with pytest.raises(ValueError, match=r"shape \(2,\) but correct has shape \(3,\)"):
        measure([0.1, 0.2], [1, 0, 1])
    with pytest.raises(ValueError, match=r"confidence\[0\] is nan"):
        measure([float("nan")], [1])


def test_signed_gap_is_positive_when_overconfident():
    assert signed_gap([0.9, 0.7], [1, 0]) == pytest.approx(0.3)
    assert signed_gap([0.1, 0.3], [1, 0]) == pytest.approx(-0.3)


def test_weighted_mean():
    assert weighted_mean([0.0, 1.0], weight=[1, 3]) == pytest.approx(0.75)
    with pytest.raises(ValueError, match=r"values\[1\] is 2\.0"):
        weighted_mean([0.0, 2.0])


@pytest.mark.parametrize("bins", [2, 4, 10, 15, 20, 25, 50, 80])
@pytest.mark.parametrize("m", [2, 5, 10, 20, 50, 100])
def test_ece_edges_keep_half_a_step_from_every_share(bins, m):
    edges = ece_edges(bins, m)
    shares = np.arange(m + 1) / m
    np.testing.assert_allclose(np.abs(edges[:, None] - shares).min(axis=1), 1 / (2 * m))
    if bins <= m:
        assert len(edges) == bins - 1
        assert np.abs(edges - ece_edges(bins)).max() <= 1 / (2 * m) + 1e-12


def test_ece_by_hand():
    confidence, correct = np.array([0.2, 0.2, 0.8, 0.8]), np.array([0, 1, 1, 1.0])
    assert ece(confidence, correct, bins=2) == pytest.approx(0.5 * 0.3 + 0.5 * 0.2)
    assert ece(confidence, correct, bins=1) == pytest.approx(0.25)


def test_ece_is_not_moved_by_rounding_once_edges_are_off_the_grid():
    confidence, correct = rows((500,), 3, m=50)
    nudged = np.clip(confidence + np.random.default_rng(4).choice([-1e-12, 1e-12], 500), 0, 1)
    assert ece(confidence, correct, bins=10, m=50) == pytest.approx(ece(nudged, correct, bins=10, m=50), abs=1e-9)
    assert abs(ece(confidence, correct, bins=10) - ece(nudged, correct, bins=10)) > 1e-3  # the trap itself


def test_ece_refuses_no_bins():
    with pytest.raises(ValueError, match="bins=0"):
        ece([0.5], [1], bins=0)


@pytest.mark.parametrize("seed", range(4))
def test_auroc_and_brier_equal_scikit_learn(seed):
    confidence, correct = rows((200,), seed, m=[5, 50, 1000, 3][seed])
    assert auroc(confidence, correct) == pytest.approx(roc_auc_score(correct, confidence))
    assert brier(confidence, correct) == pytest.approx(brier_score_loss(correct, confidence))


def test_fractional_correctness_is_the_expectation_over_tie_breaks():
    # A question that is half correct equals half a correct and half a wrong question.
    confidence, correct = np.array([0.2, 0.5, 0.9]), np.array([0.0, 0.5, 1.0])
    spelled_out = np.array([0.2, 0.2, 0.5, 0.5, 0.9, 0.9]), np.array([0, 0, 1, 0, 1, 1])
    assert auroc(confidence, correct) == pytest.approx(roc_auc_score(spelled_out[1], spelled_out[0]))
    assert brier(confidence, correct) == pytest.approx(brier_score_loss(spelled_out[1], spelled_out[0]))


def test_auroc_is_undefined_for_one_outcome():
    assert np.isnan(auroc([0.2, 0.8], [1, 1]))
    np.testing.assert_array_equal(np.isnan(auroc([[0.2, 0.8]] * 2, [[0, 0], [0, 1]])), [True, False])
