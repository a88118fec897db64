"""Rank correlation over a grid: equal to scipy's, exact under permutation of slices, fooled by no shared effects."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import spearmanr

from semcal.calibration.inference.association import grid_association


def effects(rng: np.random.Generator, shape: tuple[int, ...], own: float) -> np.ndarray:
    """Cells of a model resemble each other, and so do those of a style."""
    return rng.normal(size=(shape[0], 1, 1)) + rng.normal(size=(1, 1, shape[2])) + own * rng.normal(size=shape)


def test_rho_is_spearmans():
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, 4, 2, 3))
    found = grid_association(x, y, seed=0)
    assert found.rho == pytest.approx(spearmanr(x.ravel(), y.ravel()).statistic)
    assert found.arrangements == 24 * 2 * 6
    assert found.low < found.rho < found.high


def test_p_is_uniform_under_independence_though_models_and_styles_have_effects():
    rng = np.random.default_rng(1)
    shape = (4, 2, 3)
    ours, plain = [], []
    for _ in range(300):
        x, y = effects(rng, shape, 0.3), effects(rng, shape, 0.3)
        ours.append(grid_association(x, y, seed=0).p_negative)
        plain.append(spearmanr(x.ravel(), y.ravel(), alternative="less").pvalue)
    assert np.mean(np.array(ours) <= 0.05) < 0.08
    assert np.mean(np.array(ours) <= 0.5) == pytest.approx(0.5, abs=0.09)
    assert np.mean(np.array(plain) <= 0.05) > 0.12  # cells taken one by one are fooled


def test_what_covariates_explain_is_removed():
    rng = np.random.default_rng(2)
    shape = (6, 2, 3)
    common = rng.normal(size=shape)
    x, y = common + 0.3 * rng.normal(size=shape), -common + 0.3 * rng.normal(size=shape)
    raw, partial = grid_association(x, y, seed=0), grid_association(x, y, common[None], seed=0)
    assert raw.rho < -0.7
    assert raw.p_negative < 0.01
    assert abs(partial.rho) < 0.4
    assert partial.p_negative > 0.05


def test_what_covariates_do_not_explain_is_kept():
    rng = np.random.default_rng(3)
    shape = (6, 2, 3)
    x, nuisance = rng.normal(size=(2, *shape))
    y = -x + 0.3 * rng.normal(size=shape)
    assert grid_association(x, y, nuisance[None], seed=0).p_negative < 0.01


def test_many_arrangements_are_sampled_and_few_are_not_evidence():
    x = np.arange(48.0).reshape(8, 2, 3)
    assert grid_association(x, -x, seed=0).arrangements == 20_001
    alone = grid_association(x[:1], -x[:1], seed=0)
    assert alone.rho == -1
    assert alone.p_negative == 1 / 12


def test_nothing_to_rank_is_not_defined():
    assert np.isnan(grid_association(np.ones((3, 2)), np.arange(6.0).reshape(3, 2), seed=0).p_negative)
    with pytest.raises(ValueError, match="expected one grid"):
        grid_association(np.ones((3, 2)), np.ones((2, 3)), seed=0)
    with pytest.raises(ValueError, match="not finite"):
        grid_association(np.full((3, 2), np.nan), np.ones((3, 2)), seed=0)
