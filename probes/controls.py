"""What a probe's score is read against: a ceiling, a control task, and rows permuted for the null.

Knows class distributions and groups of questions; nothing of activations, layers or solvers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from probes.targets import ClassTarget


def noise_ceiling(target: ClassTarget, baseline: float) -> float:
    """Share of KL(π̂ ‖ marginal) that a predictor knowing the true `π_x` would explain, given M samples a question.

    The distributions are frequencies π̂ of M draws, and even the true π_x is off by E KL(π̂ ‖ π) ≈ (K − 1)/2M nats (the
    likelihood-ratio statistic, 2M·KL, is asymptotically χ² with K − 1 degrees of freedom: Wilks 1938). So the ceiling is
    1 − mean(K_x − 1)/2M / baseline, with K_x the classes that were observed for question x.

    Approximate: classes never drawn are not counted and classes expected less than about once add less than 1/2M each,
    which pull in opposite directions, so a probe can pass the ceiling by a little.

    Args:
        target: the distributions and their M; with `m=None` they are exact and the ceiling is 1.
        baseline: mean KL(π̂ ‖ marginal) in nats.

    Returns:
        A share in [0, 1]; NaN if the baseline is 0 (nothing to explain).
    """
    if not baseline > 0:
        return float("nan")
    if target.m is None:
        return 1.0
    surplus = float(((target.distribution > 0).sum(1) - 1).mean())
    return float(np.clip(1 - surplus / (2 * target.m) / baseline, 0.0, 1.0))


def confidence_strata(target: ClassTarget, *, bins: int = 5) -> np.ndarray:
    """Quantile bin of each question's B-confidence: [question], integers. Ties may leave fewer bins than asked for."""
    confidence = target.distribution.max(1)
    edges = np.unique(np.quantile(confidence, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.searchsorted(edges, confidence, side="right")


def control_target(target: ClassTarget, group: Sequence[str], strata: np.ndarray, seed: int) -> ClassTarget:
    """Give every question the class distribution of another group's question in the same stratum.

    The control task of Hewitt & Liang (2019, arXiv 1909.03368), for distributions: same inputs, same set of targets, same
    spread of confidence, the link between the two cut. What a probe still explains of it, it reads from the stratum (how
    sure the model is, and which classes go with that), or owes to its capacity; selectivity is what it explains beyond.

    Args:
        target: [question, class].
        group: [question], questions that must not be torn apart (paraphrases, one entity).
        strata: [question], integers; a stratum too small or too uniform to find donors in other groups is joined with the
            next.
        seed: of the exchange.

    Raises:
        ValueError: lengths disagree, or one group holds more than half of all questions, so that no exchange exists.
    """
    if not len(target) == len(group) == len(strata):
        raise ValueError(f"{len(target)} targets, {len(group)} groups and {len(strata)} strata: lengths must agree")
    donor = exchange_between_groups(group, strata, seed=seed)
    return ClassTarget(classes=target.classes, distribution=target.distribution[donor], m=target.m)


def exchange_between_groups(group: Sequence[str], strata: np.ndarray, *, seed: int) -> np.ndarray:
    """A permutation [question] of the rows, within strata, that sends no row to its own group.

    Rows of a stratum are laid out group by group in random order and shifted round by the size of the largest group.
    Raises ValueError if one group holds more than half of all rows.
    """
    _, code = np.unique(np.asarray(group), return_inverse=True)
    rank = np.random.default_rng(seed).permutation(code.max() + 1)[code]
    pools: list[np.ndarray] = []
    pending = np.empty(0, dtype=int)
    for stratum in np.unique(strata):
        pending = np.concatenate([pending, np.flatnonzero(strata == stratum)])
        if _exchangeable(code[pending]):
            pools.append(pending)
            pending = np.empty(0, dtype=int)
    while len(pending) and pools:  # what is left at the end joins the strata below
        pending = np.concatenate([pools.pop(), pending])
        if _exchangeable(code[pending]):
            pools.append(pending)
            pending = np.empty(0, dtype=int)
    if len(pending):
        raise ValueError("one group holds more than half of all questions: no exchange between groups exists")
    donor = np.empty(len(code), dtype=int)
    for pool in pools:
        order = pool[np.argsort(rank[pool], kind="stable")]
        donor[order] = np.roll(order, np.bincount(code[pool]).max())
    return donor


def permuted_rows(group: Sequence[str], count: int, *, seed: int) -> np.ndarray:
    """`count` permutations of whole questions for the null: [permutation, question], row indices.

    Groups are shuffled as blocks and their rows laid end to end over the rows in group order, so that targets which
    resemble each other within a group still do; with one question a group it is a plain permutation. Exact under
    exchangeable groups of equal size, close otherwise.
    """
    rng = np.random.default_rng(seed)
    _, code = np.unique(np.asarray(group), return_inverse=True)
    home = np.argsort(code, kind="stable")
    permutations = np.empty((count, len(code)), dtype=int)
    for index in range(count):
        rank = rng.permutation(code.max() + 1)[code]
        permutations[index, home] = np.argsort(rank, kind="stable")
    return permutations


def _exchangeable(code: np.ndarray) -> bool:
    return 2 * int(np.bincount(code).max()) <= len(code)
