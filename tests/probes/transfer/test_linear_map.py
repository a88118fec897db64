"""Maps between the activations of two models."""

from __future__ import annotations

import numpy as np
import pytest

from probes.transfer.linear_map import fit_map, squared_errors

N, D, E, RANK = 200, 30, 20, 4
GROUP = [f"g{i // 2}" for i in range(N)]


def planted(noise: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Y is X times a matrix of rank 4, features of very different scales, and noise in units of each feature."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(2 * N, D)) * 10.0 ** rng.integers(-2, 3, size=D)
    exact = (X / X.std(0)) @ rng.normal(size=(D, RANK)) @ rng.normal(size=(RANK, E))
    Y = (exact + noise * exact.std(0) * rng.normal(size=exact.shape)) * 10.0 ** rng.integers(-2, 3, size=E) + 5
    return X.astype(np.float32), Y.astype(np.float32)


def r2(X: np.ndarray, Y: np.ndarray) -> tuple[float, int]:
    made = fit_map(X[:N], Y[:N], GROUP, seed=0)
    error, baseline = squared_errors(made, X[N:], Y[N:])
    return 1 - float(error.sum() / baseline.sum()), made.rank


def test_a_planted_map_of_low_rank_is_found_with_its_rank() -> None:
    found, rank = r2(*planted(0.5))
    assert found == pytest.approx(0.8, abs=0.05)  # of a variance of which a fifth is noise
    assert rank == RANK
    assert r2(*planted(0.0))[0] > 0.999


def test_activations_that_have_nothing_to_do_with_each_other_are_mapped_to_the_mean() -> None:
    X, Y = planted(0.0)
    found, _ = r2(X, np.random.default_rng(1).permutation(Y))
    assert -0.2 < found < 0.02


def test_a_constant_feature_is_mapped_to_itself() -> None:
    X, Y = planted(0.1)
    X[:, 3], Y[:, 2] = 7.0, -3.0
    made = fit_map(X[:N], Y[:N], GROUP, seed=0)
    np.testing.assert_allclose(made(X[N:])[:, 2], -3.0)
    assert np.isfinite(np.stack(squared_errors(made, X[N:], Y[N:]))).all()


def test_what_a_map_cannot_be_learnt_from_is_refused() -> None:
    X, Y = planted(0.1)
    for call, words in (
        (lambda: fit_map(X[:N], Y[:9], GROUP, seed=0), "200 and 9 activations"),
        (lambda: fit_map(X[:6], Y[:6], ["a", "b", "c"] * 2, seed=0), "3 groups of questions"),
    ):
        with pytest.raises(ValueError, match=words):
            call()
