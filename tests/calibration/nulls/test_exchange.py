"""The exchange of gold answer and samples: what it keeps, how often each is chosen, and that its test is exact."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kstest

from semcal.calibration.nulls.exchange import pooled, redrawn_gold

COUNTS = np.array([[3, 1, 0], [0, 4, 0], [2, 2, 0]])
GOLD = np.array([2, 1, -1])


def exchanged(counts, gold, rng: np.random.Generator, draws: int) -> tuple[np.ndarray, np.ndarray]:
    """Data sets in which another of the pooled draws is gold: samples [draws, n, K + 1], gold columns [draws, n]."""
    pool, _ = pooled(counts, gold)
    columns = redrawn_gold(pool, rng.random((draws, len(pool))))
    return pool - np.eye(pool.shape[1], dtype=int)[columns], columns


def test_pool_holds_samples_and_gold_with_a_column_for_gold_outside():
    pool, column = pooled(COUNTS, GOLD)
    np.testing.assert_array_equal(pool, [[3, 1, 1, 0], [0, 5, 0, 0], [2, 2, 0, 1]])
    np.testing.assert_array_equal(column, [2, 1, 3])


def test_samples_and_gold_of_every_draw_are_the_same_pool():
    samples, gold = exchanged(COUNTS, GOLD, np.random.default_rng(0), 500)
    assert gold.shape == (500, 3)
    assert (samples >= 0).all()
    assert (samples.sum(axis=-1) == 4).all()


def test_each_of_the_pooled_draws_is_gold_equally_often():
    draws = 20_000
    _, gold = exchanged(COUNTS, GOLD, np.random.default_rng(1), draws)
    share = np.stack([(gold == k).mean(axis=0) for k in range(4)], axis=1)  # [n, K + 1]
    np.testing.assert_allclose(share, pooled(COUNTS, GOLD)[0] / 5, atol=4 * np.sqrt(0.25 / draws))


@pytest.mark.parametrize("m", [5, 50])
def test_the_test_holds_its_level_at_any_m_for_the_gap_of_the_top_class(m):
    """The share of the mode minus its being gold: biased upward at finite M, and the test knows how much."""
    rng = np.random.default_rng(m)
    p_values = []
    for _ in range(300):
        pi = rng.dirichlet(np.ones(6), size=25)
        counts, gold = rng.multinomial(m, pi), np.array([rng.choice(6, p=row) for row in pi])

        def gap(counts, gold):
            first = counts == counts.max(axis=-1, keepdims=True)
            hit = np.take_along_axis(first, gold[..., None], axis=-1)[..., 0] / first.sum(axis=-1)
            return (counts.max(axis=-1) / counts.sum(axis=-1) - hit).mean(axis=-1)

        null = gap(*exchanged(counts, gold, rng, 99))
        p_values.append((1 + (null >= gap(counts, gold) - 1e-12).sum()) / 100)
    # At a true level of at most 5 %, 300 tests reject 15; 28 is beyond the 99.9 % quantile of the binomial.
    assert (np.array(p_values) <= 0.05).sum() <= 27
    assert kstest(p_values, "uniform").pvalue > 0.01


def test_impossible_input_is_refused():
    with pytest.raises(ValueError, match="same number of samples"):
        pooled([[1, 2], [1, 1]], [0, 0])
    with pytest.raises(ValueError, match=r"gold\[1\] is 2"):
        pooled([[1, 2], [2, 1]], [0, 2])
