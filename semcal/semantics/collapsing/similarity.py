"""Clusterers that compare phrases pair by pair, by entailment or by the cosine of their embeddings.

They know which pairs to compare, and no model: models are passed in as functions of texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from semcal.questions.question import Question
from semcal.semantics.collapsing.clustered import agglomerate


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
