"""Collapsing by meaning: extract phrases, join known aliases, then cluster the rest by entailment or by embeddings.

Clusterers know which pairs to compare, and no model: models are passed in as functions of texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain, permutations

import numpy as np
from numpy.typing import ArrayLike
from scipy.cluster.hierarchy import fcluster, linkage
from scipy.spatial.distance import squareform

from semcal.questions.question import Question
from semcal.semantics.class_table import UNPARSED
from semcal.semantics.collapsing.collapse import Cluster, Collapsed, correct_classes
from semcal.semantics.extract import extract, normalise


@dataclass(frozen=True)
class Clustered:
    """Extract a phrase, replace aliases of the gold answer by the first one (normalised exact match), then cluster.

    The dataset's own answers, right and wrong, are clustered together with the model's. A class is named after the gold
    answer in it, or else after its first phrase in alphabetical order.

    Attributes:
        cluster: Groups the distinct phrases of a question.
        whole: Whether it reads answers as the model wrote them, as a judge does, rather than the extracted phrases.
    """

    cluster: Cluster
    whole: bool = False

    @property
    def name(self) -> str:
        return self.cluster.name

    def collapse(self, questions: Sequence[Question], texts: Sequence[Sequence[str]], style: str) -> list[Collapsed]:
        """As `Collapse`."""
        pools = [_Pool.of(q, [self._phrase(t, style) for t in own]) for q, own in zip(questions, texts, strict=True)]
        labels = self.cluster.cluster(questions, [list(pool.phrases.values()) for pool in pools])
        return [pool.collapsed(q, own) for q, pool, own in zip(questions, pools, labels, strict=True)]

    def _phrase(self, text: str, style: str) -> str | None:
        return (text.strip() or None) if self.whole else extract(text, style)


@dataclass(frozen=True)
class _Pool:
    """The distinct phrases of one question.

    Attributes:
        keys: [text] canonical form of its phrase; None if it has none.
        phrases: Canonical form -> a phrase of that form, in alphabetical order.
    """

    keys: list[str | None]
    phrases: dict[str, str]

    @classmethod
    def of(cls, question: Question, said: Sequence[str | None]) -> _Pool:
        keys = [None if phrase is None else _canonical(question, phrase) for phrase in said]
        references = (*question.answers[:1], *chain(*question.others), *question.incorrect)
        forms: dict[str, str] = {}
        for phrase, key in (
            *((r, _canonical(question, r)) for r in references),
            *sorted((p, k) for p, k in zip(said, keys, strict=True) if p is not None and k is not None),
        ):
            if key is not None:
                forms.setdefault(key, phrase)
        return cls(keys, dict(sorted(forms.items())))

    def collapsed(self, question: Question, labels: Sequence[int]) -> Collapsed:
        label_of = dict(zip(self.phrases, labels, strict=True))
        names: dict[int, str] = {}
        golds = [_canonical(question, a) for a in (question.answers[0], *chain(*question.others))]
        for key in (*(g for g in golds if g is not None), *self.phrases):
            names.setdefault(label_of[key], key)
        names[-1] = UNPARSED

        def name_of(key: str | None) -> str:
            return UNPARSED if key is None else names[label_of[key]]

        gold = correct_classes(question, lambda q, answer: name_of(_canonical(q, answer)))
        return Collapsed(tuple(map(name_of, self.keys)), gold)


def _canonical(question: Question, phrase: str) -> str | None:
    """The normalised phrase; for an alias of the gold answer, the normalised first alias; None if nothing is left."""
    key = normalise(phrase)
    if key in {normalise(a) for a in question.answers}:
        key = normalise(question.answers[0])
    return key or None


def agglomerate(similarity: ArrayLike, threshold: float, *, method: str) -> np.ndarray:
    """Classes from pairwise similarities, by hierarchical clustering: [u] labels 0, 1, ... by first appearance.

    Pairwise judgements, as of entailment or a judge, are not transitive; clustering makes them an equivalence. With
    method "complete" any two members of a class have at least `threshold` similarity; with "average" classes are merged
    while the mean similarity of their members is at least `threshold`. Ties are merged in the order of the items, so
    sort them if their order is arbitrary.

    Args:
        similarity: [u, u] in [0, 1], symmetric; the diagonal is ignored.
        threshold: In (0, 1].
        method: "complete" or "average".

    Raises:
        ValueError: not a square symmetric matrix.
    """
    array = np.asarray(similarity, dtype=np.float64)
    if array.ndim != 2 or array.shape[0] != array.shape[1] or not np.allclose(array, array.T):
        raise ValueError(f"similarity must be a symmetric [u, u] matrix, got shape {array.shape}")
    if len(array) < 2:
        return np.zeros(len(array), dtype=np.int64)
    distance = 1 - array
    np.fill_diagonal(distance, 0.0)
    tree = linkage(squareform(distance, checks=False), method=method)
    found = fcluster(tree, 1 - threshold + 1e-9, criterion="distance")
    _, first, place = np.unique(found, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[place]


@dataclass(frozen=True)
class Entailment:
    """Two answers mean the same if each entails the other, given the question (Kuhn et al. 2023, arXiv 2302.09664).

    The similarity of a pair is the smaller of its two entailment probabilities. Entailment is not transitive, so
    classes are made by complete linkage: any two answers of a class entail each other.

    Attributes:
        probability: (premise, hypothesis) pairs -> [pair] probability of entailment. It is called once, with every
            ordered pair of distinct phrases of each question.
        model: Name of the model, with its revision or a hash.
        threshold: Least similarity within a class.
    """

    probability: Callable[[Sequence[tuple[str, str]]], np.ndarray]
    model: str
    threshold: float = 0.5

    @property
    def name(self) -> str:
        return f"entailment({self.model}, {self.threshold:g}, complete)/1"

    def cluster(self, questions: Sequence[Question], phrases: Sequence[Sequence[str]]) -> list[list[int]]:
        """As `Cluster`."""
        pairs = {
            (f"{q.text} {a}", f"{q.text} {b}"): None
            for q, own in zip(questions, phrases, strict=True)
            for a, b in permutations(sorted(own), 2)
        }
        entails = dict(zip(pairs, self.probability(list(pairs)), strict=True)) if pairs else {}
        labels = []
        for question, own in zip(questions, phrases, strict=True):
            ordered = sorted(own)
            similarity = np.eye(len(ordered))
            for i, j in permutations(range(len(ordered)), 2):
                a, b = (f"{question.text} {ordered[k]}" for k in (i, j))
                similarity[i, j] = min(entails[a, b], entails[b, a])
            labels.append(_in_order(own, ordered, agglomerate(similarity, self.threshold, method="complete")))
        return labels


@dataclass(frozen=True)
class Embedding:
    """Two answers mean the same if their sentence embeddings point in the same direction.

    Phrases are embedded without their question, which would make all of its answers similar. Classes are made by
    average linkage on cosines.

    Attributes:
        embed: texts -> [text, d]; each distinct phrase is embedded once.
        model: Name of the model, with its revision or a hash.
        threshold: Least mean cosine within a class.
    """

    embed: Callable[[Sequence[str]], np.ndarray]
    model: str
    threshold: float = 0.8

    @property
    def name(self) -> str:
        return f"embedding({self.model}, {self.threshold:g}, average)/1"

    def cluster(self, questions: Sequence[Question], phrases: Sequence[Sequence[str]]) -> list[list[int]]:  # noqa: ARG002
        """As `Cluster`."""
        distinct = sorted({phrase for own in phrases for phrase in own})
        if not distinct:
            return [[] for _ in phrases]
        vectors = np.asarray(self.embed(distinct), dtype=np.float64)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        row = {phrase: i for i, phrase in enumerate(distinct)}
        labels = []
        for own in phrases:
            ordered = sorted(own)
            embedded = vectors[[row[phrase] for phrase in ordered]]
            cosine = np.clip(embedded @ embedded.T, 0.0, 1.0)
            labels.append(
                _in_order(own, ordered, agglomerate((cosine + cosine.T) / 2, self.threshold, method="average"))
            )
        return labels


def _in_order(phrases: Sequence[str], ordered: Sequence[str], labels: np.ndarray) -> list[int]:
    """The labels of sorted phrases, in the original order of the phrases."""
    label_of = dict(zip(ordered, labels.tolist(), strict=True))
    return [label_of[phrase] for phrase in phrases]
