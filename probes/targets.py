"""What a probe is asked to predict: the model's own class distribution, or a scalar made from it.

Knows class labels and counts, and how a prediction of a distribution is scored; knows nothing of answers, models or
activations. The arrays here are `[question, class]` or `[question]`, in the order in which the questions were given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

OTHER = "(other)"


@dataclass(frozen=True)
class ClassTarget:
    """Estimated class distributions `π_x` over one vocabulary of classes shared by all questions.

    Raises:
        ValueError: the shapes disagree, a mass is negative or not finite, or a row does not sum to 1.
    """

    classes: tuple[str, ...]
    """Labels, heaviest first; `"(other)"` comes last where light classes were pooled."""

    distribution: np.ndarray
    """[question, class], rows sum to 1."""

    m: int | None
    """Samples behind each row; None if the rows are exact (then there is no sampling noise and the ceiling is 1)."""

    def __post_init__(self) -> None:
        shape = self.distribution.shape
        if len(shape) != 2 or shape[1] != len(self.classes):
            raise ValueError(f"distribution has shape {shape} for {len(self.classes)} classes; want [question, class]")
        if self.m is not None and self.m < 1:
            raise ValueError(f"m is {self.m}; want a number of samples of at least 1, or None for exact distributions")
        valid = np.isfinite(self.distribution).all(1) & (self.distribution >= 0).all(1)
        valid &= np.isclose(self.distribution.sum(1), 1.0, atol=1e-6)
        if not valid.all():
            raise ValueError(f"row {int(np.argmin(valid))} of the distribution is not a distribution over classes")

    def __len__(self) -> int:
        return len(self.distribution)


def class_target(distributions: Sequence[Mapping[str, float]], *, max_classes: int = 100, m: int | None) -> ClassTarget:
    """Lay the questions' class distributions over one vocabulary.

    Classes are ordered by their total mass over all questions, every question weighing the same (ties by label).
    Choosing the vocabulary from all questions, held-out ones included, is a choice of target space, not of predictor:
    it fixes which distribution is asked for, and baseline and probe are scored in the same space.

    Args:
        distributions: for each question, class label -> count or mass. Each is normalised.
        max_classes: size of the vocabulary at most; beyond it, the lightest classes are pooled in a last class
            "(other)", which counts as one of the `max_classes`. Pooling coarsens the target: every KL in nats is then a
            lower bound of the one over all classes.
        m: samples behind each distribution, None if exact.

    Raises:
        ValueError: no question, a question without mass, a negative mass, or `max_classes` below 1.
    """
    if max_classes < 1:
        raise ValueError(f"max_classes is {max_classes}; want at least 1")
    rows = [_normalised(index, row) for index, row in enumerate(distributions)]
    if not rows:
        raise ValueError("no class distributions were given")
    total: Counter[str] = Counter()
    for row in rows:
        total.update(row)
    order = sorted((label for label, mass in total.items() if mass > 0), key=lambda label: (-total[label], label))
    if len(order) > max_classes:
        kept = [label for label in order if label != OTHER][: max_classes - 1]
        order = [*kept, OTHER]
    column = {label: index for index, label in enumerate(order)}
    distribution = np.zeros((len(rows), len(order)))
    for index, row in enumerate(rows):
        for label, mass in row.items():
            if mass > 0:
                distribution[index, column.get(label, len(order) - 1)] += mass
    return ClassTarget(classes=tuple(order), distribution=distribution, m=m)


def b_confidence(distributions: Sequence[Mapping[str, float]]) -> np.ndarray:
    """`max_k π_x(k)` a question: [question], shares in (0, 1].

    The plug-in of a finite sample overstates the maximum, most for flat distributions.
    """
    return np.array([max(_normalised(index, row).values()) for index, row in enumerate(distributions)])


def semantic_entropy(distributions: Sequence[Mapping[str, float]]) -> np.ndarray:
    """Entropy of `π_x` a question: [question], nats (Kuhn et al. 2023, arXiv 2302.09664, discrete form).

    This is the plug-in, biased down by about (K − 1)/2M nats (Miller 1955); no correction is applied, because a probe's
    target should not depend on an estimate of K.
    """
    entropies = []
    for index, row in enumerate(distributions):
        mass = np.array([value for value in _normalised(index, row).values() if value > 0])
        entropies.append(float(-(mass * np.log(mass)).sum()))
    return np.maximum(entropies, 0.0)


def smoothed(Y: Tensor) -> Tensor:
    """Training targets with the weight of one uniform pseudo-question spread over the rows: [..., n, K].

    Without it a class that no training question has would get probability 0, and one held-out sample of it an infinite
    KL. Baseline and probe both learn from smoothed targets, so neither gains on the other.
    """
    n, K = Y.shape[-2:]
    return (Y * n + 1 / K) / (n + 1)


def kl_divergence(Y: Tensor, log_q: Tensor) -> Tensor:
    """KL(Y ‖ q) in nats over the last axis, with 0·log 0 = 0; shapes broadcast."""
    return (torch.special.xlogy(Y, Y) - Y * log_q).sum(-1)


def _normalised(index: int, row: Mapping[str, float]) -> dict[str, float]:
    total = float(sum(row.values()))
    if not (0 < total < np.inf) or min(row.values()) < 0:
        raise ValueError(f"question {index} has no class distribution: masses must be non-negative with a positive sum")
    return {label: float(value) / total for label, value in row.items()}
