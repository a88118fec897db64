"""What every rung of the ladder keeps, whatever it learns from."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from scipy.special import softmax
from sklearn.base import clone
from sklearn.exceptions import NotFittedError

from probes.rungs.lens import LensProbe, lens_log_probabilities
from probes.rungs.linear import LinearProbe, LowRankProbe, RidgeLogitProbe
from probes.rungs.lora import LoRAProbe
from probes.rungs.networks import AttentionProbe, MLPProbe, Segments
from probes.rungs.rung import Rung
from semcal import LanguageModel

K, M, TRAIN, TEST = 4, 50, 240, 120
ROWS, HELD_OUT = np.arange(TRAIN), np.arange(TRAIN, TRAIN + TEST)


@dataclass(frozen=True)
class World:
    """Inputs with a planted read-out, and how to handle them."""

    X: Any
    Y: np.ndarray
    take: Callable[[Any, np.ndarray], Any]
    spoil: Callable[[Any], Any]
    """The same inputs with a NaN in them."""


@dataclass(frozen=True)
class Case:
    make: Callable[[LanguageModel], Rung]
    world: Callable[[LanguageModel, int], World]


def drawn(pi: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return np.stack([rng.multinomial(M, row / row.sum()) for row in pi]) / M


def rows_of(X: Any, rows: np.ndarray) -> Any:
    return X[rows]


def with_nan(X: np.ndarray) -> np.ndarray:
    spoilt = np.array(X, dtype=float)
    spoilt[1, ..., 0] = np.nan
    return spoilt


def log_linear(_tiny: LanguageModel, seed: int) -> World:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(TRAIN + TEST, 12)).astype(np.float32)
    return World(X, drawn(softmax(X @ rng.normal(size=(12, K)) / 2, axis=1), rng), rows_of, with_nan)


def folded(_tiny: LanguageModel, seed: int) -> World:
    """Logits in |x|, of which no linear probe sees anything."""
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(TRAIN + TEST, 4)).astype(np.float32)
    return World(X, drawn(softmax(2 * np.abs(X) @ rng.normal(size=(4, K)), axis=1), rng), rows_of, with_nan)


def marked_token(_tiny: LanguageModel, seed: int) -> World:
    """One token of each segment, marked in its first feature, holds the logits; the others hold noise."""
    rng = np.random.default_rng(seed)
    n, T, d = TRAIN + TEST, 6, 8
    states, length = rng.normal(size=(n, T, d)).astype(np.float32), rng.integers(2, T + 1, n)
    mask = np.arange(T) < length[:, None]
    at = rng.integers(0, length)
    states[:, :, 0] = 0.1 * states[:, :, 0]
    states[np.arange(n), at, 0] = 4
    pi = softmax(states[np.arange(n), at] @ rng.normal(size=(d, K)), axis=1)
    return World(Segments(states, mask), drawn(pi, rng), rows_of, lambda X: replace(X, states=with_nan(X.states)))


def last_token(_tiny: LanguageModel, seed: int) -> World:
    """Prompts of several lengths whose last but one token decides the distribution."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(4, K))
    X = [tuple(rng.integers(3, 7, rng.integers(3, 7)).tolist()) for _ in range(TRAIN + TEST)]
    pi = softmax(np.stack([logits[prompt[-2] - 3] for prompt in X]), axis=1)
    return World(
        X,
        drawn(pi, rng),
        lambda X, rows: [X[row] for row in rows],
        lambda X: [X[0], (3.0, float("nan")), *X[2:]],
    )


FIRST = [(3, 4), (5,), (6,), ()]


def next_token(tiny: LanguageModel, seed: int) -> World:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(TRAIN + TEST, 32)).astype(np.float32)
    p = np.exp(np.concatenate(list(lens_log_probabilities(tiny, X))))
    named = np.stack([p[:, list(tokens)].sum(1) for tokens in FIRST[:-1]], 1)
    return World(X, drawn(np.c_[named, 1 - named.sum(1)], rng), rows_of, with_nan)


CASES = {
    "linear": Case(lambda _: LinearProbe(), log_linear),
    "ridge on logits": Case(lambda _: RidgeLogitProbe(), log_linear),
    "low-rank": Case(lambda _: LowRankProbe(rank=2), log_linear),
    "mlp": Case(lambda _: MLPProbe(hidden=32, lr=1e-2), folded),
    "attention": Case(lambda _: AttentionProbe(lr=3e-2), marked_token),
    "lora": Case(lambda tiny: LoRAProbe(tiny, rank=4, epochs=6, lr=2e-2), last_token),
    "lens": Case(lambda tiny: LensProbe(tiny, FIRST), next_token),
}
LEARNING = [name for name in CASES if name != "lens"]


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest) -> Case:
    return CASES[request.param]


@pytest.fixture
def world(case: Case, tiny: LanguageModel) -> World:
    return case.world(tiny, 0)


def fitted(case: Case, world: World, tiny: LanguageModel, rows: np.ndarray = ROWS) -> Rung:
    group = [f"pair {row // 2}" for row in rows]
    return case.make(tiny).fit(world.take(world.X, rows), world.Y[rows], group)


def test_a_planted_read_out_is_found_on_unseen_questions(case: Case, world: World, tiny: LanguageModel) -> None:
    probe = fitted(case, world, tiny)
    held_out = world.take(world.X, HELD_OUT)
    assert 0.5 < probe.score(held_out, world.Y[HELD_OUT]) <= 1
    shuffled = world.Y[np.random.default_rng(1).permutation(HELD_OUT)]
    assert probe.score(held_out, shuffled) < 0
    with pytest.raises(ValueError, match="expected the same questions and classes"):
        probe.score(held_out, shuffled[:, 1:])


def test_predictions_are_distributions(case: Case, world: World, tiny: LanguageModel) -> None:
    found = fitted(case, world, tiny).predict(world.take(world.X, HELD_OUT))
    assert found.shape == world.Y[HELD_OUT].shape
    assert (found >= 0).all()
    np.testing.assert_allclose(found.sum(1), 1, atol=1e-6)


def test_neither_the_order_of_rows_nor_an_earlier_fit_nor_a_global_seed_changes_anything(
    case: Case, world: World, tiny: LanguageModel
) -> None:
    held_out = world.take(world.X, HELD_OUT)
    draw, numpy_draw = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002 - no one may touch it
    probe = fitted(case, world, tiny)
    first = probe.predict(held_out)
    assert torch.equal(torch.get_rng_state(), draw)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_draw)  # noqa: NPY002
    shuffled = np.random.default_rng(0).permutation(TRAIN)
    np.testing.assert_allclose(fitted(case, world, tiny, shuffled).predict(held_out), first, atol=1e-9)
    probe.fit(world.take(world.X, ROWS[:100]), world.Y[:100], [f"pair {row // 2}" for row in ROWS[:100]])
    np.testing.assert_allclose(
        probe.predict(held_out), fitted(case, world, tiny, ROWS[:100]).predict(held_out), atol=1e-9
    )


def test_a_prediction_does_not_depend_on_the_others_in_its_batch(case: Case, world: World, tiny: LanguageModel) -> None:
    probe = fitted(case, world, tiny)
    together = probe.predict(world.take(world.X, HELD_OUT))
    np.testing.assert_allclose(probe.predict(world.take(world.X, HELD_OUT[7:9])), together[7:9], atol=1e-5)


def test_parameters_stay_as_given_and_nothing_is_predicted_before_fit(
    case: Case, world: World, tiny: LanguageModel
) -> None:
    probe = case.make(tiny)
    before = probe.get_params(deep=False)
    with pytest.raises(NotFittedError):
        probe.predict(world.X)
    probe.fit(world.take(world.X, ROWS), world.Y[ROWS])
    assert probe.get_params(deep=False) == before
    unfitted = clone(probe)
    assert unfitted.get_params(deep=False) == before
    with pytest.raises(NotFittedError):
        unfitted.predict(world.X)


def one_line(error: pytest.ExceptionInfo[ValueError]) -> bool:
    return "\n" not in str(error.value) and len(str(error.value)) < 200


def test_what_cannot_be_learnt_from_is_refused_in_one_line(case: Case, world: World, tiny: LanguageModel) -> None:
    X, Y = world.take(world.X, ROWS), world.Y[ROWS]
    uniform = (Y[:1] > -1) / Y.shape[1]
    with pytest.raises(ValueError, match="teach a probe nothing; give at least 2") as error:
        case.make(tiny).fit(X, np.broadcast_to(uniform, Y.shape))
    assert one_line(error)
    with pytest.raises(ValueError, match="give at least 2") as error:
        case.make(tiny).fit(world.take(X, ROWS[:1]), Y[:1])
    assert one_line(error)
    with pytest.raises(ValueError, match=r"question 1; capture it again|prompt 1 .*encode it first") as error:
        case.make(tiny).fit(world.spoil(X), Y)
    assert one_line(error)
    with pytest.raises(ValueError, match="not a valid distribution at question 3") as error:
        case.make(tiny).fit(X, np.where(np.arange(TRAIN)[:, None] == 3, np.nan, Y))
    assert one_line(error)
    with pytest.raises(ValueError, match="expected") as error:
        case.make(tiny).fit(X, Y[1:])
    assert one_line(error)
    with pytest.raises(ValueError, match="3 groups for 240 questions") as error:
        case.make(tiny).fit(X, Y, ["a", "b", "c"])
    assert one_line(error)


@pytest.mark.parametrize("name", LEARNING)
def test_one_class_leaves_nothing_to_learn(name: str, tiny: LanguageModel) -> None:
    case = CASES[name]
    world = case.world(tiny, 0)
    with pytest.raises(ValueError, match="same class distribution"):
        case.make(tiny).fit(world.X, np.ones((TRAIN + TEST, 1)))


@pytest.mark.parametrize("name", ["linear", "ridge on logits", "low-rank", "mlp", "lens"])
def test_another_width_is_refused_by_predict_but_not_by_a_new_fit(name: str, tiny: LanguageModel) -> None:
    case = CASES[name]
    world = case.world(tiny, 0)
    probe = fitted(case, world, tiny)
    with pytest.raises(ValueError, match="the probe was fitted to"):
        probe.predict(world.X[:, 1:])
    if name != "lens":  # whose width is its model's
        assert probe.fit(world.X[:, 1:], world.Y).predict(world.X[:, 1:]).shape == world.Y.shape
