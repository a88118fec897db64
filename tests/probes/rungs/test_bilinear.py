import numpy as np
import pytest
import torch
from scipy.special import softmax

from probes.rungs.bilinear import BilinearProbe, OpenQuestions, open_target, text_embeddings
from probes.rungs.linear import LinearProbe
from semcal import LanguageModel
from tests.probes.tables import table_of


def world(n: int, seed: int = 0, d: int = 6, e: int = 5) -> tuple[OpenQuestions, np.ndarray]:
    rng = np.random.default_rng(seed)
    W = np.random.default_rng(99).normal(size=(d, e))
    states = rng.normal(size=(n, d)) + 1
    X = OpenQuestions.of(states, [rng.normal(size=(count, e)) for count in rng.integers(2, 6, n)])
    return X, softmax(np.where(X.mask, np.einsum("nd,de,nce->nc", states, W, X.candidates), -1e4), axis=1)


def test_candidates_never_seen_in_training_are_told_apart() -> None:
    X, Y = world(400)
    fresh, expected = world(100, seed=1)
    probe = BilinearProbe(penalty=0.01).fit(X, Y)
    np.testing.assert_allclose(probe.predict(fresh), expected, atol=0.05)
    assert (probe.predict(fresh)[~fresh.mask] == 0).all()
    assert probe.score(fresh, expected) > 0.95


def test_with_one_candidate_list_for_all_it_is_the_linear_probe() -> None:
    """Orthogonal, standardised embeddings of K classes make W e_c a free vector per class."""
    rng = np.random.default_rng(0)
    K, n = 4, 200
    states = rng.normal(size=(n, 3))
    Y = softmax(states @ rng.normal(size=(3, K)), axis=1)
    X = OpenQuestions.of(states, [np.eye(K)] * n)
    weak = 1e-6
    np.testing.assert_allclose(
        BilinearProbe(penalty=weak, tol=1e-13, max_iter=2000).fit(X, Y).predict(X),
        LinearProbe(penalty=weak).fit(states, Y).predict(states),
        atol=2e-3,
    )


def test_the_baseline_is_the_best_that_candidates_alone_allow() -> None:
    rng = np.random.default_rng(0)
    n, e = 300, 4
    candidates = [rng.normal(size=(3, e)) for _ in range(n)]
    X = OpenQuestions.of(rng.normal(size=(n, 5)), candidates)
    b = rng.normal(size=e)
    Y = softmax(X.candidates @ b, axis=1)
    probe = BilinearProbe(penalty=0.1).fit(X, Y)
    np.testing.assert_allclose(probe.baseline_preference_, b, atol=0.1)
    fresh = OpenQuestions.of(rng.normal(size=(n, 5)), [rng.normal(size=(3, e)) for _ in range(n)])
    noisy = rng.dirichlet(np.ones(3), size=n)
    assert BilinearProbe(penalty=10).fit(X, noisy).score(fresh, rng.dirichlet(np.ones(3), size=n)) < 0.02


def test_open_targets_rank_own_classes_and_draw_distractors_from_the_others() -> None:
    rows = [{"a": 1, "b": 3}, {"c": 2}, {"b": 1, "d": 1, "e": 0}]
    labels, distribution = open_target(table_of(rows))
    assert labels == [("b", "a"), ("c",), ("b", "d")]
    np.testing.assert_allclose(distribution, [[0.75, 0.25], [1, 0], [0.5, 0.5]])
    more, masses = open_target(table_of(rows), distractors=2, seed=0)
    assert [own[:2] for own in more] == [("b", "a"), ("c", more[1][1]), ("b", "d")]
    assert all(len(set(own)) == len(own) for own in more)
    assert [len(own) for own in more] == [4, 3, 4]
    assert "e" not in {label for own in more for label in own}
    np.testing.assert_allclose(masses.sum(1), 1)
    again, _ = open_target(table_of(rows[::-1]), distractors=2, seed=0)
    assert again == more[::-1]
    drawn = {tuple(open_target(table_of(rows), distractors=1, seed=seed)[0]) for seed in range(20)}
    assert len(drawn) > 1


def test_texts_are_embedded_as_the_mean_of_their_tokens(tiny: LanguageModel) -> None:
    table = tiny.model.get_input_embeddings().weight.detach()  # pyright: ignore
    red, blue = tiny.encode("red")[-1], tiny.encode("blue")[-1]
    found = text_embeddings(tiny, ["red", "red blue"])
    np.testing.assert_allclose(found[0], table[red].numpy(), rtol=1e-6)
    np.testing.assert_allclose(found[1], torch.stack([table[red], table[blue]]).mean(0).numpy(), rtol=1e-6)
    with pytest.raises(ValueError, match="has no token"):
        text_embeddings(tiny, ["red", ""])


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    X, Y = world(20)
    with pytest.raises(ValueError, match="question 0 has no candidate"):
        OpenQuestions.of(X.states, [np.zeros((0, 5)), *[np.zeros((2, 5))] * 19])
    with pytest.raises(ValueError, match="expected OpenQuestions"):
        BilinearProbe().fit(X.states, Y)  # pyright: ignore
    with pytest.raises(ValueError, match="Y 0 in the padding"):
        BilinearProbe().fit(X, Y[:, ::-1])
    narrow = OpenQuestions(X.states, X.candidates[:, :, 1:], X.mask)
    with pytest.raises(ValueError, match="candidates have 4 features, the probe was fitted to 5"):
        BilinearProbe().fit(X, Y).predict(narrow)
