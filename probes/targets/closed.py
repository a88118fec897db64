"""What a probe is asked to predict: the model's own class distribution, or a scalar made from it.

Knows class labels and counts, and how a prediction of a distribution is scored; knows nothing of answers, models or
activations. The arrays here are `[question, class]` or `[question]`, in the order in which the questions were given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
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


def number_of_classes(distributions: Sequence[Mapping[str, float]]) -> np.ndarray:
    """Classes with any mass a question: [question], counts ≥ 1.

    Of M samples it is a lower bound that grows with M: compare at equal M only.
    """
    return np.array([sum(v > 0 for v in _normalised(i, row).values()) for i, row in enumerate(distributions)], float)


def mode_correctness(distributions: Sequence[Mapping[str, float]], gold: Sequence[Collection[str]]) -> np.ndarray:
    """Is the semantic answer `k* = argmax π_x` a gold class? [question], shares in [0, 1].

    Tied modes count by the share of them that is gold; which of them comes first decides nothing.

    Args:
        gold: for each question, its correct classes.

    Raises:
        ValueError: lengths disagree, or a question has no class distribution.
    """
    if len(gold) != len(distributions):
        raise ValueError(f"{len(gold)} sets of gold classes for {len(distributions)} questions; want one each")
    shares = []
    for index, (row, correct) in enumerate(zip(distributions, gold, strict=True)):
        masses = _normalised(index, row)
        top = max(masses.values())
        modes = [label for label, mass in masses.items() if np.isclose(mass, top, rtol=1e-9)]
        shares.append(sum(label in correct for label in modes) / len(modes))
    return np.array(shares)


def ranked_target(distributions: Sequence[Mapping[str, float]], *, top: int = 5, m: int | None) -> ClassTarget:
    """How the mass is spread, whatever the classes are called: masses of the `top` heaviest classes, and of the rest.

    A target that questions without a common vocabulary share, with classes "1st" ... and "rest". Sorting a finite
    sample overstates the first masses and understates the last, as `b_confidence` does; so `noise_ceiling`, which knows
    only of sampling noise about fixed classes, is no ceiling for it.

    Args:
        distributions: for each question, class label -> count or mass.
        top: masses kept apart, at least 1.
        m: samples behind each distribution, None if exact.

    Raises:
        ValueError: no question, one without mass, or `top` below 1.
    """
    if top < 1 or not distributions:
        raise ValueError(f"{len(distributions)} questions and top={top}; want at least one of each")
    ranked = np.zeros((len(distributions), top + 1))
    for index, row in enumerate(distributions):
        masses = sorted(_normalised(index, row).values(), reverse=True)
        ranked[index, : min(top, len(masses))] = masses[:top]
        ranked[index, top] = sum(masses[top:])
    names = ["1st", "2nd", "3rd", *(f"{i}th" for i in range(4, top + 1))][:top]
    return ClassTarget(classes=(*names, "rest"), distribution=ranked, m=m)


def share_target(values: np.ndarray, *, name: str, m: int | None) -> ClassTarget:
    """A scalar in [0, 1] (B-confidence, correctness) as two classes, so that every rung can predict it.

    `score` is then the share of KL between Bernoulli distributions that is explained.

    Args:
        values: [question].
        name: of the first class.
        m: samples behind each value, None if exact.

    Raises:
        ValueError: a value that is not a share.
    """
    valid = (values >= 0) & (values <= 1)  # False for NaN
    if not valid.all():
        raise ValueError(f"{name} is no share at question {int(np.argmin(valid))}; want values in [0, 1]")
    return ClassTarget(classes=(name, f"not {name}"), distribution=np.stack([values, 1 - values], 1), m=m)


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
