"""The loss gap: nothing to recover from a calibrated model, and from any other what the closed form says."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.integrate import quad
from scipy.special import expit, logit
from scipy.stats import beta

from semcal.calibration.inference.bootstrap import folds_by_group
from semcal.calibration.measures.loss_gap import (
    CELL,
    CLIP,
    basis,
    fit_tilts,
    inside,
    loss_change,
    loss_gap,
    simulated_loss_gap,
)
from semcal.calibration.measures.scores import log_loss
from semcal.calibration.resampling import Resampling
from semcal.semantics.confidence import confidences

LAW = beta(2, 1.2)  # of the confidences


def world(n: int, temperature: float, rng: np.random.Generator, draws: int | None = None):
    """Known confidences and answers of a model whose accuracy at c is sigma(logit(c) / temperature)."""
    shape = (n,) if draws is None else (draws, n)
    confidence = LAW.rvs(shape, random_state=rng)
    return confidence, (rng.random(shape) < expit(logit(confidence) / temperature)).astype(float)


def true_gap(temperature: float) -> float:
    """E KL(accuracy at c || c) over the law of c, by integration: what the best tilt recovers."""

    def kl(c: float) -> float:
        a = expit(logit(c) / temperature)
        return a * np.log(a / c) + (1 - a) * np.log((1 - a) / (1 - c))

    return quad(lambda c: LAW.pdf(c) * kl(c), 0, 1)[0]


def test_a_tilt_changes_the_log_loss_as_a_recalibration_changes_the_binary_one():
    rng = np.random.default_rng(0)
    confidence, correct, tau = rng.uniform(0.001, 0.999, 500), rng.integers(0, 2, 500), rng.normal(0, 2, 500)
    # The gold answer's log loss over the whole answer space: top class k* (three answers) and the rest (four).
    inside_share, outside_share = rng.dirichlet(np.ones(3), 500), rng.dirichlet(np.ones(4), 500)
    law = np.concatenate([confidence[:, None] * inside_share, (1 - confidence[:, None]) * outside_share], axis=1)
    tilted = law * np.exp(tau[:, None] * (np.arange(7) < 3))
    tilted /= tilted.sum(axis=1, keepdims=True)
    gold = np.where(correct == 1, rng.integers(0, 3, 500), rng.integers(3, 7, 500))
    rows = np.arange(500)
    by_answers = np.log(law[rows, gold]) - np.log(tilted[rows, gold])
    np.testing.assert_allclose(loss_change(confidence, correct, tau), by_answers, atol=1e-12)
    mended = expit(logit(confidence) + tau)
    binary = [
        log_loss(mended[i : i + 1], correct[i : i + 1]) - log_loss(confidence[i : i + 1], correct[i : i + 1])
        for i in rows
    ]
    np.testing.assert_allclose(loss_change(confidence, correct, tau), binary, atol=1e-12)


@pytest.mark.long
@pytest.mark.parametrize("n", [150, 600])
def test_nothing_is_recovered_from_a_calibrated_model(n):
    rng = np.random.default_rng(n)
    found = [loss_gap(*world(n, 1.0, rng), resampling=Resampling(bootstrap=200, seed=i)) for i in range(200)]
    assert np.mean([gap.low <= 0 <= gap.high for gap in found]) >= 0.93
    estimates = np.array([gap.estimate for gap in found])
    assert -1.5 / n < estimates.mean() < 0.5 / n  # not dragged down by overfitting: five free functions cost 5 / (2 n)


@pytest.mark.parametrize(("temperature", "sign"), [(2.0, -1), (0.5, 1)])
def test_a_miscalibrated_model_is_found_out_and_the_tilt_says_which_way(temperature, sign):
    rng = np.random.default_rng(1)
    found = [loss_gap(*world(1500, temperature, rng), resampling=Resampling(bootstrap=200, seed=i)) for i in range(20)]
    assert all(gap.low > 0 for gap in found)
    for gap in found:
        assert np.sign(gap.mean_tilt) == sign
        assert np.sign(gap.tilt[gap.grid > 0.7]).mean() == sign


@pytest.mark.parametrize("temperature", [1.5, 0.7])
def test_the_estimate_comes_near_the_population_gap_from_below(temperature):
    rng = np.random.default_rng(2)
    errors = []
    for n, draws in ((300, 100), (1000, 60), (10_000, 20)):
        errors.append(true_gap(temperature) - simulated_loss_gap(*world(n, temperature, rng, draws)).mean)
    assert errors[0] > errors[1] > errors[2]
    assert abs(errors[2]) < 0.05 * true_gap(temperature)
    gap = loss_gap(*world(100000, temperature, rng), resampling=Resampling(bootstrap=200))
    assert gap.estimate == pytest.approx(true_gap(temperature), rel=0.1)
    wanted = (1 / temperature - 1) * logit(gap.grid)
    usual = (gap.grid > 0.15) & (gap.grid < 0.97)
    np.testing.assert_allclose(gap.tilt[usual], wanted[usual], atol=0.12)


def test_a_bend_that_no_temperature_describes_is_recovered():
    rng = np.random.default_rng(3)
    confidence = LAW.rvs(50_000, random_state=rng)
    accuracy = np.where(confidence > 0.75, confidence - 0.3 * (confidence - 0.75) / 0.25, confidence)
    correct = (rng.random(50_000) < accuracy).astype(float)
    truth = np.mean(log_loss(confidence, accuracy) - log_loss(accuracy, accuracy))
    assert loss_gap(confidence, correct, resampling=Resampling(bootstrap=50)).estimate > 0.93 * truth


def test_noise_of_finite_m_opens_a_gap_that_the_null_explains():
    rng = np.random.default_rng(4)

    def sampled(pi: np.ndarray, m: int, gold_pi: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        gold = (gold_pi.cumsum(axis=1) > rng.random((len(pi), 1))).argmax(axis=1)
        found = confidences(rng.multinomial(m, pi), gold)
        return found.plug_in, found.correct

    pi = rng.dirichlet(np.full(8, 0.6), 1000)
    draws = [sampled(pi, 10, pi) for _ in range(50)]
    null = simulated_loss_gap(*(np.array(column) for column in zip(*draws, strict=True)), m=10)
    assert null.values.shape == (50,)
    assert null.mean > 0.005
    calibrated = loss_gap(*sampled(pi, 10, pi), m=10, resampling=Resampling(bootstrap=100))
    assert calibrated.low > 0  # though it is calibrated by construction
    assert 0.02 < null.p_value(calibrated.estimate) < 0.98
    flat = 0.4 * pi + 0.6 / 8
    assert null.p_value(
        loss_gap(*sampled(pi, 10, flat), m=10, resampling=Resampling(bootstrap=100)).estimate
    ) == pytest.approx(1 / 51)


def test_draws_are_measured_as_loss_gap_measures_one():
    rng = np.random.default_rng(5)
    confidence, correct = world(200, 2.0, rng, draws=4)
    confidence, group = np.round(confidence * 20) / 20, np.arange(200) // 4
    null = simulated_loss_gap(confidence, correct, m=20, group=group, seed=3)
    for value, c, y in zip(null.values, confidence, correct, strict=True):
        assert value == pytest.approx(
            loss_gap(c, y, m=20, group=group, resampling=Resampling(bootstrap=10, seed=3)).estimate, abs=1e-9
        )


def test_groups_are_held_out_whole():
    group = np.repeat([f"g{i}" for i in range(23)], np.arange(23) % 5 + 1)
    fold = folds_by_group(group, len(group), 5, seed=0)
    assert set(fold) == set(range(5))
    for label in set(group):
        assert len(set(fold[group == label])) == 1
    np.testing.assert_array_equal(fold, folds_by_group(group, len(group), 5, seed=0))
    assert not np.array_equal(fold, folds_by_group(group, len(group), 5, seed=1))


def test_what_hangs_together_in_groups_cannot_pass_for_a_gap():
    # Each group has its confidence and its outcome. Split by question, a tilt would learn the outcome of some groups.
    rng = np.random.default_rng(6)
    wins = []
    for seed in range(40):
        group = np.repeat(np.arange(40), 25)
        confidence = LAW.rvs(40, random_state=rng)
        correct = (rng.random(40) < confidence)[group]
        apart = loss_gap(confidence[group], correct, group=group, resampling=Resampling(bootstrap=200, seed=seed))
        mixed = loss_gap(confidence[group], correct, resampling=Resampling(bootstrap=200, seed=seed))
        wins.append((apart.low > 0, mixed.low > 0))
    honest, leaking = np.mean(wins, axis=0)
    assert honest < 0.1
    assert leaking > 0.7


def test_the_drops_are_what_the_tilts_do():
    confidence, correct = world(400, 2.0, np.random.default_rng(7))
    correct[:10] = 0.5
    gap = loss_gap(confidence, correct, resampling=Resampling(bootstrap=50))
    mended = expit(logit(confidence) + gap.tilts)
    assert gap.estimate == pytest.approx(log_loss(confidence, correct) - log_loss(mended, correct), abs=1e-12)
    assert gap.estimate == pytest.approx(gap.drops.mean())
    assert gap.low < gap.estimate < gap.high
    assert len(gap.penalties) == 5


@pytest.mark.parametrize("seed", range(5))
def test_the_solver_reaches_the_minimum_where_gradients_vanish(seed):
    rng = np.random.default_rng(seed)
    cells = np.unique(np.round(rng.normal(0, 4, 80) / CELL)) * CELL
    weight = rng.poisson(3, (2, 6, len(cells))).astype(float)
    correct = rng.binomial(weight.astype(int), 0.5 if seed else 0.0).astype(
        float
    )  # seed 0: all wrong, some at c = 1 - 1e-5
    penalty = 10.0 ** rng.integers(0, 4, (2, 6))
    coefficients = fit_tilts(cells, weight, correct, penalty)
    share = expit(cells + coefficients @ basis(cells).T)
    gradient = (weight * share - correct) @ basis(cells) + penalty[..., None] * coefficients
    np.testing.assert_allclose(gradient, 0, atol=1e-5)


def test_certain_and_one_sided_answers_have_a_value():
    sure = loss_gap(np.ones(60), np.ones(60), resampling=Resampling(bootstrap=50))
    assert abs(sure.estimate) < 1e-3
    assert (
        loss_gap(np.ones(60), np.zeros(60), resampling=Resampling(bootstrap=50)).estimate > 5
    )  # nothing is as wrong as sure and wrong
    assert loss_gap(np.full(60, 0.5), np.ones(60), resampling=Resampling(bootstrap=50)).estimate > 0.3
    np.testing.assert_array_equal(inside([0.0, 0.5, 1.0]), [CLIP, 0.5, 1 - CLIP])
    np.testing.assert_allclose(inside([0.0, 0.5, 1.0], m=4), [0.1, 0.5, 0.9])


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="4 groups of questions cannot fill 5 folds"):
        loss_gap([0.5] * 8, [1, 0] * 4, group=[1, 1, 2, 2, 3, 3, 4, 4])
    with pytest.raises(ValueError, match="folds is 2"):
        loss_gap([0.5] * 8, [1, 0] * 4, folds=2)
    with pytest.raises(ValueError, match="m is 0"):
        loss_gap([0.5] * 8, [1, 0] * 4, m=0)
    with pytest.raises(ValueError, match=r"expects one row, got shape \(2, 8\)"):
        loss_gap(np.full((2, 8), 0.5), np.ones(8))
    with pytest.raises(ValueError, match=r"expects \[null_draws, n\]"):
        simulated_loss_gap([0.5] * 8, [1, 0] * 4)
