"""The distribution over semantic classes that a model's samples give: the push-forward of its answers through B."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from semcal.questions.question import Question
from semcal.semantics.class_table import UNEXPLORED  # noqa: F401
from semcal.semantics.collapsing.collapse import UNPARSED, Collapse


@dataclass(frozen=True)
class ClassDistribution:
    """The distribution of one question's answers over semantic classes, sampled or exact.

    Attributes:
        counts: class -> number of samples, the most frequent first; sums to m. The unparsed class is one of them. After
            exact enumeration: class -> mass, a lower bound; they sum to 1 with `unexplored`.
        gold: The classes that are correct, whether they were sampled or not.
        unexplored: Mass of the answers that enumeration did not follow; any class may have that much more.
        exact: Whether `counts` are masses.
    """

    counts: dict[str, int] | dict[str, float]
    gold: frozenset[str]
    unexplored: float = 0.0
    exact: bool = False

    @classmethod
    def of(
        cls, classes: Iterable[str], weights: Iterable[float], gold: frozenset[str], *, exact: bool = False
    ) -> ClassDistribution:
        """From the class of each answer and its weight: a count of samples, or a probability that enumeration found."""
        weight: Counter[str] = Counter()
        for klass, its in zip(classes, weights, strict=True):
            weight[klass] += its  # pyright: ignore[reportArgumentType]
        ordered = dict(sorted(weight.items(), key=lambda item: (-item[1], item[0])))
        return cls(ordered, gold, max(0.0, 1.0 - sum(ordered.values())) if exact else 0.0, exact)

    @classmethod
    def collapse(
        cls, collapse: Collapse, question: Question, texts: Iterable[tuple[str, int]], style: str
    ) -> ClassDistribution:
        """Collapse (text, count) pairs of one question."""
        pairs = list(texts)
        (found,) = collapse.collapse([question], [[text for text, _ in pairs]], style)
        return cls.of(found.classes, [count for _, count in pairs], found.gold)

    @property
    def m(self) -> int | None:
        """Number of samples; None for exact masses."""
        return None if self.exact else int(sum(self.counts.values()))

    @property
    def masses(self) -> dict[str, float]:
        """class -> share of the samples, the estimate of pi_x; or its mass, a lower bound."""
        return {k: c / (self.m or 1) for k, c in self.counts.items()}

    @property
    def confidence(self) -> float:
        """B-confidence, plug-in: the largest share; after enumeration its lower bound."""
        return max(self.masses.values(), default=0.0)

    @property
    def modes(self) -> tuple[str, ...]:
        """The classes that share the largest count; more than one is a tie."""
        top = max(self.counts.values(), default=0)
        return tuple(k for k, c in self.counts.items() if c == top)

    @property
    def accuracy(self) -> float:
        """1 if the mode is a gold class, 0 if not; under a tie the chance that a fair draw among the modes is gold.

        The unparsed class is never correct.
        """
        return sum(mode in self.gold and mode != UNPARSED for mode in self.modes) / max(1, len(self.modes))


@dataclass(frozen=True)
class CountMatrix:
    """The class distributions of many questions as arrays; classes are numbered a question, so K is the most any has.

    Attributes:
        counts: [question, K] samples a class, 0 where a question has fewer classes; rows sum to m. Masses where they
            are exact.
        gold: [question, K] bool, which classes are correct; one that was never sampled has a column, too.
        unparsed: [question] column of the unparsed class, -1 where every sample parsed.
    """

    counts: np.ndarray
    gold: np.ndarray
    unparsed: np.ndarray


def count_matrix(distributions: Sequence[ClassDistribution]) -> CountMatrix:
    """Stack class distributions, the most frequent class of each question first."""
    classes = [[*d.counts, *sorted(d.gold - d.counts.keys())] for d in distributions]
    width = max(1, *map(len, classes))
    exact = any(d.exact for d in distributions)
    counts = np.zeros((len(distributions), width), dtype=np.float64 if exact else np.int64)
    gold, unparsed = np.zeros(counts.shape, dtype=bool), np.full(len(distributions), -1)
    for row, d in enumerate(distributions):
        for column, klass in enumerate(classes[row]):
            counts[row, column] = d.counts.get(klass, 0)
            gold[row, column] = klass in d.gold and klass != UNPARSED
            if klass == UNPARSED:
                unparsed[row] = column
    return CountMatrix(counts, gold, unparsed)
