"""The simulated null: a floor at finite M, a p-value that is uniform where the model is calibrated."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from semcal.calibration.measures.smece import smece
from semcal.calibration.nulls.null import null_band, simulated_null
from semcal.semantics.confidence import confidences


def sampled(pi: np.ndarray, m: int, rng: np.random.Generator, sharpen: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Counts of m samples from pi, and gold classes from pi ** sharpen: below 1, the model is overconfident."""
    gold_pi = pi**sharpen / (pi**sharpen).sum(axis=1, keepdims=True)
    gold = (gold_pi.cumsum(axis=1) > rng.random((len(pi), 1))).argmax(axis=1)
    return rng.multinomial(m, pi / pi.sum(axis=1, keepdims=True)), gold


def observed(counts: np.ndarray, gold: np.ndarray) -> float:
    found = confidences(counts, gold)
    return smece(found.plug_in, found.correct)


def test_p_values_are_uniform_for_a_calibrated_model():
    rng = np.random.default_rng(0)
    p_values = []
    for seed in range(60):
        counts, gold = sampled(rng.dirichlet([3.0, 1.0, 0.3, 0.1], 150), 50, rng)
        p_values.append(simulated_null(counts, null_draws=79, seed=seed).p_value(observed(counts, gold)))
    assert kstest(p_values, "uniform").pvalue > 0.01


def test_p_value_is_smallest_under_gross_overconfidence():
    rng = np.random.default_rng(1)
    counts, gold = sampled(rng.dirichlet([3.0, 1.0, 0.3, 0.1], 400), 50, rng, sharpen=0.3)
    null = simulated_null(counts, null_draws=199, seed=0)
    assert null.p_value(observed(counts, gold)) == pytest.approx(1 / 200)
    assert null.excess(observed(counts, gold)) == pytest.approx(observed(counts, gold) - null.mean)
    assert null.excess(observed(counts, gold)) > 0.1
    assert null.mean < null.quantile95
    assert null.quantile95 == pytest.approx(np.quantile(null.values, 0.95))


def test_few_samples_of_flat_classes_alone_look_miscalibrated():
    rng = np.random.default_rng(2)
    counts, gold = sampled(np.full((400, 10), 0.1), 5, rng)
    null = simulated_null(counts, null_draws=100, seed=0)
    assert null.mean > 0.1
    assert observed(counts, gold) > 0.1  # though the model is calibrated by construction
    more, _ = sampled(np.full((400, 10), 0.1), 200, rng)
    assert simulated_null(more, null_draws=100, seed=0).mean < 0.06


def test_result_depends_on_the_seed_and_not_on_chunks_padding_or_class_order():
    rng = np.random.default_rng(3)
    counts, _ = sampled(rng.dirichlet(np.full(9, 0.3), 60), 20, rng)
    null = simulated_null(counts, null_draws=40, seed=5)
    assert null.values.shape == (40,)
    np.testing.assert_array_equal(simulated_null(counts, null_draws=40, seed=5, chunk=1).values, null.values)
    padded = rng.permuted(np.pad(counts, ((0, 0), (0, 30))), axis=1)
    np.testing.assert_array_equal(simulated_null(padded, null_draws=40, seed=5).values, null.values)
    assert not np.array_equal(simulated_null(counts, null_draws=40, seed=6).values, null.values)


def test_certain_questions_have_no_floor():
    null = simulated_null([[10, 0], [0, 10], [10, 0]], null_draws=20, seed=0)
    np.testing.assert_allclose(null.values, 0, atol=1e-12)
    assert null.p_value(0.5) == pytest.approx(1 / 21)


def test_dependent_gold_classes_widen_the_null():
    rng = np.random.default_rng(4)
    counts, _ = sampled(np.tile([0.6, 0.3, 0.1], (200, 1)), 50, rng)
    alone = simulated_null(counts, null_draws=100, seed=0)
    together = simulated_null(counts, null_draws=100, seed=0, group=np.repeat(np.arange(20), 10))
    assert together.quantile95 > 1.5 * alone.quantile95


def test_band_holds_the_calibrated_curve_and_leans_below_the_diagonal_at_small_m():
    rng = np.random.default_rng(5)
    counts, _ = sampled(rng.dirichlet(np.full(6, 1.0), 500), 5, rng)
    band = null_band(counts, bandwidth=0.1, null_draws=50, seed=0)
    assert band.grid.shape == band.low.shape == band.high.shape
    middle = np.abs(band.grid - 0.6) < 0.01
    assert (band.low[middle] < band.high[middle]).all()
    assert (band.high[middle] < band.grid[middle]).all()


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="must be positive, got 0"):
        simulated_null([[1, 1]], null_draws=0, seed=0)
    with pytest.raises(ValueError, match=r"counts\[1\] to 3"):
        simulated_null([[1, 1], [1, 2]], seed=0)
    with pytest.raises(ValueError, match=r"group has shape \(1,\) but there are 2 questions"):
        simulated_null([[1, 1], [1, 1]], seed=0, group=["a"])
