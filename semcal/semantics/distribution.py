"""The distribution over semantic classes that a model's samples give: the push-forward of its answers through B."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from semcal.questions.question import Question
from semcal.semantics.collapse import UNPARSED, Collapse


@dataclass(frozen=True)
class ClassDistribution:
    """How often the samples of one question fell into each class.

    Attributes:
        counts: class -> number of samples, the most frequent first; sums to m. The unparsed class is one of them.
        gold: The class of the gold answer, whether it was sampled or not.
    """

    counts: dict[str, int]
    gold: str

    @classmethod
    def collapse(
        cls, collapse: Collapse, question: Question, texts: Iterable[tuple[str, int]], style: str
    ) -> ClassDistribution:
        """Collapse (text, count) pairs of one question."""
        counts: Counter[str] = Counter()
        for text, count in texts:
            counts[collapse.of_text(question, text, style)] += count
        ordered = dict(sorted(counts.items(), key=lambda item: (-item[1], item[0])))
        return cls(ordered, collapse.of_gold(question))

    @property
    def m(self) -> int:
        """Number of samples."""
        return sum(self.counts.values())

    @property
    def masses(self) -> dict[str, float]:
        """class -> share of the samples: the estimate of pi_x."""
        return {k: c / self.m for k, c in self.counts.items()}

    @property
    def confidence(self) -> float:
        """B-confidence, plug-in: the largest share."""
        return max(self.counts.values()) / self.m

    @property
    def modes(self) -> tuple[str, ...]:
        """The classes that share the largest count; more than one is a tie."""
        top = max(self.counts.values())
        return tuple(k for k, c in self.counts.items() if c == top)

    @property
    def accuracy(self) -> float:
        """1 if the mode is the gold class, 0 if not; under a tie the chance that a fair draw among the modes is gold.

        The unparsed class is never correct.
        """
        return (self.gold in self.modes and self.gold != UNPARSED) / len(self.modes)


@dataclass(frozen=True)
class CountMatrix:
    """The class distributions of many questions as arrays; classes are numbered a question, so K is the most any has.

    Attributes:
        counts: [question, K] samples a class, 0 where a question has fewer classes; rows sum to m.
        gold: [question] column of the gold class, -1 where it was never sampled.
        unparsed: [question] column of the unparsed class, -1 where every sample parsed.
    """

    counts: np.ndarray
    gold: np.ndarray
    unparsed: np.ndarray


def count_matrix(distributions: Sequence[ClassDistribution]) -> CountMatrix:
    """Stack class distributions, the most frequent class of each question first."""
    counts = np.zeros((len(distributions), max(len(d.counts) for d in distributions)), dtype=np.int64)
    gold, unparsed = np.full(len(distributions), -1), np.full(len(distributions), -1)
    for row, d in enumerate(distributions):
        for column, (klass, count) in enumerate(d.counts.items()):
            counts[row, column] = count
            if klass == UNPARSED:
                unparsed[row] = column
            elif klass == d.gold:
                gold[row] = column
    return CountMatrix(counts, gold, unparsed)
