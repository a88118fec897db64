"""Collapsing by meaning: extract phrases, join known aliases, then cluster the rest by entailment or by embeddings.

Clusterers know which pairs to compare, and no model: models are passed in as functions of texts. What a model said of a
pair is remembered, so that other thresholds, and the gold answers, cost only what was not asked before.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import combinations

import numpy as np
from numpy.typing import ArrayLike

from semcal.questions.question import BlindQuestion
from semcal.questions.wording import normalise
from semcal.semantics.class_table import UNPARSED
from semcal.semantics.collapsing.collapse import Cluster, Partition
from semcal.semantics.extract import extract


@dataclass(frozen=True)
class Clustered:
    """Extract a phrase, replace known aliases by their canonical form (normalised exact match), then cluster.

    A class is named after its shortest phrase, of equally short ones the alphabetically first. A reference answer is in
    the class that it means the same as, by the criterion that made the classes, or else in a class of its own.

    Attributes:
        cluster: Groups the distinct phrases of a question.
        pooled: Normalised form -> normalised canonical form, the same for every question (`alias_table.pooled`).
        whole: Whether it reads answers as the model wrote them, as a judge does, rather than the extracted phrases.
    """

    cluster: Cluster
    pooled: Mapping[str, str] = field(default_factory=dict)
    whole: bool = False

    @property
    def name(self) -> str:
        return self.cluster.name

    def partition(
        self, questions: Sequence[BlindQuestion], texts: Sequence[Sequence[str]], style: str
    ) -> list[tuple[str, ...]]:
        """As `Collapse`."""
        keys = [[self._key(self._phrase(text, style)) for text in own] for own in texts]
        phrases = [self._phrases(own, style) for own in texts]
        labels = self.cluster.cluster(questions, [list(own.values()) for own in phrases])
        found = []
        for own, known, label in zip(keys, phrases, labels, strict=True):
            label_of = dict(zip(known, label, strict=True))
            names: dict[int, str] = {-1: UNPARSED}
            for key in sorted(known, key=lambda key: (len(key), key)):
                names.setdefault(label_of[key], key)
            found.append(tuple(UNPARSED if key is None else names[label_of[key]] for key in own))
        return found

    def match(
        self,
        questions: Sequence[BlindQuestion],
        partitions: Sequence[Partition],
        references: Sequence[Sequence[str]],
        style: str,
    ) -> list[tuple[str, ...]]:
        """As `Collapse`. Of the forms that the table joins, the first is compared."""
        known: list[dict[str, str]] = []  # [question] key -> class
        classes: list[dict[str, list[str]]] = []
        strangers: list[dict[str, str]] = []  # [question] key -> reference
        for made, own in zip(partitions, references, strict=True):
            keys = [self._key(self._phrase(text, style)) for text in made.texts]
            class_of = {key: label for key, label in zip(keys, made.classes, strict=True) if key is not None}
            members: dict[str, list[str]] = defaultdict(list)
            for key, phrase in self._phrases(made.texts, style).items():
                if class_of[key] != UNPARSED:
                    members[class_of[key]].append(phrase)
            new: dict[str, str] = {}
            for answer in own:
                if (key := self._key(answer)) is not None and key not in class_of:
                    new.setdefault(key, answer)
            known.append(class_of)
            classes.append(members)
            strangers.append(new)
        assigned = self.cluster.assign(questions, classes, [list(new.values()) for new in strangers])
        for class_of, new, labels in zip(known, strangers, assigned, strict=True):
            class_of.update((key, label or key) for key, label in zip(new, labels, strict=True))
        return [
            tuple(UNPARSED if (key := self._key(answer)) is None else class_of[key] for answer in own)
            for class_of, own in zip(known, references, strict=True)
        ]

    def _phrase(self, text: str, style: str) -> str | None:
        return (text.strip() or None) if self.whole else extract(text, style)

    def _key(self, phrase: str | None) -> str | None:
        """The canonical form of a phrase; None if nothing is left."""
        key = "" if phrase is None else normalise(phrase)
        return self.pooled.get(key, key) or None

    def _phrases(self, texts: Iterable[str], style: str) -> dict[str, str]:
        """Key -> the alphabetically first phrase of that form, in alphabetical order."""
        found: dict[str, str] = {}
        for phrase in sorted({p for text in texts if (p := self._phrase(text, style)) is not None}):
            if (key := self._key(phrase)) is not None:
                found.setdefault(key, phrase)
        return dict(sorted(found.items()))


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
    from scipy.cluster.hierarchy import fcluster, linkage  # slow to import, and few Bs cluster
    from scipy.spatial.distance import squareform

    tree = linkage(squareform(distance, checks=False), method=method)
    found = fcluster(tree, 1 - threshold + 1e-9, criterion="distance")
    _, first, place = np.unique(found, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[place]


def nearest_class(similarity: Mapping[str, Sequence[float]], threshold: float, *, method: str) -> str | None:
    """The class that a further item belongs to by the criterion of `agglomerate`; None if it is in none.

    Of several classes the most similar one, of equally similar ones the alphabetically first.

    Args:
        similarity: class -> similarity of the item to each of its members.
        threshold, method: as in `agglomerate`.
    """
    linked = {label: (np.min if method == "complete" else np.mean)(own) for label, own in similarity.items() if own}
    near = [label for label, value in linked.items() if value >= threshold - 1e-9]
    return min(near, key=lambda label: (-linked[label], label), default=None)


@dataclass(frozen=True)
class Entailment:
    """Two answers mean the same if each entails the other, given the question (Kuhn et al. 2023, arXiv 2302.09664).

    The similarity of a pair is the smaller of its two entailment probabilities. Entailment is not transitive, so
    classes are made by complete linkage: any two answers of a class entail each other.

    Attributes:
        probability: (premise, hypothesis) pairs -> [pair] probability of entailment. Each ordered pair is asked once.
        model: Name of the model, with its revision or a hash.
        threshold: Least similarity within a class.
        asked: What is known of ordered pairs.
    """

    probability: Callable[[Sequence[tuple[str, str]]], np.ndarray]
    model: str
    threshold: float = 0.5
    asked: dict[tuple[str, str], float] = field(default_factory=dict, compare=False, repr=False)

    @property
    def name(self) -> str:
        return f"entailment({self.model}, {self.threshold:g}, complete)/3"

    def cluster(self, questions: Sequence[BlindQuestion], phrases: Sequence[Sequence[str]]) -> list[list[int]]:
        """As `Cluster`."""
        said = [[f"{q.text} {phrase}" for phrase in sorted(own)] for q, own in zip(questions, phrases, strict=True)]
        self._ask(pair for own in said for pair in combinations(own, 2))
        labels = []
        for own, ordered in zip(phrases, said, strict=True):
            similarity = np.eye(len(ordered))
            for (i, a), (j, b) in combinations(enumerate(ordered), 2):
                similarity[i, j] = similarity[j, i] = self._similarity(a, b)
            labels.append(_in_order(own, sorted(own), agglomerate(similarity, self.threshold, method="complete")))
        return labels

    def assign(
        self,
        questions: Sequence[BlindQuestion],
        classes: Sequence[Mapping[str, Sequence[str]]],
        phrases: Sequence[Sequence[str]],
    ) -> list[list[str | None]]:
        """As `Cluster`."""
        said = [
            ({k: [f"{q.text} {m}" for m in members] for k, members in known.items()}, [f"{q.text} {p}" for p in own])
            for q, known, own in zip(questions, classes, phrases, strict=True)
        ]
        self._ask((a, b) for known, own in said for a in own for members in known.values() for b in members)
        return [
            [
                nearest_class(
                    {label: [self._similarity(a, b) for b in members] for label, members in known.items()},
                    self.threshold,
                    method="complete",
                )
                for a in own
            ]
            for known, own in said
        ]

    def _ask(self, pairs: Iterable[tuple[str, str]]) -> None:
        """Ask in both directions for the pairs that are not known yet."""
        new = [pair for a, b in pairs for pair in ((a, b), (b, a)) if a != b]
        new = [pair for pair in dict.fromkeys(new) if pair not in self.asked]
        if new:
            self.asked.update(zip(new, map(float, self.probability(new)), strict=True))

    def _similarity(self, a: str, b: str) -> float:
        return 1.0 if a == b else min(self.asked[a, b], self.asked[b, a])


@dataclass(frozen=True)
class Embedding:
    """Two answers mean the same if their sentence embeddings point in the same direction.

    Phrases are embedded without their question, which would make all of its answers similar. Classes are made by
    average linkage on cosines.

    Attributes:
        embed: texts -> [text, d]; each distinct phrase is embedded once.
        model: Name of the model, with its revision or a hash.
        threshold: Least mean cosine within a class.
        asked: phrase -> its embedding, of length 1.
    """

    embed: Callable[[Sequence[str]], np.ndarray]
    model: str
    threshold: float = 0.8
    asked: dict[str, np.ndarray] = field(default_factory=dict, compare=False, repr=False)

    @property
    def name(self) -> str:
        return f"embedding({self.model}, {self.threshold:g}, average)/3"

    def cluster(self, questions: Sequence[BlindQuestion], phrases: Sequence[Sequence[str]]) -> list[list[int]]:  # noqa: ARG002
        """As `Cluster`."""
        self._ask(phrase for own in phrases for phrase in own)
        labels = []
        for own in phrases:
            ordered = sorted(own)
            cosine = self._cosines(ordered, ordered)
            found = agglomerate((cosine + cosine.T) / 2, self.threshold, method="average")
            labels.append(_in_order(own, ordered, found))
        return labels

    def assign(
        self,
        questions: Sequence[BlindQuestion],  # noqa: ARG002
        classes: Sequence[Mapping[str, Sequence[str]]],
        phrases: Sequence[Sequence[str]],
    ) -> list[list[str | None]]:
        """As `Cluster`."""
        self._ask(phrase for own in phrases for phrase in own)
        found: list[list[str | None]] = []
        for known, own in zip(classes, phrases, strict=True):
            cosines = [{k: self._cosines([p], members)[0].tolist() for k, members in known.items()} for p in own]
            found.append([nearest_class(cosine, self.threshold, method="average") for cosine in cosines])
        return found

    def _ask(self, phrases: Iterable[str]) -> None:
        if new := sorted(set(phrases) - self.asked.keys()):
            vectors = np.asarray(self.embed(new), dtype=np.float64)
            vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-12)
            self.asked.update(zip(new, vectors, strict=True))

    def _cosines(self, some: Sequence[str], others: Sequence[str]) -> np.ndarray:
        """[some, others], none below 0."""
        left, right = (np.array([self.asked[p] for p in own]) for own in (some, others))
        return np.clip(left @ right.T, 0.0, 1.0) if len(some) else np.zeros((0, 0))


def at_other_thresholds(b: object) -> dict[float, Clustered]:
    """The same B at the thresholds with half and with twice the odds; empty for a B without a threshold.

    They are fixed by the chosen one (0.5: 0.333 and 0.667; 0.8: 0.667 and 0.889). No model is asked again.
    """
    if not isinstance(b, Clustered) or not isinstance(b.cluster, Entailment | Embedding):
        return {}
    odds = b.cluster.threshold / (1 - b.cluster.threshold)
    values = [round(o / (1 + o), 3) for o in (odds / 2, odds * 2)]
    return {value: replace(b, cluster=replace(b.cluster, threshold=value)) for value in values}


def _in_order(phrases: Sequence[str], ordered: Sequence[str], labels: np.ndarray) -> list[int]:
    """The labels of sorted phrases, in the original order of the phrases."""
    label_of = dict(zip(ordered, labels.tolist(), strict=True))
    return [label_of[phrase] for phrase in phrases]
