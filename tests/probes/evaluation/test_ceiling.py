import numpy as np
import pytest
from scipy.special import xlogy

from probes.evaluation.ceiling import noise_ceiling, reliability
from probes.targets.closed import ClassTarget
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
