"""Subspaces: what the probe reads is gone when they are, and random ones are as strong as they claim."""

from __future__ import annotations

import numpy as np
import pytest

from probes.interventions.subspaces import (
    chosen_probe,
    confidence_direction,
    covariance,
    probe_subspace,
    random_subspaces,
    removed_variance,
)
from probes.rungs.linear import LinearProbe

RNG = np.random.default_rng(0)
X = RNG.standard_normal((200, 12)) @ (RNG.standard_normal((12, 12)) * np.exp(-np.arange(12) / 3)) + 5
LOGITS = (X - 5) @ RNG.standard_normal((12, 5))
Y = np.exp(LOGITS) / np.exp(LOGITS).sum(1, keepdims=True)
COV = covariance(X)


def ablated(basis: np.ndarray) -> np.ndarray:
    return X - (X - X.mean(0)) @ basis @ basis.T


def test_without_its_whole_subspace_a_probe_says_the_same_of_everything():
    probe = LinearProbe(1.0).fit(X, Y)
    basis = probe_subspace(probe.weight_, 99, COV)
    assert basis.shape == (12, 4)  # five classes, whose common shift says nothing
    said = probe.predict(ablated(basis))
    np.testing.assert_allclose(said, said[:1].repeat(200, 0), atol=1e-8)


def test_a_subspace_of_low_rank_takes_the_logits_that_vary_most():
    weight = LinearProbe(1.0).fit(X, Y).weight_
    centred = weight - weight.mean(1, keepdims=True)
    for rank in (1, 2, 3):
        basis = probe_subspace(weight, rank, COV)
        np.testing.assert_allclose(basis.T @ basis, np.eye(rank), atol=1e-10)
        _, vectors = np.linalg.eigh(centred.T @ COV @ centred)
        top = ablated(basis) @ centred @ vectors[:, -rank:]
        np.testing.assert_allclose(top, top[:1].repeat(200, 0), atol=1e-8)
    np.testing.assert_allclose(
        probe_subspace(weight, 2, COV) @ probe_subspace(weight, 2, COV).T,
        probe_subspace(weight + 3.0, 2, COV) @ probe_subspace(weight + 3.0, 2, COV).T,
        atol=1e-8,
    )


@pytest.mark.parametrize("rank", [1, 3, 11])
@pytest.mark.parametrize("share", [0.02, 0.5, 0.98])
def test_matched_subspaces_are_orthonormal_and_take_out_the_same_variance(rank, share):
    values = np.linalg.eigvalsh(COV)
    least, most = values[:rank].sum(), values[-rank:].sum()
    wanted = least + share * (most - least)
    found = random_subspaces(12, rank, 5, seed=1, cov=COV, removed=wanted)
    for basis in found:
        np.testing.assert_allclose(basis.T @ basis, np.eye(rank), atol=1e-10)
        assert removed_variance(basis, COV) == pytest.approx(wanted, rel=1e-6)
        assert np.square(X - ablated(basis)).sum(1).mean() == pytest.approx(wanted, rel=1e-6)
    assert np.linalg.norm(found[0] @ found[0].T - found[1] @ found[1].T) > 1e-3


def test_what_no_subspace_can_take_out_is_given_the_principal_one():
    values, vectors = np.linalg.eigh(COV)
    (basis,) = random_subspaces(12, 2, 1, seed=1, cov=COV, removed=2 * values.sum())
    np.testing.assert_allclose(basis @ basis.T, vectors[:, -2:] @ vectors[:, -2:].T, atol=1e-6)


def test_isotropic_subspaces_prefer_no_direction_and_no_sign():
    found = np.stack(random_subspaces(6, 1, 3000, seed=0))[:, :, 0]
    np.testing.assert_allclose(found.T @ found / len(found), np.eye(6) / 6, atol=0.02)
    np.testing.assert_allclose(found.mean(0), 0, atol=0.03)
    with pytest.raises(ValueError, match="rank 7 does not fit into 6"):
        random_subspaces(6, 7, 1, seed=0)
    with pytest.raises(ValueError, match="needs both"):
        random_subspaces(6, 2, 1, seed=0, removed=1.0)


def test_confidence_grows_along_its_direction_which_is_one_standard_deviation_long():
    group = [str(i) for i in range(200)]
    truth = np.zeros(12)
    truth[2] = 1.0
    confidence = 0.5 + 0.1 * (X @ truth - 5)
    direction = confidence_direction(X, confidence, group, seed=0)
    unit = direction / np.linalg.norm(direction)
    assert unit @ truth > 0.99
    assert np.linalg.norm(direction) == pytest.approx((X @ unit).std())


def test_a_probe_is_chosen_for_what_it_says_of_unseen_groups():
    group = [str(i // 2) for i in range(200)]
    noise = RNG.dirichlet(np.ones(5), 200)
    heavy = chosen_probe(X, noise, group, penalties=(1e-3, 1e4), seed=0)
    light = chosen_probe(X, Y, group, penalties=(1e-3, 1e4), seed=0)
    assert (heavy.penalty, light.penalty) == (1e4, 1e-3)
