"""The density head on planted worlds of open classes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import log_softmax, logsumexp

from probes.evaluation.kl_gap import KLGap, kl_gap
from probes.rungs.density import DensityHead, DensityPrediction, density_predictions
from probes.solver.training import Training
from probes.targets.closed import ClassTarget
from probes.targets.entropy import entropies
from probes.targets.open import OpenTarget, Universe, sparse
from semcal.calibration.resampling import Resampling
from semcal.errors import NonFiniteError

pytestmark = pytest.mark.long

N, C, M, AXES, D = 180, 100, 50, 3, 6
HEAD = DensityHead(axes=AXES, features=D, training=Training(batch_size=8, epochs=30, patience=15))
BRIEF = replace(HEAD, components=(1,), training=Training(batch_size=16, epochs=3))


class World:
    """π_c ∝ a mixture of one or two Gaussians around places that are linear in the activation."""

    def __init__(self, modes: int = 1, signal: bool = True, seed: int = 0) -> None:
        rng = np.random.default_rng(seed)
        self.embeddings = rng.normal(size=(C, AXES))
        states = rng.normal(size=(N, D))
        means = np.stack([states @ rng.normal(size=(D, AXES)) * 0.5 for _ in range(modes)], 1)
        squares = ((means[:, :, None] - self.embeddings) ** 2).sum(-1)
        self.pi = np.exp(log_softmax(logsumexp(-squares / (2 * 0.4**2), axis=1), axis=1))
        self.states = states if signal else rng.normal(size=(N, D))
        self.group = [f"g{i // 2}" for i in range(N)]
        self.share = rng.multinomial(M, self.pi) / M
        self.target = sparse(ClassTarget(tuple(f"{c:03d}" for c in range(C)), self.share, M))

    def predicted(self, head: DensityHead = HEAD, seed: int = 0) -> DensityPrediction:
        return density_predictions(self.states, self.target, self.embeddings, self.group, head=head, folds=3, seed=seed)

    def gap(self, log_q: np.ndarray) -> KLGap:
        return kl_gap(self.target, log_q, entropies(self.share, M), self.group, Resampling(50))


@pytest.fixture(scope="module")
def world() -> World:
    return World()


@pytest.fixture(scope="module")
def predicted(world: World) -> DensityPrediction:
    return world.predicted()


def test_a_planted_mixture_is_found(world: World, predicted: DensityPrediction) -> None:
    prior, gap = world.gap(predicted.log_prior).gap, world.gap(predicted.log_q).gap
    assert prior > 1.5
    assert gap < 0.15
    assert set(predicted.components) <= {1, 2}


def test_predictions_are_probabilities_over_the_classes_of_the_run(predicted: DensityPrediction, world: World) -> None:
    for logs in (predicted.log_q, predicted.log_prior):
        assert np.isfinite(logs).all()
        assert (np.add.reduceat(np.exp(logs), world.target.starts[:-1]) <= 1 + 1e-5).all()


def test_without_a_signal_it_is_the_candidate_only_model_or_as_good() -> None:
    world = World(signal=False)
    found = world.predicted(replace(HEAD, components=(1,)))
    assert world.gap(found.log_q).gap == pytest.approx(world.gap(found.log_prior).gap, abs=0.1)


def test_two_planted_modes_are_found() -> None:
    """Gaussians that all start broad and alike would leave 0.7 to 1.6 nats, and one alone 1.9."""
    world = World(modes=2)
    found = world.predicted()
    assert world.gap(found.log_prior).gap > 2
    assert world.gap(found.log_q).gap < 0.1
    assert min(found.components) > 1


def test_the_candidate_only_model_expects_classes_that_no_other_question_had() -> None:
    """Every question has a class of its own, half of its mass; a prior that had counted its own would be sure of it."""
    n = 40
    share = np.zeros((n, n + 1))
    share[:, 0] = 0.5
    share[np.arange(n), np.arange(n) + 1] = 0.5
    target = sparse(ClassTarget(tuple(f"{c:03d}" for c in range(n + 1)), share, 50))
    rng = np.random.default_rng(0)
    found = density_predictions(
        rng.normal(size=(n, 3)), target, rng.normal(size=(n + 1, 3)), [str(i) for i in range(n)], head=HEAD, folds=4
    )
    own = target.column > 0
    assert np.exp(found.log_prior[~own]).mean() == pytest.approx(0.5, abs=0.15)
    assert np.exp(found.log_prior[own]).mean() > 0.5 / (n + 1) / 3


def test_with_nothing_shared_what_is_left_is_the_logarithm_of_the_universe() -> None:
    """As of the bilinear probe, for the sum over classes is the same; whatever the number of folds."""
    n, k = 40, 5
    target = replace(sparse(ClassTarget(tuple(f"{c:03d}" for c in range(n * k)), np.kron(np.eye(n), np.full(k, 1 / k)), 50)),
                     closed=False)  # fmt: skip
    rng, group = np.random.default_rng(0), [str(i) for i in range(n)]
    states, texts = rng.normal(size=(n, 3)), rng.normal(size=(n * k, 3))
    expected = np.log(Universe.of(target, group).size)
    for folds in (2, 8):
        found = density_predictions(states, target, texts, group, head=replace(BRIEF, components=()), folds=folds)
        assert found.log_q.mean() == pytest.approx(-expected, abs=0.2)
        np.testing.assert_array_equal(found.log_q, found.log_prior)


def test_a_held_out_group_has_no_say_in_its_own_prediction(world: World) -> None:
    """Its samples may change; what is predicted of its classes does not, in its own fold."""
    predicted, rows = world.predicted(BRIEF), [0, 1]  # a group
    share = world.share.copy()
    entries = world.target.entries(rows)
    for row in rows:  # the same classes, other masses
        own = np.flatnonzero(share[row])
        share[row, own] = np.roll(share[row, own], 1)
    other = sparse(ClassTarget(world.target.classes, share, M))
    again = density_predictions(world.states, other, world.embeddings, world.group, head=BRIEF, folds=3)
    before = dict(zip(zip(world.target.question[entries], world.target.column[entries], strict=True),
                      predicted.log_q[entries], strict=True))  # fmt: skip
    at = other.entries(rows)
    after = dict(zip(zip(other.question[at], other.column[at], strict=True), again.log_q[at], strict=True))
    assert before.keys() == after.keys()
    assert [after[key] for key in before] == pytest.approx(list(before.values()), abs=1e-5)


def test_the_seed_decides_and_the_global_state_is_left_alone(world: World) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first, again, other = (world.predicted(BRIEF, seed).log_q for seed in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()
    assert torch.equal(torch.get_rng_state(), before)


def test_a_single_class_is_certain(world: World) -> None:
    one = sparse(ClassTarget(("a",), np.ones((N, 1)), M))
    found = density_predictions(world.states, one, world.embeddings[:1], world.group, head=HEAD, folds=3)
    assert (found.log_q == 0).all()
    assert (found.log_prior == 0).all()
    assert found.components == ()


def test_a_loss_that_is_not_finite_names_the_fold(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def loss(self, network, rows):
        seen.append(self)
        return torch.full((len(rows),), np.nan if self is not seen[0] else 1.0) * network.prior.scale

    monkeypatch.setattr("probes.rungs.density._Task.loss", loss)
    with pytest.raises(NonFiniteError, match="fold 2 of 3: the loss is nan after epoch 0"):
        world.predicted(replace(BRIEF, components=(1,)))


def test_what_cannot_be_fitted_is_refused_in_one_line(world: World) -> None:
    def fit(states: np.ndarray = world.states, target: OpenTarget = world.target, e: np.ndarray = world.embeddings,
            group: list[str] = world.group) -> None:  # fmt: skip
        density_predictions(states, target, e, group, head=HEAD, folds=3)

    bad = world.states.copy()
    bad[7, 3] = np.nan
    for call, words in (
        (lambda: fit(bad), "not finite at question 7"),
        (lambda: fit(world.states[:-1]), "expected one of each"),
        (lambda: fit(e=world.embeddings[:-1]), "99 embeddings for 100 classes"),
        (lambda: fit(group=["g"] * N), "1 group"),
    ):
        with pytest.raises(ValueError, match=words) as refused:
            call()
        assert "\n" not in str(refused.value)
