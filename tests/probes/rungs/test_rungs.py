"""What each rung above the linear one is for; what all of them keep stands in test_contract.py."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.linear_model import Ridge
from sklearn.model_selection import GridSearchCV, GroupKFold
from sklearn.preprocessing import StandardScaler

from probes.rungs.linear import LinearProbe, LowRankProbe, RidgeLogitProbe
from probes.rungs.networks import AttentionProbe, MLPProbe, Segments
from probes.rungs.rung import validation_split
from probes.solver.training import Training, train_until_worse
from semcal.errors import NonFiniteError


def planted(seed: int, n: int = 300, d: int = 10, K: int = 5, rank: int = 4) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(n, d)) * np.linspace(2, 0.5, d)
    pi = softmax(X @ rng.normal(size=(d, rank)) @ rng.normal(size=(rank, K)) / 2, axis=1)
    return X, np.stack([rng.multinomial(50, row) for row in pi]) / 50


def test_ridge_on_logits_is_scikit_learns_ridge_on_centred_logs() -> None:
    X, Y = planted(0)
    probe = RidgeLogitProbe(penalty=3.0, smoothing=0.02).fit(X, Y)
    logs = np.log(0.98 * Y + 0.02 * probe.marginal_)
    Z = StandardScaler().fit_transform(X)
    theirs = Ridge(alpha=3.0).fit(Z, logs - logs.mean(1, keepdims=True))
    np.testing.assert_allclose(probe.predict(X), softmax(theirs.predict(Z), axis=1), atol=1e-9)


@pytest.mark.parametrize("shape", [(300, 10), (40, 70)])
def test_low_rank_with_rank_enough_is_the_linear_probe(shape: tuple[int, int]) -> None:
    X, Y = planted(1, *shape)
    linear, low = LinearProbe(penalty=2.0).fit(X, Y), LowRankProbe(rank=4, penalty=2.0, tol=1e-12).fit(X, Y)
    assert low.objective_ == pytest.approx(linear.objective_, abs=1e-7)
    np.testing.assert_allclose(low.predict(X), linear.predict(X), atol=1e-3)


def test_low_rank_finds_a_planted_subspace_and_improves_on_cutting_the_linear_probe() -> None:
    X, Y = planted(2, n=2000, rank=1)
    probe = LowRankProbe(rank=1, penalty=0.1).fit(X, Y)
    assert np.linalg.matrix_rank(probe.weight_ - probe.weight_.mean(1, keepdims=True), tol=1e-6) == 1
    rng = np.random.default_rng(2)
    rng.normal(size=(2000, 10))
    direction = rng.normal(size=(10, 1)) * X.std(0)[:, None]
    cosine = np.abs(direction.T @ probe.directions_) / np.linalg.norm(direction)
    assert cosine.item() > 0.99
    objectives = [LowRankProbe(rank=rank).fit(*planted(3)).objective_ for rank in (1, 2, 3, 4)]
    assert objectives == sorted(objectives, reverse=True)


def test_a_hidden_layer_reads_what_no_line_shows() -> None:
    rng = np.random.default_rng(0)
    X = rng.normal(size=(600, 2))
    Y = np.where((X.prod(1) > 0)[:, None], [0.9, 0.1], [0.1, 0.9])  # exclusive or
    assert LinearProbe().fit(X[:400], Y[:400]).score(X[400:], Y[400:]) < 0.05
    assert MLPProbe(hidden=32, lr=1e-2).fit(X[:400], Y[:400]).score(X[400:], Y[400:]) > 0.7


def test_on_noise_early_stopping_keeps_to_the_marginal() -> None:
    rng = np.random.default_rng(0)
    X, Y = rng.normal(size=(400, 40)), rng.dirichlet(np.ones(5), size=400)
    probe = MLPProbe(lr=1e-2).fit(X[:200], Y[:200])
    assert -0.2 < probe.score(X[200:], Y[200:]) < 0.05
    forced = MLPProbe(lr=1e-2, training=Training(patience=50, epochs=50, validation=0.01)).fit(X[:200], Y[:200])
    assert forced.best_epoch_ >= probe.best_epoch_


def test_training_leaves_the_weights_of_the_best_epoch() -> None:
    """Its only weight w falls from 1 by steps; the loss on the validation row is least at w = 0.5."""
    network = torch.nn.Linear(1, 1, bias=False)
    with torch.no_grad():
        network.weight.fill_(1.0)

    def loss(rows: torch.Tensor) -> torch.Tensor:
        w = network.weight[0, 0]
        return torch.stack([w if row == 0 else (w - 0.5).square() for row in rows])

    training = Training(weight_decay=0.0, batch_size=1, epochs=30, patience=3)
    best = train_until_worse(network, loss, torch.tensor([0]), torch.tensor([1]), training, lr=0.1, seed=0)
    assert best == 5
    assert float(network.weight) == pytest.approx(0.5, abs=1e-3)


def test_a_loss_that_is_not_a_number_ends_training() -> None:
    network = torch.nn.Linear(1, 1, bias=False)

    def loss(rows: torch.Tensor) -> torch.Tensor:
        return (network.weight[0, 0] * torch.where(rows == 0, torch.inf, 1.0)).square()

    rows = torch.tensor([0]), torch.tensor([1])  # the step on row 0 leaves a weight that is NaN
    with pytest.raises(NonFiniteError, match=r"the loss is nan after epoch 1 at a learning rate of 0.1; check"):
        train_until_worse(network, loss, *rows, Training(), lr=0.1, seed=0)


def test_a_split_for_early_stopping_parts_no_group_and_knows_no_order() -> None:
    group = [f"g{row % 13}" for row in range(100)]
    fit, held = validation_split(group, 0.2, seed=0)
    assert not {group[i] for i in fit} & {group[i] for i in held}
    assert 20 <= len(held) < 20 + 8
    reverse_fit, _ = validation_split(group[::-1], 0.2, seed=0)
    assert {group[i] for i in fit} == {group[::-1][i] for i in reverse_fit}
    with pytest.raises(ValueError, match="at least 2 groups"):
        validation_split(["a"] * 5, 0.2, seed=0)


def test_attention_looks_at_the_token_that_knows_and_never_into_the_padding() -> None:
    rng = np.random.default_rng(0)
    n, T, d = 400, 5, 6
    states, mask = rng.normal(size=(n, T, d)), np.ones((n, T), dtype=bool)
    states[:, :, 0] *= 0.1
    at = rng.integers(0, 3, n)
    states[np.arange(n), at, 0] = 4
    mask[::2, 3:] = False
    Y = softmax(2 * states[np.arange(n), at, 1:4], axis=1)
    probe = AttentionProbe(lr=3e-2).fit(Segments(states, mask), Y)
    inputs = Segments(states, mask)
    where = probe.network_.weights(*probe._tensors(inputs)).detach().numpy()
    assert where[np.arange(n), at].mean() > 0.9
    assert (where[~mask] == 0).all()
    rubbish = Segments(np.where(mask[:, :, None], states, 1e6), mask)
    np.testing.assert_allclose(probe.predict(rubbish), probe.predict(Segments(states, mask)))
    mean = states.mean(1)
    assert LinearProbe().fit(mean, Y).score(mean, Y) < probe.score(Segments(states, mask), Y) - 0.3


def test_segments_without_a_token_are_refused() -> None:
    states, mask = np.zeros((3, 2, 4)), np.ones((3, 2), dtype=bool)
    with pytest.raises(ValueError, match="question 1 has no token"):
        Segments(states, np.array([[1, 1], [0, 0], [1, 0]], dtype=bool))
    with pytest.raises(ValueError, match=r"\(3, 2, 4\).*\(2, 2\)"):
        Segments(states, mask[1:])
    with pytest.raises(ValueError, match="expected Segments"):
        AttentionProbe().fit(states, np.eye(3))
    assert replace(Segments(states, mask), mask=mask).shape == (3, 2, 4)


def test_scikit_learns_search_drives_a_rung() -> None:
    X, Y = planted(4)
    group = [f"g{row // 3}" for row in range(len(X))]
    search = GridSearchCV(LinearProbe(), {"penalty": [1.0, 1e6]}, cv=GroupKFold(3)).fit(X, Y, groups=group)
    assert search.best_params_ == {"penalty": 1.0}
