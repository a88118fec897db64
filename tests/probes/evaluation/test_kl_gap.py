"""The KL gap of predictors whose gap is known, against a naive second implementation."""

from __future__ import annotations

from functools import partial
from itertools import product

import numpy as np
import pytest
from scipy.special import digamma, rel_entr, xlogy

from probes.evaluation.kl_gap import KLGap, kl_gap, kl_gaps, perfect_gap
from probes.targets.closed import ClassTarget
from probes.targets.entropy import entropies
from probes.targets.open import OpenTarget, sparse
from semcal.calibration.resampling import Resampling

FAST = Resampling(bootstrap=50)


def target_of(share: np.ndarray, m: int | None) -> OpenTarget:
    return sparse(ClassTarget(tuple(f"{k:03d}" for k in range(share.shape[1])), share, m))


def measured(
    share: np.ndarray, m: int | None, q: np.ndarray, group: list[str] | None = None, how: Resampling = FAST
) -> KLGap:
    """Of predictions [question, class]."""
    target = target_of(share, m)
    log_q = np.log(q[target.question, target.column])
    names = [str(i) for i in range(len(share))] if group is None else group
    return kl_gap(target, log_q, entropies(share, m), names, how)


def world(n: int, K: int, alpha: float, m: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    pi = rng.dirichlet(np.full(K, alpha), n) + 1e-12
    pi /= pi.sum(1, keepdims=True)
    return pi, rng.multinomial(m, pi) / m


def true_gap(pi: np.ndarray, q: np.ndarray) -> float:
    return float(rel_entr(pi, q).sum(1).mean())


# ---- the naive implementation ----------------------------------------------------------------------------------------


def naive_gap(counts: list[int], q: list[float]) -> tuple[float, float]:
    """(gap, at most) of one question, class by class."""
    m = sum(counts)
    once, twice = counts.count(1), counts.count(2)
    pairs, singles = (2 * twice, once) if twice else (2, max(once - 1, 0))
    A = pairs / ((m - 1) * singles + pairs)
    tail = sum((1 - A) ** (r - m + 1) / r for r in range(m, 200 * m)) if once else 0.0
    cross, entropy, plug_in = 0.0, 0.0, 0.0
    for c, p in zip(counts, q, strict=True):
        if c:
            cross -= c / m * np.log(p)
            entropy += c / m * (digamma(m) - digamma(c))
            plug_in -= c / m * np.log(c / m)
    entropy += once / m * tail
    return cross - entropy, cross - plug_in


def test_gaps_are_those_of_a_naive_implementation() -> None:
    rng = np.random.default_rng(0)
    counts = rng.multinomial(20, rng.dirichlet(np.full(9, 0.5), 40))
    q = rng.dirichlet(np.ones(9), (3, 40))
    target = target_of(counts / 20, 20)
    log_q = np.log(q[:, target.question, target.column])
    group = [f"g{i // 3}" for i in range(40)]
    found = kl_gaps(target, log_q, entropies(counts / 20, 20), group, FAST)
    for own, predicted in zip(found, q, strict=True):
        naive = [naive_gap(c.tolist(), p.tolist()) for c, p in zip(counts, predicted, strict=True)]
        np.testing.assert_allclose(own.per_question, [gap for gap, _ in naive])
        assert own.gap == pytest.approx(np.mean([gap for gap, _ in naive]))
        assert own.at_most == pytest.approx(np.mean([most for _, most in naive]))
        assert own.cross_entropy - own.entropy == pytest.approx(own.gap)
        assert own.top + own.rest == pytest.approx(own.gap)
    alone = kl_gap(target, log_q[1], entropies(counts / 20, 20), group, FAST)
    assert (alone.low, alone.high, alone.top) == (found[1].low, found[1].high, found[1].top)


def test_the_top_class_is_what_all_halvings_say(monkeypatch: pytest.MonkeyPatch) -> None:
    """Six samples of two questions: every one of the 20 halves, ties at random, by hand."""
    monkeypatch.setattr("probes.evaluation.kl_gap._FLOOR_DRAWS", 1)
    counts = np.array([[4, 2], [3, 3]])
    q = np.array([[0.7, 0.3], [0.2, 0.8]])
    expected = []
    for row, own in zip(counts, q, strict=True):
        samples = np.repeat([0, 1], row)
        values = []
        for half in product([True, False], repeat=6):
            if sum(half) != 3:
                continue
            chosen, rest = (
                np.bincount(samples[list(half)], minlength=2),
                np.bincount(samples[~np.array(half)], minlength=2),
            )
            tops = np.flatnonzero(chosen == chosen.max())
            for top in tops:
                share = rest[top] / 3
                both = np.array([[share, 1 - share]])
                cross = -share * np.log(own[top]) - (1 - share) * np.log(1 - own[top])
                values.append((cross - entropies(both, 3).point[0]) / len(tops))
        expected.append(np.sum(values) / 20)
    draws = [measured(counts / 6, 6, q, how=Resampling(2, seed=seed)).top_per_question for seed in range(150)]
    np.testing.assert_allclose(np.mean(draws, axis=0), expected, atol=0.03)


# ---- planted truth ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("K", "alpha", "most"), [(1, 1.0, 1e-9), (2, 1.0, 0.004), (5, 1.0, 0.01), (40, 0.3, 0.04)])
def test_a_perfect_predictor_has_no_gap_and_an_uninformative_one_its_own(K: int, alpha: float, most: float) -> None:
    pi, share = world(1500, K, alpha, 50)
    for q in (pi, np.broadcast_to(np.full(K, 1 / K), pi.shape), 0.7 * pi + 0.3 / K):
        found = measured(share, 50, q)
        noise = 4 * np.std(-(share - pi) @ np.log(q).T.mean(1)) / np.sqrt(1500)
        assert found.gap == pytest.approx(true_gap(pi, q), abs=most + noise)
        assert found.at_most > true_gap(pi, q) - noise - 1e-9


@pytest.mark.parametrize("m", [10, 50])
def test_the_truth_lies_between_at_least_and_at_most(m: int) -> None:
    rng = np.random.default_rng(5)
    for K, wordings in ((3, 1), (30, 1), (30, 20)):
        pi = rng.dirichlet(np.full(K, 0.5), 800)
        counts = rng.multinomial(m, pi)
        split = rng.dirichlet(np.ones(wordings), pi.shape)
        with np.errstate(divide="ignore"):
            log_seen = np.log((pi[..., None] * split * (rng.multinomial(counts, split) > 0)).sum(-1))
        target = target_of(counts / m, m)
        q = 0.5 * pi + 0.5 / K
        log_q = np.log(q[target.question, target.column])
        known = entropies(counts / m, m, log_seen=log_seen)
        found = kl_gap(target, log_q, known, [str(i) for i in range(800)], FAST)
        assert found.at_least - 0.02 < true_gap(pi, q) < found.at_most + 0.02
        assert found.at_least <= found.gap + 1e-9 <= found.at_most + 2e-9


def test_the_top_class_and_the_rest_are_those_of_the_chain_rule() -> None:
    pi, share = world(2000, 6, 0.4, 50)
    top = pi.argmax(1)
    rows = np.arange(2000)
    only_top = pi.copy()  # off in the top class alone, the others in the same proportions
    only_top[rows, top] = 0.5
    rest = 1 - pi[rows, top]
    scale = (0.5 / np.maximum(rest, 1e-9))[:, None]
    only_top = np.where(np.arange(6) == top[:, None], 0.5, pi * scale)
    found = measured(share, 50, only_top)
    assert found.top == pytest.approx(true_gap(pi, only_top), abs=0.02)
    assert found.rest == pytest.approx(0, abs=0.03)
    evened = np.where(np.arange(6) == top[:, None], pi, rest[:, None] / 5)  # right about the top class alone
    found = measured(share, 50, evened)
    assert found.top == pytest.approx(0, abs=0.02)
    assert found.rest == pytest.approx(true_gap(pi, evened), abs=0.03)


def test_a_flat_distribution_is_not_charged_for_the_luck_of_its_most_frequent_class() -> None:
    """Of 200 equal classes, one is drawn three times of fifty; a perfect predictor gives it 0.005."""
    pi, share = world(400, 200, 1e4, 50)
    found = measured(share, 50, pi)
    assert abs(found.top) < 0.02
    naive = np.array([row.max() for row in share])
    both = np.stack([naive, 1 - naive], 1)
    assert rel_entr(both, [[0.005, 0.995]]).sum(1).mean() > 0.05


def test_exact_masses_have_an_exact_gap() -> None:
    rng = np.random.default_rng(0)
    pi, q = rng.dirichlet(np.ones(5), 30), rng.dirichlet(np.ones(5), 30)
    found = measured(pi, None, q)
    assert found.gap == pytest.approx(true_gap(pi, q))
    assert found.at_least == pytest.approx(found.gap) == found.at_most
    p, r = pi.max(1), q[np.arange(30), pi.argmax(1)]
    assert found.top == pytest.approx(np.mean(xlogy(p, p / r) + xlogy(1 - p, (1 - p) / (1 - r))))
    assert (found.floor, found.floor_q95) == (0.0, 0.0)


def test_a_constant_distribution_has_no_gap_to_its_own_mean() -> None:
    share = np.random.default_rng(0).multinomial(50, [0.6, 0.3, 0.1], size=300) / 50
    assert abs(measured(share, 50, np.broadcast_to([0.6, 0.3, 0.1], share.shape)).gap) < 0.01


def test_what_a_perfect_predictor_is_measured_to_have_is_about_nothing_and_narrows_with_questions() -> None:
    for n in (30, 300):
        pi, share = world(n, 5, 1.0, 50)
        mean, high = perfect_gap(target_of(share, 50), 0)
        assert abs(mean) < 0.01 < high + 0.01
        assert high - mean < 0.2 / np.sqrt(n)
        assert measured(share, 50, pi).floor_q95 == high
    few = world(300, 5, 1.0, 6)[1]
    assert perfect_gap(target_of(few, 6), 0)[1] > perfect_gap(target_of(world(300, 5, 1.0, 50)[1], 50), 0)[1]


# ---- intervals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("count", "size"), [(8, 1), (60, 1), (30, 4)])
def test_intervals_cover_the_truth_as_often_as_they_say(monkeypatch: pytest.MonkeyPatch, count: int, size: int) -> None:
    """Groups are drawn from a population, and the questions of a group share their difficulty."""
    monkeypatch.setattr("probes.evaluation.kl_gap._FLOOR_DRAWS", 1)
    monkeypatch.setattr("probes.evaluation.kl_gap._HALVINGS", 1)
    covered = []
    for seed in range(100):
        rng = np.random.default_rng(seed)
        hard = np.repeat(rng.uniform(0, 0.8, count), size)
        pi = rng.dirichlet(np.full(4, 2.0), count * size)
        q = (1 - hard[:, None]) * pi + hard[:, None] / 4
        share = rng.multinomial(50, pi) / 50
        group = np.repeat(np.arange(count), size).astype(str).tolist()
        found = measured(share, 50, q, group, Resampling(200, seed=seed))
        covered.append(found.low <= POPULATION <= found.high)
    assert np.mean(covered) > 0.85  # 93 % and 92 % in 400 worlds; the plain percentile misses more with 8 groups


def _population() -> float:
    rng = np.random.default_rng(99)
    hard, pi = rng.uniform(0, 0.8, 200_000), rng.dirichlet(np.full(4, 2.0), 200_000)
    return true_gap(pi, (1 - hard[:, None]) * pi + hard[:, None] / 4)


POPULATION = _population()


# ---- what is refused -------------------------------------------------------------------------------------------------


def test_what_cannot_be_measured_is_refused_in_one_line() -> None:
    pi, share = world(6, 3, 1.0, 10)
    names = list("abcdef")
    target = target_of(share, 10)
    log_q = np.log(pi[target.question, target.column])
    gap = partial(kl_gap, target, found=entropies(share, 10), group=names, resampling=FAST)
    for bad, words in (
        (np.where(target.question == 1, np.nan, log_q), r"log_q\[0\] is nan for a class of question 1"),
        (np.where(target.question == 1, -np.inf, log_q), "above 0"),
        (np.zeros(len(log_q)), r"question \d a probability of \d together; expected at most 1"),
        (log_q[:-1], r"expected \[row, entry\]"),
    ):
        with pytest.raises(ValueError, match=words) as refused:
            gap(bad)
        assert "\n" not in str(refused.value)
    with pytest.raises(ValueError, match="at least 2 groups"):
        gap(log_q, group=["same"] * 6)
    with pytest.raises(ValueError, match=r"group\[0\] is missing"):
        gap(log_q, group=["", *names[1:]])
    with pytest.raises(ValueError, match="no shares of M = 7 samples"):
        kl_gap(target_of(share, 7), log_q, entropies(share, 10), names, FAST)


def test_two_questions_and_few_samples_are_measured_and_say_how_little_is_known() -> None:
    pi, share = world(2, 3, 1.0, 10)
    found = measured(share, 10, pi)
    assert found.low < found.gap < found.high
    assert np.isnan(found.at_least)
    two = measured(world(20, 3, 1.0, 2)[1], 2, world(20, 3, 1.0, 2)[0])
    assert np.isfinite(two.gap)
    assert np.isnan([two.top, two.top_low, two.rest, two.rest_low]).all()
    one = measured(world(20, 3, 1.0, 1)[1], 1, world(20, 3, 1.0, 1)[0])
    assert np.isnan([one.gap, one.low, one.floor]).all()
    assert np.isfinite(one.at_most)


def test_a_predictor_that_is_nearly_sure_has_a_finite_top_gap() -> None:
    share = np.tile([1.0, 0.0], (10, 1))
    share[0] = [0.9, 0.1]
    q = np.tile([1 - 1e-17, 1e-17], (10, 1))
    found = measured(share, 10, q)
    assert np.isfinite([found.gap, found.top]).all()


def test_nothing_but_the_seed_decides() -> None:
    pi, share = world(30, 4, 1.0, 20)
    first, again = (measured(share, 20, pi, how=Resampling(50, seed=3)) for _ in range(2))
    other = measured(share, 20, pi, how=Resampling(50, seed=4))
    assert (first.low, first.top, first.floor) == (again.low, again.top, again.floor)
    assert first.gap == other.gap
    assert first.low != other.low
