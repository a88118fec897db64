import numpy as np
import pytest
from scipy.special import xlogy

from probes.evaluation.ceiling import noise_ceiling, reliability, sampling_noise
from probes.targets.closed import ClassTarget
from probes.targets.entropy import _log_series_tail
from probes.targets.scalars import sampling_variance


def sampled(alpha: float, K: int, m: int, n: int = 1500) -> tuple[ClassTarget, np.ndarray]:
    rng = np.random.default_rng(0)
    pi = rng.dirichlet(np.full(K, alpha), size=n) + 1e-12
    pi /= pi.sum(1, keepdims=True)
    return ClassTarget(tuple(map(str, range(K))), rng.multinomial(m, pi) / m, m), pi


def nats(Y: np.ndarray, q: np.ndarray) -> float:
    return float((xlogy(Y, Y) - xlogy(Y, q)).sum(1).mean())


@pytest.mark.parametrize(("alpha", "K", "m"), [(2.0, 4, 50), (0.5, 6, 50), (0.05, 50, 50), (0.5, 6, 10), (0.05, 50, 9)])
def test_the_truth_lies_between_what_the_samples_tell_of_each_other_and_the_noise_ceiling(
    alpha: float, K: int, m: int
) -> None:
    target, pi = sampled(alpha, K, m)
    Y = target.distribution
    baseline = nats(Y, Y.mean(0))
    exact = 1 - nats(Y, pi) / baseline
    assert reliability(target, seed=0)[1] / baseline < exact + 0.003
    assert noise_ceiling(target, baseline) > exact - 0.003


@pytest.mark.parametrize(("alpha", "K", "m"), [(2.0, 4, 50), (0.5, 6, 50), (0.05, 50, 50), (0.5, 6, 10)])
def test_the_stepped_up_correlation_is_the_share_of_variance_that_is_not_noise(alpha: float, K: int, m: int) -> None:
    target, pi = sampled(alpha, K, m)
    Y = target.distribution
    exact = ((pi - pi.mean(0)) ** 2).sum() / ((Y - Y.mean(0)) ** 2).sum()
    assert reliability(target, seed=0)[0] == pytest.approx(exact, abs=0.03)


def test_samples_of_one_and_the_same_distribution_tell_nothing_of_each_other() -> None:
    rng = np.random.default_rng(0)
    target = ClassTarget(tuple("abc"), rng.multinomial(50, [0.5, 0.3, 0.2], size=1000) / 50, 50)
    stepped_up, gained = reliability(target, seed=0)
    assert stepped_up == pytest.approx(0, abs=0.05)
    assert gained == pytest.approx(0, abs=1e-3)


def test_exact_targets_and_single_samples() -> None:
    rows = np.eye(3)
    exact = reliability(ClassTarget(tuple("abc"), rows, None), seed=0)
    assert exact == (1, pytest.approx(np.log(3)))
    assert np.isnan(reliability(ClassTarget(tuple("abc"), rows, 1), seed=0)[1])


def test_sampling_variance_of_a_share_is_that_of_the_binomial() -> None:
    rng = np.random.default_rng(0)
    p = rng.uniform(0.1, 0.9, size=3000)
    counts = np.stack([hits := rng.binomial(40, p), 40 - hits], 1)
    found = sampling_variance(counts, lambda c: c[:, 0] / c.sum(1), seed=0)
    assert found == pytest.approx((p * (1 - p)).mean() / 40, rel=0.05)
    assert np.isnan(sampling_variance(np.eye(2, dtype=int), lambda c: c[:, 0] / 1, seed=0))


def test_the_ceiling_falls_with_fewer_samples_and_stays_a_share() -> None:
    ceilings = []
    for m in (1000, 50, 10, 5):
        target, _ = sampled(0.5, 8, m, n=500)
        ceilings.append(noise_ceiling(target, nats(target.distribution, target.distribution.mean(0))))
    assert all(0 <= ceiling <= 1 for ceiling in ceilings)
    assert ceilings == sorted(ceilings, reverse=True)
    assert ceilings[0] > 0.99


@pytest.mark.parametrize(("alpha", "K"), [(2.0, 4), (0.5, 6), (0.05, 50)])
def test_the_ceiling_is_what_the_true_distributions_explain(alpha: float, K: int) -> None:
    target, pi = sampled(alpha, K, 50, n=2000)
    baseline, noise = nats(target.distribution, target.distribution.mean(0)), nats(target.distribution, pi)
    assert 0.8 < sampling_noise(target) / noise < 1.05
    assert noise_ceiling(target, baseline) == pytest.approx(1 - noise / baseline, abs=0.015)


def test_sampling_noise_agrees_with_the_classical_value_where_that_holds() -> None:
    rng = np.random.default_rng(0)
    target = ClassTarget(tuple("abcde"), rng.multinomial(500, np.full(5, 0.2), size=3000) / 500, 500)
    assert sampling_noise(target) == pytest.approx(4 / 1000, rel=0.05)


@pytest.mark.parametrize("m", [2, 50, 400, 2000])
def test_the_tail_of_the_series_is_summed_without_loss(m: int) -> None:
    q = np.concatenate([[0.0], np.linspace(0.01, 0.99, 30), [1 - 1e-3]])
    j = np.arange(60_000)[:, None]
    np.testing.assert_allclose(_log_series_tail(q, m), (q ** (j + 1) / (m + j)).sum(0), rtol=1e-5)


def test_the_ceiling_of_exact_or_empty_targets() -> None:
    def target_of(m: int | None) -> ClassTarget:
        return ClassTarget(tuple("abc"), np.full((4, 3), 1 / 3), m)

    assert noise_ceiling(target_of(None), 0.5) == 1
    assert noise_ceiling(target_of(3), 1e-3) == 0
    assert np.isnan(noise_ceiling(target_of(1), 0.5))
    assert np.isnan(noise_ceiling(target_of(50), 0.0))
