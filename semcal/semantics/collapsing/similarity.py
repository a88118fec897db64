"""Clusterers that compare phrases pair by pair: entailment between them, or the cosine of their embeddings.

They know which pairs to ask about, not who answers: models come in as functions of texts.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np

from semcal.questions.question import Question
from semcal.semantics.collapsing.agglomerate import agglomerate


@dataclass(frozen=True)
class Entailment:
    """Two answers mean the same where each entails the other, given the question (Kuhn et al. 2023, arXiv 2302.09664).

    The similarity of a pair is the smaller of the probabilities of its two directions. Entailment is not transitive:
    classes are made by complete linkage, so that any two answers of one class entail one another.

    Attributes:
        probability: (premise, hypothesis) pairs -> [pair] probability that the one entails the other. It is asked about
            every ordered pair of distinct phrases of a question once, all questions together.
        model: Names it, with its revision or a hash.
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
        asked = {
            (f"{q.text} {a}", f"{q.text} {b}"): None
            for q, its in zip(questions, phrases, strict=True)
            for a, b in permutations(sorted(its), 2)
        }
        entails = dict(zip(asked, self.probability(list(asked)), strict=True)) if asked else {}
        labels = []
        for question, its in zip(questions, phrases, strict=True):
            ordered = sorted(its)
            similarity = np.eye(len(ordered))
            for i, j in permutations(range(len(ordered)), 2):
                a, b = (f"{question.text} {ordered[k]}" for k in (i, j))
                similarity[i, j] = min(entails[a, b], entails[b, a])
            labels.append(_in_order(its, ordered, agglomerate(similarity, self.threshold, method="complete")))
        return labels


@dataclass(frozen=True)
class Embedding:
    """Two answers mean the same where their sentence embeddings point the same way.

    Phrases are embedded without their question, which would make all answers to it alike. Classes are made by average
    linkage on cosines.

    Attributes:
        embed: texts -> [text, d]; each distinct phrase is embedded once.
        model: Names it, with its revision or a hash.
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
        distinct = sorted({phrase for its in phrases for phrase in its})
        if not distinct:
            return [[] for _ in phrases]
        vectors = np.asarray(self.embed(distinct), dtype=np.float64)
        vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
        row = {phrase: i for i, phrase in enumerate(distinct)}
        labels = []
        for its in phrases:
            ordered = sorted(its)
            own = vectors[[row[phrase] for phrase in ordered]]
            cosine = np.clip(own @ own.T, 0.0, 1.0)
            labels.append(
                _in_order(its, ordered, agglomerate((cosine + cosine.T) / 2, self.threshold, method="average"))
            )
        return labels


def _in_order(phrases: Sequence[str], ordered: Sequence[str], labels: np.ndarray) -> list[int]:
    """Labels of sorted phrases, in the order in which they were given."""
    label_of = dict(zip(ordered, labels.tolist(), strict=True))
    return [label_of[phrase] for phrase in phrases]
