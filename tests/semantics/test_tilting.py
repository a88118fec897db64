"""Token by token, the tilt does to the loss of an answer exactly what it does to the class (Theorem 9)."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from semcal.calibration.measures.loss_gap import loss_change
from semcal.sampling.enumeration import SearchLimits, enumerate_answers
from semcal.sampling.records import Prompt, Sampling
from semcal.semantics.answer_tree import answer_tree, tilt_along, tilted_logprobs, token_tilt

TAU = [-2.0, -0.3, 0.7, 3.0]


def random_tree(rng: np.random.Generator, depth: int = 4, width: int = 3) -> dict[tuple[int, ...], float]:
    """Answers of a random model with their probabilities: after each token it ends by token 0 or goes on."""
    law, open_ = {}, {(): 1.0}
    for step in range(depth):
        following = {}
        for prefix, mass in open_.items():
            for token, p in enumerate(rng.dirichlet(np.ones(width))):
                ended = token == 0 or step == depth - 1
                (law if ended else following)[(*prefix, token)] = mass * p
        open_ = following
    return law


@pytest.mark.parametrize("tau", TAU)
def test_on_a_random_tree_the_tokens_multiply_out_to_the_tilted_law(tau):
    rng = np.random.default_rng(0)
    law = random_tree(rng)
    top = {answer: bool(rng.random() < 0.4) for answer in law}
    tree = answer_tree(list(law), list(law.values()), list(top.values()))
    confidence = tree[()].g
    assert confidence == pytest.approx(sum(p for answer, p in law.items() if top[answer]))
    for answer, p in law.items():
        own = np.diff(np.log([tree[answer[:end]].mass for end in range(len(answer) + 1)]))
        tilted = tilt_along(answer, own, tree, tau).sum()
        whole = np.log(p * np.exp(tau * top[answer]) / (1 + confidence * np.expm1(tau)))  # the definition
        assert tilted == pytest.approx(whole, abs=1e-12)
        assert own.sum() - tilted == pytest.approx(float(loss_change(confidence, top[answer], tau)), abs=1e-12)


@pytest.mark.parametrize("tau", TAU)
def test_on_a_random_tree_every_next_token_law_stays_one(tau):
    rng = np.random.default_rng(1)
    law = random_tree(rng)
    tree = answer_tree(list(law), list(law.values()), [bool(rng.random() < 0.4) for _ in law])
    children: dict[tuple[int, ...], list[tuple[int, ...]]] = {}
    for prefix in tree:
        if prefix:
            children.setdefault(prefix[:-1], []).append(prefix)
    for prefix, its in children.items():
        own = np.log([tree[child].mass / tree[prefix].mass for child in its])
        after = tilted_logprobs(own, tree[prefix].g, [tree[child].g for child in its], tau)
        assert np.exp(after).sum() == pytest.approx(1, abs=1e-12)


@torch.inference_mode()
def test_on_a_real_model_it_holds_with_its_own_token_probabilities(tiny):
    prompt, settings = Prompt("q", (0, 5, 6, 7)), Sampling(max_new_tokens=2)
    (found,) = enumerate_answers(tiny.model, [prompt], settings, tiny.stop_rule(()), limits=SearchLimits(1e-9, 10_000))
    assert found.unexplored < 1e-5
    answers, mass = [o.ids for o in found.outcomes], np.exp([o.logprob for o in found.outcomes])
    klass = np.array([sum(ids) % 3 for ids in answers])  # a B that no single token decides
    k_star = np.argmax(np.bincount(klass, mass))
    tree = answer_tree(answers, mass, klass == k_star)

    logits = tiny.model(torch.tensor([(*prompt.ids, token) for token in range(64)])).logits.double()
    first, second = (logits[:, position].log_softmax(-1).numpy() for position in (-2, -1))
    first = first[0]  # [token]; second is [first token, token]
    for tau in TAU:
        for answer, top in zip(answers, klass == k_star, strict=True):
            own = [first[answer[0]], *(second[answer[0], token] for token in answer[1:])]
            change = np.sum(own) - tilt_along(answer, own, tree, tau).sum()
            assert change == pytest.approx(float(loss_change(tree[()].g, top, tau)), abs=1e-9)

        def g(*prefix: int) -> float:
            return tree[prefix].g if prefix in tree else 0.0  # of what was too unlikely to be enumerated

        opening = tilted_logprobs(first, g(), [g(token) for token in range(64)], tau)
        assert np.exp(opening).sum() == pytest.approx(1, abs=1e-5)
        for token in range(64):
            if (token,) in tree and token not in tiny.eos_ids and tree[(token,)].mass > 0.01:
                after = tilted_logprobs(second[token], g(token), [g(token, after) for after in range(64)], tau)
                assert np.exp(after).sum() == pytest.approx(1, abs=1e-5)


def test_over_a_run_both_levels_recover_the_same():
    rng = np.random.default_rng(2)
    ids, mass, is_top, is_gold = [], [], [], []
    for _ in range(40):
        law = random_tree(rng)
        kept = sorted(law, key=lambda answer: -law[answer])[:12]  # the rest is unexplored
        klass = np.array([sum(answer) % 4 for answer in kept])
        its = np.array([law[answer] for answer in kept])
        ids.append(kept)
        mass.append(its)
        is_top.append(klass == np.argmax(np.bincount(klass, its)))
        is_gold.append(klass == rng.integers(0, 6))  # 4 and 5 are never found
    tau = rng.normal(0, 1.5, 40)
    found = token_tilt(ids, mass, is_top, is_gold, tau)
    asked = [gold.any() for gold in is_gold]
    assert found.followed == pytest.approx(np.mean(asked))
    assert 0 < found.followed < 1
    confidence = np.array([its[top].sum() / its.sum() for its, top in zip(mass, is_top, strict=True)])
    correct = np.array([(gold & top).any() for gold, top in zip(is_gold, is_top, strict=True)])
    expected = -loss_change(confidence, correct, tau)[asked].mean()
    assert found.class_drop == pytest.approx(expected, abs=1e-12)
    assert found.sequence_drop == pytest.approx(expected, abs=1e-12)
    assert found.largest_difference < 1e-12


def test_a_run_without_a_gold_answer_has_no_drop():
    found = token_tilt([[(1,), (2,)]], [[0.5, 0.3]], [[True, False]], [[False, False]], [1.0])
    assert found.followed == 0
    assert np.isnan(found.sequence_drop)


def test_bad_trees_are_named():
    with pytest.raises(ValueError, match="2 answers, 1 masses"):
        answer_tree([(1,), (2,)], [0.5], [True, False])
    with pytest.raises(ValueError, match=r"mass 0\.0"):
        answer_tree([(1,), (2,)], [0.5, 0.0], [True, False])
    with pytest.raises(ValueError, match=r"answer \(1,\) is a prefix of another"):
        answer_tree([(1,), (1, 2)], [0.5, 0.5], [True, False])
    tree = answer_tree([(1,), (2, 3)], [0.5, 0.5], [True, False])
    with pytest.raises(ValueError, match=r"answer \(4,\) is not in the tree"):
        tilt_along((4,), [-1.0], tree, 1.0)
    with pytest.raises(ValueError, match="2 tokens but"):
        tilt_along((2, 3), [-1.0], tree, 1.0)
