"""The bilinear probe on planted worlds of which only the classes drawn are at hand, as a run knows them: q is a
distribution over all classes of the world, and neither folds nor other held-out questions change what is measured."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from experiments.bench.open_worlds import OpenWorld, open_world
from probes.activations.layers import Layers
from probes.evaluation.folds import Fold, nested_folds
from probes.evaluation.layerwise import CrossValidation
from probes.evaluation.open_layers import OpenEvaluation, Split, evaluate_open
from probes.evaluation.result import Seeds
from probes.rungs.bilinear import Bilinear, Observed, Shares, class_axes
from probes.targets.open import OpenTarget, Universe, open_target
from tests.probes.tables import table_of

LONG = pytest.mark.long
PENALTIES = (1.0, 10.0, 100.0, 1000.0)


@dataclass(frozen=True)
class Drawn:
    """A world as a run knows it."""

    world: OpenWorld
    target: OpenTarget
    features: np.ndarray

    @classmethod
    def of(cls, n: int, *, signal: bool = True, seed: int = 1) -> Drawn:
        world = open_world(n, 4000, spread=2.5, seed=seed)
        if not signal:
            noise = np.random.default_rng(2).normal(size=world.activations.shape).astype(np.float32)
            world = replace(world, activations=noise)
        target = open_target(world.as_run())
        return cls(world, target, world.embedding[world.places(target)])

    @property
    def group(self) -> list[str]:
        return [str(i) for i in range(len(self.target))]

    def evaluated(self, folds: int = 5, *, whole: bool = False, exchanges: int = 0) -> OpenEvaluation:
        target, features = (self.world.target, self.world.embedding) if whole else (self.target, self.features)
        how = CrossValidation(folds=folds, penalties=PENALTIES, exchanges=exchanges)
        source = Layers.of(self.world.activations[:, None], ["x"])
        return evaluate_open(source, target, features, group=self.group, how=how)

    def gaps(self, folds: int = 5, *, whole: bool = False) -> tuple[float, float]:
        """Of the probe and of the candidate-only model, with the exact entropy."""
        found, target = self.evaluated(folds, whole=whole), self.world.target if whole else self.target
        mass, n = target.mass, len(target)
        probe, alone = (-float((mass * log_q).sum()) / n for log_q in (found.log_q[0], found.candidate_log_q))
        return probe - self.world.entropy, alone - self.world.entropy


@pytest.mark.parametrize("n", [60, pytest.param(120, marks=LONG), pytest.param(240, marks=LONG)])
def test_the_gap_is_that_of_the_whole_vocabulary_however_few_the_questions(n: int) -> None:
    drawn = Drawn.of(n)
    probe, alone = drawn.gaps()
    whole, whole_alone = drawn.gaps(whole=True)
    assert probe == pytest.approx(whole, abs=0.06)
    assert probe > -0.05
    assert alone == pytest.approx(whole_alone, abs=0.12)


@LONG
@pytest.mark.parametrize("folds", [10, 60])
@pytest.mark.parametrize("signal", [True, False])
def test_the_number_of_folds_does_not_change_the_gap(folds: int, signal: bool) -> None:
    """But for what is learnt from more questions, so that there are enough of them; by log 12 where only held-out
    classes are summed."""
    drawn = Drawn.of(120, signal=signal)
    assert drawn.gaps(folds) == pytest.approx(drawn.gaps(5), abs=0.05)


@pytest.mark.parametrize("folds", [2, 5, pytest.param(40, marks=LONG)])
def test_without_signal_and_with_nothing_shared_the_gap_is_the_logarithm_of_the_universe(folds: int) -> None:
    """Every question has ten classes of its own, equally likely. Summed over the run's classes alone, what is left is
    the logarithm of the number of questions held out together."""
    n, k = 40, 10
    target = open_target(table_of([{f"{i} {j}": 5 for j in range(k)} for i in range(n)]))
    rng = np.random.default_rng(0)
    how = CrossValidation(folds=folds, penalties=(1e4, 1e6), exchanges=0)
    states, group = Layers.of(rng.normal(size=(n, 1, 4)).astype(np.float32), ["x"]), [str(i) for i in range(n)]
    found = evaluate_open(states, target, rng.normal(size=(n * k, 4)), group=group, how=how)
    universe = Universe.of(target, group)
    assert not universe.told
    gap = -float((target.mass * found.candidate_log_q).sum()) / n - np.log(k)
    assert gap == pytest.approx(np.log(universe.size / k), abs=0.1)


def fitted(drawn: Drawn, fold: Fold) -> tuple[Split, Bilinear, torch.Tensor]:
    """(split, model, activations of held-out questions)"""
    split = Split.of(drawn.target, class_axes(drawn.features), drawn.group, fold, PENALTIES)
    block = Layers.of(drawn.world.activations[:, None], ["x"]).block(slice(0, 1), len(drawn.target), "cpu")
    return split, *next(split.fitted(block, PENALTIES))[1:]


@pytest.mark.parametrize("n", [60, pytest.param(240, marks=LONG)])
def test_q_sums_to_about_one_over_all_classes_of_the_world(n: int) -> None:
    drawn = Drawn.of(n)
    world, target = drawn.world, drawn.target
    fold = nested_folds(drawn.group, 5, Seeds.of(0).folds)[0]
    split, model, held_out = fitted(drawn, fold)
    log_q = split.predict(target, model, held_out)
    # embeddings of classes that nobody drew, on the axes of those that were
    known = np.c_[drawn.features, np.ones(len(drawn.features))]
    axes = np.linalg.lstsq(known, split.observed[3].embedding.double().numpy(), rcond=None)[0]
    fit = model.directions(held_out).double().numpy() @ (np.c_[world.embedding, np.ones(4000)] @ axes).T
    shares, unseen = split.observed[3].shares, np.full(4000, True)
    unseen[world.places(target)[shares.given[0].numpy()]] = False
    log_w = np.full(4000, float(shares.log_new[0]))
    log_w[world.places(target)] = shares.log_share[0].double().numpy()
    logits = fit + model.trust * log_w
    log_total = model.log_total(held_out, split.observed[3]).numpy()
    whole = np.exp(logits - log_total[:, None]).sum(1)
    assert whole.mean() == pytest.approx(1.0, abs=0.06)
    assert 300 < unseen.sum() < 4000
    row = np.repeat(np.arange(len(fold.test)), np.diff(target.starts)[fold.test])
    at = world.places(target)[target.column[target.entries(fold.test)]]
    np.testing.assert_allclose(log_q, (logits - log_total[:, None])[row, at], atol=1e-4)


def test_other_held_out_questions_change_nothing_of_a_prediction() -> None:
    drawn = Drawn.of(60)
    fold = nested_folds(drawn.group, 5, Seeds.of(0).folds)[0]
    split, model, held_out = fitted(drawn, fold)
    half = replace(fold, test=fold.test[::2])
    few = Split.of(drawn.target, class_axes(drawn.features), drawn.group, half, PENALTIES)
    every = split.predict(drawn.target, model, held_out)
    row = np.repeat(np.arange(len(fold.test)), np.diff(drawn.target.starts)[fold.test])
    np.testing.assert_allclose(few.predict(drawn.target, model, held_out[::2]), every[row % 2 == 0], atol=1e-5)


def test_the_sum_is_that_of_the_definition() -> None:
    """Terms of classes given by others, of a question's own, and of the rest by the classes of one group alone."""
    drawn = Drawn.of(30)
    target, rows, group = drawn.target, np.arange(30), drawn.group
    embedding = class_axes(drawn.features)
    shares = Shares.left_out(target, rows, group, seed=0)
    seen = Observed.of(target, rows, embedding, shares)
    rng = np.random.default_rng(0)
    W, b, a = rng.normal(size=(8, embedding.shape[1])), rng.normal(size=embedding.shape[1]), 0.7
    preference = torch.as_tensor(b, dtype=torch.float32)
    interaction = torch.as_tensor(W, dtype=torch.float32)
    model = Bilinear(interaction, preference, a, 1.0, 1.0, (preference, a), torch.eye(len(b)))
    log_total = model.log_total(torch.as_tensor(drawn.world.activations), seen).numpy()
    fit = (drawn.world.activations @ W + b) @ embedding.double().numpy().T
    dense = np.zeros((30, len(target.classes)))
    dense[target.question, target.column] = target.mass
    size = Universe.of(target, group).size
    new = [int((dense[x] * (dense[shares.part != shares.part[x]] == 0).all(0) > 0).sum()) for x in rows]
    for x in rows:
        others = dense[shares.part != shares.part[x]]
        given, N = (others > 0).any(0), size - (others > 0).any(0).sum()
        w = (1 - shares.novel) * others.mean(0)
        own, once = (dense[x] > 0) & ~given, (others > 0).sum(0) == 1
        rest = (N - np.mean(new)) * np.exp(fit[x, once]).mean()
        expected = (w[given] ** a * np.exp(fit[x, given])).sum()
        expected += (shares.novel / N) ** a * (np.exp(fit[x, own]).sum() + rest)
        assert log_total[x] == pytest.approx(np.log(expected), abs=1e-4)


def test_what_is_exchanged_are_the_predictions_for_whole_questions() -> None:
    """The log-probability of one question's classes in the place of another is that of a question which has them."""
    drawn = Drawn.of(40)
    fold = nested_folds(drawn.group, 4, Seeds.of(0).folds)[0]
    split, model, held_out = fitted(drawn, fold)
    fit = model.log_fit(held_out, split.observed[3]).numpy()
    mass, starts = drawn.target.mass, drawn.target.starts
    for shift in (0, 3):
        log_q = split.predict(drawn.target, model, held_out.roll(-shift, 0))
        entries, sizes = drawn.target.entries(fold.test), np.diff(starts)[fold.test]
        of_question = np.add.reduceat(mass[entries] * log_q, np.cumsum(sizes) - sizes)
        n = len(fold.test)
        np.testing.assert_allclose(fit[np.arange(n), (np.arange(n) + shift) % n], of_question, atol=1e-4)


def test_the_answer_is_a_class_of_the_run_with_at_most_all_of_the_probability() -> None:
    drawn = Drawn.of(60)
    found = drawn.evaluated()
    top = np.array([drawn.world.pi[q, drawn.world.places(drawn.target)[a]] for q, a in enumerate(found.answer[0])])
    assert (found.confidence <= 1).all()
    assert found.confidence[0].mean() == pytest.approx(top.mean(), abs=0.02)
    assert found.entropy.mean() == pytest.approx(drawn.world.entropy, abs=0.3)


def test_a_closed_vocabulary_is_summed_over_as_it_is() -> None:
    """Every class is known, so that a sum has the terms of all, whoever gave them."""
    world = open_world(60, 50)
    embedding, rows = class_axes(world.embedding), np.arange(40)
    shares = Shares.left_out(world.target, rows, [str(i) for i in range(60)], seed=0).of_all(60)
    seen = Observed.of(world.target, np.arange(60), embedding, shares)
    b = torch.ones(embedding.shape[1])
    model = Bilinear(torch.ones(8, embedding.shape[1]), b, 0.7, 1.0, 1.0, (b, 0.7), torch.eye(len(b)))
    h = torch.as_tensor(world.activations)
    logits = (model.directions(h) @ embedding.mT + 0.7 * shares.log_share).double().numpy()
    np.testing.assert_allclose(model.log_total(h, seen).numpy(), np.logaddexp.reduce(logits, axis=1), atol=1e-4)
    np.testing.assert_allclose(shares.log_share.exp().sum(), 1, rtol=1e-5)


def test_the_universe_is_estimated_by_groups_of_questions_that_give_a_class() -> None:
    rows = [{"a": 1, "b": 1}, {"a": 1}, {"b": 1, "c": 1, "d": 1}, {"c": 1, "e": 1}]
    target = open_target(table_of(rows))
    # x gives a and b; y gives b, c and d; z gives c and e: three classes once, two twice
    assert Universe.of(target, ["x", "x", "y", "z"]) == Universe(5 + 2 / 3 * 3 * 2 / (2 * 3), True)
    assert Universe.of(target.select([0, 2, 3]), ["x", "y", "z"]) == Universe(5 + 2 / 3 * 3 * 2 / (2 * 3), True)
    nothing_twice = open_target(table_of([{"a": 1, "b": 1}, {"c": 1}]))
    assert Universe.of(nothing_twice, ["x", "y"]) == Universe(3 + 1 / 2 * 3 * 2 / 2, False)
    assert Universe.of(open_target(table_of([{"a": 1}] * 3)), ["x", "y", "z"]) == Universe(1, True)
    closed = replace(nothing_twice, closed=True)
    assert Universe.of(closed, ["x", "y"]) == Universe(3, True)
    assert closed.select([0]).closed
