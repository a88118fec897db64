"""Scalars made from a class distribution that a probe predicts: B-confidence, semantic entropy, number of classes, and
whether the semantic answer is correct. Arrays are [question], in the order of the class table.
"""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from probes.targets.closed import distributions_of, normalised_shares
from semcal.calibration.estimators.finite_m import thin
from semcal.seeds import keyed_generator
from semcal.semantics.class_table import ClassTable


@dataclass(frozen=True)
class ScalarTarget:
    """A scalar per question.

    Attributes:
        values: [question], finite.
        name: for the column `target`.
        noise_variance: mean sampling variance of the values; None: unknown, and so is the ceiling.

    Raises:
        ValueError: a value that is not finite.
    """

    values: np.ndarray
    name: str
    noise_variance: float | None = None

    def __post_init__(self) -> None:
        if not np.isfinite(self.values).all():
            question = int(np.argmin(np.isfinite(self.values)))
            raise ValueError(f"{self.name} is not finite at question {question}; leave the question out")

    def __len__(self) -> int:
        return len(self.values)


def scalar_target(table: ClassTable, name: str, *, seed: int) -> ScalarTarget:
    """The scalar of `SCALARS` of that name.

    Its sampling variance is estimated by halving the samples (`sampling_variance`), but not that of the number of
    classes, which does not fall as 1/M.

    Args:
        seed: of the halvings.
    """
    noise = 0.0 if table.counts is None else None
    if table.counts is not None and name in _OF_COUNTS:
        noise = sampling_variance(table.counts, _OF_COUNTS[name], seed=seed)
    return ScalarTarget(SCALARS[name](table), name, noise)


def b_confidence(table: ClassTable) -> np.ndarray:
    """`max_k π_x(k)`: [question], shares in (0, 1].

    The plug-in of a finite sample overstates the maximum, most for flat distributions.
    """
    shares = normalised_shares(table)
    return np.where(shares.any(1), shares.max(1), 1.0)


def semantic_entropy(table: ClassTable) -> np.ndarray:
    """Entropy of `π_x`: [question], nats (Kuhn et al. 2023, arXiv 2302.09664, discrete form).

    This is the plug-in, biased down by about (K − 1)/2M nats (Miller 1955); no correction is applied, because a probe's
    target should not depend on an estimate of K.
    """
    entropies = []
    for row in distributions_of(table):
        mass = np.array(list(row.values()))
        entropies.append(float(-(mass * np.log(mass)).sum()))
    return np.maximum(entropies, 0.0)


def number_of_classes(table: ClassTable) -> np.ndarray:
    """Classes with any mass: [question], counts ≥ 1.

    Of M samples it is a lower bound that grows with M: compare at equal M only.
    """
    return np.maximum((table.shares > 0).sum(1), 1).astype(float)


def mode_correctness(table: ClassTable) -> np.ndarray:
    """Is the semantic answer `k* = argmax π_x` a gold class? [question], shares in [0, 1].

    Tied modes count by the share of them that is gold; which of them comes first decides nothing.
    """
    return mode_share(table, table.gold)


def mode_share(table: ClassTable, chosen: np.ndarray) -> np.ndarray:
    """Share of the modes of each question that are among the `chosen` [question, K] classes: [question]."""
    shares = normalised_shares(table)
    top = shares.max(1, keepdims=True)
    modes = np.isclose(shares, top, rtol=1e-9) & (top > 0)
    return (modes & chosen).sum(1) / np.maximum(modes.sum(1), 1)


def sampling_variance(
    counts: np.ndarray, statistic: Callable[[np.ndarray], np.ndarray], *, repeats: int = 20, seed: int
) -> float:
    """Mean variance that M samples per question leave in a statistic of its counts (B-confidence, entropy).

    The samples are split at random; half their mean squared difference is the variance at M/2, and half of that is
    taken as the variance at M. Exact for means, approximate for the maximum and the entropy of frequencies, whose bias
    depends on M too.

    Args:
        counts: [question, class], at least 2 samples each.
        statistic: counts [question, class] -> values [question].
        repeats: random halvings.
        seed: of the halvings.

    Returns:
        NaN where a question has fewer than 2 samples.
    """
    smallest = int(counts.sum(1).min())
    if smallest < 2:
        return float("nan")
    halves = thin(counts, smallest // 2, rng=keyed_generator(seed, "sampling variance"), repeats=repeats)
    return float(np.mean([np.mean((statistic(half) - statistic(counts - half)) ** 2) for half in halves])) / 4


def _top_share(counts: np.ndarray) -> np.ndarray:
    return counts.max(1) / counts.sum(1)


def _entropy(counts: np.ndarray) -> np.ndarray:
    share = counts / counts.sum(1, keepdims=True)
    return -(share * np.log(np.where(share > 0, share, 1))).sum(1)


SCALARS = {"b_confidence": b_confidence, "entropy": semantic_entropy, "n_classes": number_of_classes}
_OF_COUNTS = {"b_confidence": _top_share, "entropy": _entropy}
