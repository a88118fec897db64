"""Reward shapes for reinforcement learning; knows classes only, no model and no trainer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence

from experiments.atlas.world import MATERIAL, TOWNS_PER_REGION, World

Reward = Callable[[World, str, Sequence[str]], list[float]]


def correct(_: World, gold: str, classes: Sequence[str]) -> list[float]:
    """1 for the gold class, else 0: what RL with verifiable rewards pays. It is best served by always naming the
    likeliest class, so nothing in it asks for calibration."""
    return [float(label == gold) for label in classes]


def graded(world: World, gold: str, classes: Sequence[str]) -> list[float]:
    """As `correct`, and 0.5 for a wrong town of the right region or a wrong trade of the right material."""
    near = _neighbourhood(world, gold)
    paid = correct(world, gold, classes)
    return [max(pay, 0.5 * (_neighbourhood(world, label) == near)) for pay, label in zip(paid, classes, strict=True)]


def brier(_: World, gold: str, classes: Sequence[str]) -> list[float]:
    """A proper score of the distribution that the answers are drawn from, paid answer by answer.

    For answer i with class b: [b is gold] − (other answers of class b) / (G − 2), where G is the number of answers.
    Policy gradient on it, with the mean of the group as baseline, is without bias in the direction that lowers the
    Brier score of the class distribution π, for d/dπ_k Σ(π − y)² = 2(π_k − y_k). The share of an answer's own kind
    would be over G − 1; the baseline, which holds the same pairs, takes 1/(G − 1) of it away again, hence G − 2.
    """
    counts, others = Counter(classes), len(classes) - 2
    return [float(label == gold) - (counts[label] - 1) / others for label in classes]


REWARDS: dict[str, Reward] = {"correct": correct, "graded": graded, "brier": brier}


def _neighbourhood(world: World, label: str) -> int | str | None:
    """The region of a town, the material of a trade."""
    if label in MATERIAL:
        return MATERIAL[label]
    return world.towns.index(label) // TOWNS_PER_REGION if label in world.towns else None
