"""The null by exchange is exact where the estimated one is not; equivalence can say yes, and no more often than it may."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from semcal.calibration.inference.equivalence import Equivalence, equivalence
from semcal.calibration.measures.smece import smece
from semcal.calibration.nulls.exchange import pooled, redrawn_gold
from semcal.calibration.nulls.null import Null, null_of, null_of_twins, simulated_null
from semcal.calibration.nulls.twins import chances_of, exact_chances, exchange_chances
from semcal.calibration.resampling import Resampling
from semcal.semantics.class_table import ClassTable
from semcal.semantics.confidence import confidences


def calibrated(n: int, m: int, rng: np.random.Generator, alpha: float = 0.5, classes: int = 8, accuracy: float = 0.0):
    """Counts and gold column of a model whose gold answers follow its own classes, or are its mode more often by `accuracy`."""
    pi = rng.dirichlet(np.full(classes, alpha), n)
    gold = (pi.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    if accuracy < 0:  # overconfident: some right answers are wrong after all
        wrong = (gold == pi.argmax(axis=1)) & (rng.random(n) < -accuracy)
        gold[wrong] = (gold[wrong] + 1) % classes
    if accuracy > 0:
        right = rng.random(n) < accuracy
        gold[right] = pi[right].argmax(axis=1)
    return rng.multinomial(m, pi), gold


def exchange_null(counts, gold, *, null_draws: int, seed: int) -> Null:
    return null_of_twins(exchange_chances(counts, gold), null_draws=null_draws, seed=seed)


def p_value(counts, gold, null, seed, draws=99):
    found = confidences(counts, gold)
    return null(counts, null_draws=draws, seed=seed).p_value(smece(found.plug_in, found.correct))


def of_exact(confidence, correct, delta: float, draws: int, seed: int) -> Equivalence:
    resampling = Resampling(null_draws=draws, seed=seed)
    return equivalence(exact_chances(confidence), correct.astype(float), delta=delta, resampling=resampling)


def by_exchange(gold):
    return lambda counts, **settings: exchange_null(counts, gold, **settings)


@pytest.mark.long
@pytest.mark.parametrize("m", [5, 50])
def test_p_value_is_uniform_for_calibrated_models_at_any_m(m):
    spread, said = [], []
    for run in range(500):
        rng = np.random.default_rng(run)
        counts, gold = calibrated(60, m, rng)
        found = confidences(counts, gold)
        observed = smece(found.plug_in, found.correct)
        null = exchange_null(counts, gold, null_draws=39, seed=run)
        above, level = (null.values > observed + 1e-12).sum(), (np.abs(null.values - observed) <= 1e-12).sum()
        spread.append((above + rng.random() * (level + 1)) / 40)  # ties broken at random: exactly uniform
        said.append(null.p_value(observed))
    assert stats.kstest(spread, "uniform").pvalue > 0.01
    assert np.mean(np.array(said) <= 0.05) <= 0.075  # the p-value reported counts ties as above


@pytest.mark.long
def test_estimated_null_is_not_at_small_m():
    found = []
    for run in range(200):
        counts, gold = calibrated(200, 5, np.random.default_rng(run), alpha=1.0, classes=20)
        found.append(p_value(counts, gold, simulated_null, run, draws=39))
    assert stats.kstest(found, "uniform").pvalue < 1e-4


@pytest.mark.long
def test_power_grows_with_n():
    power = []
    for n in (50, 200, 800):
        small = []
        for run in range(40):
            counts, gold = calibrated(n, 20, np.random.default_rng(run), accuracy=-0.3)
            small.append(p_value(counts, gold, by_exchange(gold), run, draws=39) <= 0.05)
        power.append(np.mean(small))
    assert power[0] < power[1] < power[2]
    assert power[2] > 0.9


def test_closed_form_agrees_with_exchanging_samples_one_by_one():
    rng = np.random.default_rng(3)
    counts, gold = calibrated(40, 4, rng, classes=3)
    chances = exchange_chances(counts, gold)
    mean = np.zeros((2, 40))
    pool, _ = pooled(counts, gold)
    for column in redrawn_gold(pool, rng.random((4000, len(pool)))):
        found = confidences(pool - np.eye(4, dtype=int)[column], column)
        mean += np.stack([found.plug_in, found.correct]) / 4000
    sure, right = chances.simulate(rng.random((4000, 40)))
    np.testing.assert_allclose(sure.mean(axis=0), mean[0], atol=0.02)
    np.testing.assert_allclose(right.mean(axis=0), mean[1], atol=0.04)


def test_gold_classes_that_were_never_sampled_take_part():
    null = exchange_null([[3, 1], [2, 2]], [-1, -1], null_draws=50, seed=0)
    assert null.values.shape == (50,)
    assert (null.values >= 0).all()


def test_several_correct_classes_are_simulated():
    counts, gold = calibrated(50, 20, np.random.default_rng(0))
    mask = np.zeros(counts.shape, dtype=bool)
    mask[np.arange(50), gold] = True
    one = null_of(ClassTable.of_arrays(counts, mask), null_draws=20, seed=0)
    np.testing.assert_array_equal(one.values, exchange_null(counts, gold, null_draws=20, seed=0).values)
    mask[0] = True
    several = null_of(ClassTable.of_arrays(counts, mask), null_draws=20, seed=0)
    np.testing.assert_array_equal(several.values, simulated_null(counts, null_draws=20, seed=0).values)


@pytest.mark.long
@pytest.mark.parametrize("accuracy", [-0.25, 0.12])
def test_equivalence_to_the_true_error_is_accepted_no_more_often_than_its_level(accuracy):
    accepted, within = [], []
    for run in range(30):
        rng = np.random.default_rng(run)
        top = rng.dirichlet(np.full(8, 0.5), 200).max(axis=1)
        shifted = top * (1 + accuracy) if accuracy < 0 else top + accuracy * (1 - top)
        error = abs(float((top - shifted).mean()))
        found = of_exact(top, rng.random(200) < shifted, delta=error, draws=39, seed=run)
        accepted.append(found.holds)
        within.append(found.within >= error)
    assert np.sum(accepted) <= stats.binom.ppf(0.999, 30, 0.05)
    assert np.sum(within) >= stats.binom.ppf(0.001, 30, 0.95)


def test_equivalence_holds_for_a_calibrated_model_with_enough_questions():
    rng = np.random.default_rng(1)
    top = rng.beta(2, 1.2, 3000)
    found = of_exact(top, rng.random(3000) < top, delta=0.05, draws=99, seed=0)
    assert found.holds
    assert found.within < 0.05
    few = of_exact(top[:60], rng.random(60) < top[:60], delta=0.05, draws=99, seed=0)
    assert not few.holds
    assert few.within > found.within


@pytest.mark.long
def test_equivalence_of_counts_is_not_deceived_by_what_few_samples_overstate():
    """At M = 4 the largest share overstates the largest probability, which hides that this model is underconfident."""
    accepted, errors = [], []
    for run in range(30):
        counts, gold = calibrated(400, 4, np.random.default_rng(run), classes=20, alpha=0.3, accuracy=0.55)
        table = ClassTable.of_arrays(counts, gold)
        chances = chances_of(table, by_mass=False)
        assert chances is not None
        errors.append((table.by_count.correct - chances.expected).mean())
        found = equivalence(chances, table.by_count.correct, resampling=Resampling(null_draws=39, seed=run))
        accepted.append(found.holds)
    assert np.mean(errors) > 0.05
    assert sum(accepted) <= stats.binom.ppf(0.999, 30, 0.05)


def test_impossible_settings_are_refused():
    with pytest.raises(ValueError, match="null_draws must be positive, got 0"):
        exchange_null([[1, 1]], [0], null_draws=0, seed=0)
    with pytest.raises(ValueError, match="delta must lie"):
        of_exact(np.array([0.5]), np.array([1.0]), delta=0.0, draws=9, seed=0)
    with pytest.raises(ValueError, match=r"gold\[0\] is 7"):
        exchange_null([[1, 1]], [7], null_draws=5, seed=0)
