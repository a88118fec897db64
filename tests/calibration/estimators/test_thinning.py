"""Thinned counts: the moments of the multivariate hypergeometric distribution, totals kept."""

from __future__ import annotations

import numpy as np
import pytest

from semcal.calibration.estimators.finite_m import thin


def test_thinned_counts_have_the_hypergeometric_moments():
    counts = np.array([[20, 12, 8, 0], [1, 0, 38, 1]])
    total, m, repeats = 40, 15, 40_000
    found = thin(counts, m, rng=np.random.default_rng(0), repeats=repeats)
    share = counts / total
    np.testing.assert_allclose(found.mean(axis=0), m * share, atol=0.04)
    for row in range(2):
        p = share[row]
        covariance = m * (np.diag(p) - np.outer(p, p)) * (total - m) / (total - 1)
        np.testing.assert_allclose(np.cov(found[:, row].T), covariance, atol=0.05)


def test_thinning_keeps_totals_and_takes_nothing_that_is_not_there():
    rng = np.random.default_rng(1)
    counts = rng.multinomial(30, rng.dirichlet(np.ones(6), 200))
    found = thin(counts, 9, rng=rng, repeats=5)
    assert found.shape == (5, 200, 6)
    assert (found.sum(axis=-1) == 9).all()
    assert ((found >= 0) & (found <= counts)).all()
    np.testing.assert_array_equal(thin(counts, 30, rng=rng, repeats=2), np.stack([counts, counts]))


def test_thinning_follows_its_generator():
    counts = np.random.default_rng(2).multinomial(20, np.full(5, 0.2), size=50)
    first, second = (thin(counts, 7, rng=np.random.default_rng(3), repeats=2) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert (first[0] != first[1]).any()


@pytest.mark.parametrize(("m", "repeats"), [(0, 1), (6, 1), (3, 0)])
def test_more_than_there_is_cannot_be_chosen(m, repeats):
    with pytest.raises(ValueError, match=f"cannot choose {m} of 5 samples {repeats} times"):
        thin(np.array([[4, 4], [3, 2]]), m, rng=np.random.default_rng(0), repeats=repeats)
