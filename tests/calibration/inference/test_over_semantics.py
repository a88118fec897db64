"""Calibration error against KL gap over Bs: planted relations are found, and what only granularity brings is not."""

import numpy as np
import pytest

from semcal.calibration.inference.over_semantics import relation

LIMITS = {"delta": 0.05, "small_gap": 0.1, "level": 0.95}
BS, DRAWS = 60, 200


def planted(gap, excess, *, seed, error=0.005):
    """Measured values and replicates of true ones, as a bootstrap of questions gives them."""
    rng = np.random.default_rng(seed)
    values = [true + error * rng.standard_normal(len(true)) for true in (gap, excess)]
    replicates = [v[:, None] + error * rng.standard_normal((len(v), DRAWS)) for v in values]
    return values[1], values[0], replicates[1], replicates[0]


@pytest.mark.long
def test_an_error_that_grows_with_the_gap_is_seen_with_its_slope():
    rng = np.random.default_rng(0)
    gap, granularity = rng.uniform(0, 2, BS), rng.uniform(0, 4, BS)
    covered = 0
    for seed in range(12):
        found = relation(*planted(gap, 0.05 * gap, seed=seed), granularity=granularity, **LIMITS)
        assert found.rho > 0.9
        assert found.rho_given > 0.9
        covered += found.slope_low <= 0.05 <= found.slope_high
    assert covered >= 10


def test_what_granularity_alone_brings_disappears_given_granularity():
    rng = np.random.default_rng(1)
    granularity = rng.uniform(0.5, 4, BS)
    gap = 0.5 * granularity + 0.2 * rng.standard_normal(BS)
    excess = 0.03 * granularity + 0.01 * rng.standard_normal(BS)
    found = relation(*planted(gap, excess, seed=2), granularity=granularity, **LIMITS)
    assert found.rho > 0.7
    assert abs(found.rho_given) < 0.3


@pytest.mark.long
def test_unrelated_bs_rarely_exclude_zero():
    outside = {"rho": 0, "rho_given": 0, "slope": 0}
    for seed in range(40):
        rng = np.random.default_rng(seed)
        gap, excess = rng.uniform(0, 2, 30), np.zeros(30)
        found = relation(*planted(gap, excess, seed=seed), granularity=rng.uniform(0, 4, 30), **LIMITS)
        for name in outside:
            outside[name] += not getattr(found, f"{name}_low") <= 0 <= getattr(found, f"{name}_high")
    assert max(outside.values()) <= 6, outside


def test_a_small_gap_with_a_certain_error_is_a_violation():
    gap, excess = np.array([0.02, 0.03, 0.5, 0.095]), np.array([0.01, 0.12, 0.2, 0.2])
    found = relation(*planted(gap, excess, seed=0), granularity=np.arange(4.0), **LIMITS)
    assert (found.bs, found.small, found.violations, found.worst) == (4, 2, 1, 1)
    none = relation(*planted(gap + 1, excess, seed=0), granularity=np.arange(4.0), **LIMITS)
    assert (none.small, none.violations, none.worst) == (0, 0, -1)


def test_bs_that_are_all_alike_have_no_correlation():
    same = np.full(5, 0.2)
    excess, gap = np.tile(same[:, None], (1, DRAWS)), np.tile(same[:, None], (1, DRAWS))
    assert np.isnan(relation(same, same, excess, gap, granularity=np.arange(5.0), **LIMITS).rho)


def test_shapes_that_disagree_are_refused():
    with pytest.raises(ValueError, match="expected at least 3"):
        relation(np.zeros(2), np.zeros(2), np.zeros((2, 9)), np.zeros((2, 9)), granularity=np.zeros(2), **LIMITS)
    with pytest.raises(ValueError, match="replicates"):
        relation(np.zeros(4), np.zeros(4), np.zeros((4, 9)), np.zeros((4, 8)), granularity=np.zeros(4), **LIMITS)
