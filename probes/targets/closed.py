"""What a probe predicts: the model's own class distribution over one vocabulary of classes shared by all questions.

Knows the class table, and how a predicted distribution is scored; knows nothing of answers, models or activations.
Arrays are `[question, class]`, questions in the order of the table.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from probes.targets.entropy import Entropies, entropies
from semcal.semantics.class_table import UNEXPLORED, ClassTable

OTHER = "(other)"
MOST_POOLED = 0.2  # share of the mass in OTHER above which a share explained says how much is pooled, not what is said


@dataclass(frozen=True)
class ClassTarget:
    """Estimated class distributions `π_x` over one vocabulary of classes shared by all questions.

    Attributes:
        classes: labels, heaviest first; `"(other)"` comes last where light classes were pooled.
        distribution: [question, class], rows sum to 1.
        m: samples behind each row; None if the rows are exact (no sampling noise, and the ceiling is 1).
        name: of the target, for the column `target`.
        fixed_classes: whether classes were fixed before sampling, so that M alone tells the sampling noise. Sorting
            classes or choosing the mode adds noise that M does not tell: then no ceiling is known, and no entropy.
        entropies: of `π_x`, where more is known of them than the masses tell; None: as the masses tell.

    Raises:
        ValueError: the shapes disagree, a mass is negative or not finite, or a row does not sum to 1.
    """

    classes: tuple[str, ...]
    distribution: np.ndarray
    m: int | None
    name: str = "classes"
    fixed_classes: bool = True
    entropies: Entropies | None = None

    def __post_init__(self) -> None:
        shape = self.distribution.shape
        if len(shape) != 2 or shape[1] != len(self.classes):
            raise ValueError(
                f"distribution has shape {shape} for {len(self.classes)} classes; expected [question, class]"
            )
        if self.m is not None and self.m < 1:
            raise ValueError(f"m is {self.m}; expected a number of samples of at least 1, or None for exact masses")
        valid = np.isfinite(self.distribution).all(1) & (self.distribution >= 0).all(1)
        valid &= np.isclose(self.distribution.sum(1), 1.0, atol=1e-6)
        if not valid.all():
            row = int(np.argmin(valid))
            raise ValueError(f"row {row} is not a valid distribution; expected masses of at least 0 that sum to 1")

    def __len__(self) -> int:
        return len(self.distribution)

    @property
    def pooled(self) -> float:
        """Share of the mass in the pooled class; 0 where nothing is pooled."""
        return float(self.distribution[:, -1].mean()) if self.classes[-1] == OTHER else 0.0

    @property
    def known_entropies(self) -> Entropies | None:
        """`entropies`, or what the masses tell of them; None where M does not tell the noise (`fixed_classes`)."""
        if not self.fixed_classes:
            return None
        return self.entropies or entropies(self.distribution, self.m)


def class_target(table: ClassTable, *, max_classes: int = 100) -> ClassTarget:
    """Lay the questions' class distributions over one vocabulary; see `class_targets`."""
    return class_targets([table], max_classes=max_classes)[0]


def class_targets(tables: Sequence[ClassTable], *, max_classes: int = 100) -> list[ClassTarget]:
    """Lay the class distributions of one or several runs over one vocabulary: a target per table.

    Classes are ordered by their total mass over all questions, every question weighing the same (ties by label).
    Choosing the vocabulary from all questions, held-out ones included, is a choice of target space, not of predictor:
    it fixes which distribution is asked for, and baseline and probe are scored in the same space.

    Args:
        max_classes: largest size of the vocabulary; beyond it, the lightest classes are pooled in a last class
            "(other)", which counts as one of the `max_classes`. Pooling coarsens the target: every KL in nats is then a
            lower bound of the KL over all classes.

    Raises:
        ValueError: no question, or `max_classes` below 1.
    """
    if max_classes < 1:
        raise ValueError(f"max_classes is {max_classes}; expected at least 1")
    rows = [row for table in tables for row in distributions_of(table)]
    if not rows:
        raise ValueError("no class distributions were given; expected at least one question")
    total: dict[str, float] = {}
    for row in rows:
        for label, mass in row.items():
            total[label] = total.get(label, 0.0) + mass
    order = sorted(total, key=lambda label: (-total[label], label))
    if len(order) > max_classes:
        order = [*[label for label in order if label != OTHER][: max_classes - 1], OTHER]
    column = {label: index for index, label in enumerate(order)}
    distribution = np.zeros((len(rows), len(order)))
    for index, row in enumerate(rows):
        for label, mass in row.items():
            distribution[index, column.get(label, len(order) - 1)] += mass
    parts = np.split(distribution, np.cumsum([len(table) for table in tables])[:-1])
    return [
        ClassTarget(tuple(order), part, table.m, entropies=_pooled_entropies(table, part, column))
        for part, table in zip(parts, tables, strict=True)
    ]


def _pooled_entropies(table: ClassTable, distribution: np.ndarray, column: Mapping[str, int]) -> Entropies | None:
    """Entropies of a table's distributions over a vocabulary (label -> column, what is in none in the last), where the
    log-probabilities of its answers are known."""
    if table.log_seen is None:
        return None
    log_seen, width = np.full(distribution.size, -np.inf), distribution.shape[1]
    places = [column.get(label, width - 1) for labels in table.classes for label in labels]
    row = np.repeat(np.arange(len(table)), [len(labels) for labels in table.classes])
    own = np.concatenate([table.log_seen[at, : len(labels)] for at, labels in enumerate(table.classes)])
    np.logaddexp.at(log_seen, row * width + places, own)
    return entropies(distribution, table.m, log_seen=log_seen.reshape(distribution.shape))


def distributions_of(table: ClassTable) -> list[dict[str, float]]:
    """[question] class -> mass, positive masses only, which sum to 1 (enumerated masses are brought to that)."""
    shares = normalised_shares(table)
    rows = zip(table.classes, shares, strict=True)
    return [
        {label: float(mass) for label, mass in zip(labels, row, strict=False) if mass > 0} or {UNEXPLORED: 1.0}
        for labels, row in rows
    ]


def normalised_shares(table: ClassTable) -> np.ndarray:
    """[question, K] masses of the table's classes, rows sum to 1; 0 in rows of which enumeration found no answer."""
    total = np.cumsum(table.shares, axis=1)[:, -1:]  # one after the other, whatever the padding
    return np.divide(table.shares, total, out=np.zeros_like(table.shares), where=total > 0)


def ranked_target(table: ClassTable, *, top: int = 5) -> ClassTarget:
    """How the mass is spread, whatever the classes are called: masses of the `top` heaviest classes, and of the rest.

    A target that questions without a common vocabulary share, with classes "1st" ... and "rest". Sorting a finite
    sample overstates the first masses and understates the last, as `b_confidence` does; so `noise_ceiling`, which knows
    only of sampling noise about fixed classes, is not a ceiling for it.

    Raises:
        ValueError: no question, or `top` below 1.
    """
    if top < 1 or not len(table):
        raise ValueError(f"{len(table)} questions and top={top}; expected at least one of each")
    ranked = np.zeros((len(table), top + 1))
    for index, row in enumerate(distributions_of(table)):
        masses = sorted(row.values(), reverse=True)
        ranked[index, : min(top, len(masses))] = masses[:top]
        ranked[index, top] = sum(masses[top:])
    names = ["1st", "2nd", "3rd", *(f"{i}th" for i in range(4, top + 1))][:top]
    return ClassTarget((*names, "rest"), ranked, table.m, "ranked", fixed_classes=table.m is None)


def share_target(values: np.ndarray, *, name: str, m: int | None) -> ClassTarget:
    """A scalar in [0, 1] (B-confidence, correctness) as two classes, so that every rung can predict it.

    `score` is then the share of KL between Bernoulli distributions that is explained.

    Args:
        values: [question].
        name: of the first class, and of the target.
        m: samples behind each value, None if exact.

    Raises:
        ValueError: a value outside [0, 1].
    """
    valid = (values >= 0) & (values <= 1)  # False for NaN
    if not valid.all():
        question = int(np.argmin(valid))
        raise ValueError(f"{name} must lie in [0, 1]; at question {question} it is {values[question]}")
    distribution = np.stack([values, 1 - values], 1)
    return ClassTarget((name, f"not {name}"), distribution, m, name, fixed_classes=m is None)


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
