"""The bilinear probe on planted worlds, and what it must not depend on."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.special import logsumexp

import probes.rungs.bilinear as bilinear
from experiments.bench.open_worlds import OpenWorld, open_world
from probes.rungs.bilinear import (
    Bilinear,
    Observed,
    Shares,
    choose_bilinear,
    class_axes,
    fit_candidates,
    refit,
)
from probes.solver.training import descend
from probes.targets.open import open_target
from tests.probes.tables import table_of

PENALTIES = (1e-1, 1.0, 10.0, 100.0)
NAMES = [str(i) for i in range(1000)]


def learnt(
    world: OpenWorld, fit: np.ndarray, validation: np.ndarray, group: Sequence[str] = NAMES
) -> tuple[Bilinear, Bilinear, torch.Tensor, Observed]:
    """(probe, candidate-only model, activations, what was answered) of a world, all learnt from `fit`."""
    h = torch.as_tensor(world.activations) - torch.as_tensor(world.activations[fit]).mean(0)
    embedding = class_axes(world.embedding)
    shares = Shares.left_out(world.target, fit, group, seed=0)
    own = Observed.of(world.target, fit, embedding, shares)
    other = Observed.of(world.target, validation, embedding, shares.of_all(len(validation)))
    candidates, again = fit_candidates(own, other, own, PENALTIES)
    chosen = choose_bilinear((h[fit], own), (h[validation], other), candidates, PENALTIES)
    everything = np.arange(len(world.target))
    seen = Observed.of(world.target, everything, embedding, shares.of_all(len(everything)))
    return refit(chosen, again, h[fit], own), candidates, h, seen


def log_q(model: Bilinear, h: torch.Tensor, seen: Observed) -> np.ndarray:
    """[question, class], by the definition."""
    logits = model.directions(h) @ seen.embedding.mT + model.trust * seen.shares.log_share
    return torch.log_softmax(logits.double(), 1).numpy()


def kl(world: OpenWorld, rows: np.ndarray, log_q: np.ndarray) -> float:
    return float((world.pi[rows] * (np.log(np.maximum(world.pi[rows], 1e-300)) - log_q[rows])).sum(1).mean())


def test_a_planted_bilinear_distribution_is_found_on_questions_and_classes_never_seen() -> None:
    world = open_world(700, 2000)
    fit, validation, test = np.split(np.arange(700), [400, 500])
    drawn = np.unique(world.target.column[world.target.entries(fit)])
    assert len(drawn) < 1990, "no class is new to the held-out questions"
    model, candidates, h, seen = learnt(world, fit, validation)
    assert kl(world, test, log_q(model, h, seen)) < 0.05
    assert kl(world, test, log_q(candidates, h[:, :0], seen)) > 1


def test_adapting_the_prior_to_w_beats_the_plain_ridge(monkeypatch: pytest.MonkeyPatch) -> None:
    world = open_world(500, 400, d=48, e=32, rank=3, spread=2.0)
    fit, validation, test = np.split(np.arange(500), [250, 330])
    model, _, h, seen = learnt(world, fit, validation)
    adapted = kl(world, test, log_q(model, h, seen))
    monkeypatch.setattr(bilinear, "_ROUNDS", 0)
    ridge, _, h, seen = learnt(world, fit, validation)
    assert adapted < 0.7 * kl(world, test, log_q(ridge, h, seen))


def test_without_signal_it_is_the_candidate_only_model() -> None:
    world = open_world(300, 200)
    noise = np.random.default_rng(1).normal(size=(300, 8)).astype(np.float32)
    blind = replace(world, activations=noise)
    fit, validation, _ = np.split(np.arange(300), [180, 240])
    model, candidates, h, seen = learnt(blind, fit, validation)
    gained = seen_loss(candidates, h[:, :0], seen) - seen_loss(model, h, seen)
    assert abs(gained) < 0.02


def seen_loss(model: Bilinear, h: torch.Tensor, seen: Observed) -> float:
    return model.cross_entropy(h, seen)


def test_nothing_is_left_to_gain_where_the_solver_stops() -> None:
    """The objective by its definition, in double precision, and another solver that goes on from there."""
    world = open_world(120, 90)
    fit, validation = np.split(np.arange(120), [80])
    h = torch.as_tensor(world.activations)
    h = h - h[fit].mean(0)
    embedding = class_axes(world.embedding)
    shares = Shares.left_out(world.target, fit, NAMES, seed=0)
    own = Observed.of(world.target, fit, embedding, shares)
    other = Observed.of(world.target, validation, embedding, shares.of_all(len(validation)))
    candidates, _ = fit_candidates(own, other, own, PENALTIES)
    chosen = choose_bilinear((h[fit], own), (h[validation], other), candidates, PENALTIES)
    model = refit(chosen, candidates, h[fit], own)

    W, b = model.interaction.double().clone(), model.preference.double().clone()
    a = torch.tensor(model.trust, dtype=torch.float64)
    dense = torch.zeros(120, 90, dtype=torch.float64)
    dense[torch.as_tensor(world.target.question), torch.as_tensor(world.target.column)] = torch.as_tensor(
        world.target.mass
    )
    log_share = shares.log_share[torch.as_tensor(shares.part)].double()
    inverse = torch.linalg.inv(model.axes.double()).mT

    def objective() -> torch.Tensor:
        logits = (h[fit].double() @ W + b) @ embedding.double().mT + a * log_share
        off = (b - model.origin[0]).square().sum() + (a - model.origin[1]) ** 2
        ridge = model.penalty * (W @ inverse).square().sum() + model.bias_penalty * off
        return -(dense[fit] * torch.log_softmax(logits, 1)).sum(1).mean() + ridge / (2 * len(fit))

    reached = float(objective())
    best, _ = descend([W, b, a], objective, max_iter=500, tol=1e-12)
    assert 0 <= reached - best < 3e-4
    W.zero_()
    assert float(objective()) > best + 0.1  # what the other solver would have had to find


def test_blocks_of_questions_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    world = open_world(60, 50)
    embedding = class_axes(world.embedding)
    rows = np.arange(60)
    seen = Observed.of(world.target, rows, embedding, Shares.left_out(world.target, rows, NAMES, seed=0))
    h = torch.as_tensor(world.activations)
    W = torch.randn(8, embedding.shape[1], generator=torch.Generator().manual_seed(0))
    b = torch.ones(embedding.shape[1])
    model = Bilinear(W, b, 0.7, 1.0, 1.0, (b, 0.7), torch.eye(len(b)))
    whole = model.log_total(h, seen)
    by_hand = logsumexp(
        (model.directions(h) @ embedding.mT + 0.7 * seen.shares.log_share[torch.as_tensor(seen.shares.part)]).numpy(), 1
    )
    np.testing.assert_allclose(whole.numpy(), by_hand, rtol=1e-5)
    monkeypatch.setattr(bilinear, "_LOGITS", 100)
    np.testing.assert_allclose(model.log_total(h, seen).numpy(), whole.numpy(), rtol=1e-5)


def test_the_share_of_a_class_comes_from_the_questions_of_other_groups() -> None:
    target = open_target(table_of([{"a": 4}, {"a": 4}, {"b": 2, "c": 2}, {"c": 4}]))
    rows = np.arange(4)
    shares = Shares.left_out(target, rows, ["x", "x", "y", "z"], seed=0)
    share = shares.log_share.exp().numpy()[shares.part]
    assert shares.part[0] == shares.part[1]
    # half of the mass of y and all of x's is on classes that nobody else has: (2 + 1/2) / 4
    assert shares.novel == pytest.approx(2.5 / 4)
    # "a" and "b" are given by one group and "c" by two, so that 2/3 · 2 · 1 / (2 · 2) more may be
    new = {row: 3 + 1 / 3 - given for row, given in ((0, 2), (2, 2), (3, 3))}
    for row, classes in ((0, [1, 2]), (2, [0, 2]), (3, [0, 1, 2])):
        at = shares.part[row]
        assert np.flatnonzero(shares.given[at]).tolist() == classes
        assert float(shares.unseen[at]) == pytest.approx(new[row])
        assert share[row, classes].sum() == pytest.approx(1 - 2.5 / 4)
    assert share[0, 0] == pytest.approx(2.5 / 4 / new[0])  # "a" is new to x
    np.testing.assert_allclose(share[2, [0, 2]] / share[2, [0, 2]].sum(), [2 / 3, 1 / 3], rtol=1e-5)  # not its own c
    held_out = shares.of_all(3)
    np.testing.assert_allclose(held_out.log_share.exp()[0], 1.5 / 4 * np.array([2, 0.5, 1.5]) / 4, rtol=1e-5)
    closed = Shares.left_out(replace(target, closed=True), rows, ["x", "x", "y", "z"], seed=0)
    np.testing.assert_allclose(closed.log_share.exp().sum(1), 1, rtol=1e-6)
    np.testing.assert_allclose(closed.of_all(3).log_share.exp()[0], np.array([2, 0.5, 1.5]) / 4, rtol=1e-5)


def test_axes_keep_the_leading_directions_whatever_the_scale_of_a_feature() -> None:
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 3)) @ rng.normal(size=(3, 20))
    axes = class_axes(np.c_[features, np.ones(200)])
    assert axes.shape == (200, 3)
    torch.testing.assert_close(class_axes(np.c_[features * 100 + 7, np.ones(200)]), axes, rtol=1e-3, atol=1e-4)
    assert class_axes(rng.normal(size=(300, 200))).shape == (300, 128)


@pytest.mark.parametrize(
    ("features", "message"),
    [
        (np.ones((1, 3)), "at least 2 classes"),
        (np.ones((4, 3)), "all classes have the same embedding"),
        (np.array([[1.0, 2.0], [np.nan, 1.0]]), "class 1 is not finite; embed"),
    ],
)
def test_embeddings_that_say_nothing_are_refused(features: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        class_axes(features)
    assert "\n" not in str(error.value)


def test_classes_without_a_term_change_no_sum() -> None:
    world = open_world(120, 900, seed=3)
    target = open_target(world.as_run())
    learnt_from, held_out = np.arange(60), np.arange(60, 120)
    embedding = class_axes(world.embedding[world.places(target)])
    shares = Shares.left_out(target, learnt_from, NAMES[:120], seed=0)
    rng = torch.Generator().manual_seed(0)
    axes = embedding.shape[1]
    preference = torch.randn(axes, generator=rng)
    model = Bilinear(torch.randn(6, axes, generator=rng), preference, 0.8, 1.0, 1.0, (preference, 1.0), torch.eye(axes))
    scores = torch.randn(60, 6, generator=rng)
    for rows, known in ((learnt_from, shares), (held_out, shares.of_all(60))):
        seen = Observed.of(target, rows, embedding, known)
        fewer = seen.with_terms()
        assert len(fewer.embedding) < len(seen.embedding)
        torch.testing.assert_close(model.log_total(scores, fewer), model.log_total(scores, seen), rtol=1e-6, atol=0)
