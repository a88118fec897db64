"""What a probe's score is read against: a control task, a permutation null, an interval.

Knows class distributions, groups of questions and losses; nothing of activations or solvers.
"""

from collections.abc import Sequence

import numpy as np

from probes.targets.closed import ClassTarget
from semcal.calibration.resampling import Resampling


def confidence_strata(target: ClassTarget, *, bins: int = 5) -> np.ndarray:
    """Quantile bin of each question's B-confidence: [question], integers. Ties may leave fewer bins than asked for."""
    confidence = target.distribution.max(1)
    edges = np.unique(np.quantile(confidence, np.linspace(0, 1, bins + 1)[1:-1]))
    return np.searchsorted(edges, confidence, side="right")


def control_target(target: ClassTarget, group: Sequence[str], strata: np.ndarray, seed: int) -> ClassTarget:
    """Give every question the class distribution of another group's question in the same stratum.

    The control task of Hewitt & Liang (2019, arXiv 1909.03368), for distributions: same inputs, same set of targets,
    same spread of confidence, the link between the two cut. Selectivity is what a probe explains beyond it.

    Args:
        target: [question, class].
        group: [question], questions that must not be torn apart (paraphrases, one entity).
        strata: [question], integers; a stratum in which one group holds more than half is joined with the next.
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
    resemble each other within a group still do; with one question per group it is a plain permutation. Exact under
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


def exchange_p_value(Y: np.ndarray, log_q: np.ndarray, group: Sequence[str], permutations: int, *, seed: int) -> float:
    """Do predictions fit their own questions better than those of other groups? Nothing is fitted again.

    (1 + #{permutations under which Σ Y·log q is no smaller}) / (1 + permutations), the targets permuted by whole groups
    (`permuted_rows`). Exact on ONE held-out fold, whose targets the predictions do not depend on. Folds must not be
    pooled: each probe learnt from the targets of the other folds, so a null with fixed predictions is too narrow.

    Args:
        Y: [question, class], of one held-out fold.
        log_q: [question, class], log-probabilities predicted for it.
        group: [question].
        permutations: 0 gives NaN.
    """
    if not permutations:
        return float("nan")
    fits = [(Y[rows] * log_q).sum() for rows in permuted_rows(group, permutations, seed=seed)]
    own = (Y * log_q).sum()
    # A tie up to rounding counts against the probe: the same prediction for all fits every question equally well.
    return float(1 + np.sum(np.array(fits) >= own - 1e-9 * len(Y))) / (1 + permutations)


def maximum_null(statistic: np.ndarray, observed: np.ndarray) -> tuple[float, np.ndarray]:
    """The null of the largest statistic over layers (single-step max-T: Westfall & Young 1993).

    Args:
        statistic: [layer, permutation].
        observed: [layer].

    Returns:
        The 95 % quantile of the maxima over layers, and p-values [layer], valid for all layers jointly:
        (1 + #{maximum ≥ observed}) / (1 + permutations). NaN without permutations or where the statistic is NaN.
    """
    maxima = statistic.max(0)
    if not maxima.size or np.isnan(maxima).any():
        return float("nan"), np.full(len(observed), np.nan)
    # What the solver leaves open counts against the layer: every permutation of a constant explains nothing.
    exceeding = (maxima[None] >= observed[:, None] - 1e-4).sum(1)
    return float(np.quantile(maxima, 0.95)), (1 + exceeding) / (1 + maxima.size)


def share_interval(
    probe: np.ndarray, baseline: np.ndarray, group: Sequence[str], resampling: Resampling
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile bootstrap of 1 − Σ probe / Σ baseline, groups drawn with replacement: (low [layer], high [layer]).

    NaN where the baseline leaves nothing to explain.

    Args:
        probe: [layer, question], losses of the fitted probes.
        baseline: [question], losses of the baseline.
        group: [question], the clusters.
    """
    if not baseline.sum() > 0:
        return np.full(len(probe), np.nan), np.full(len(probe), np.nan)
    _, code = np.unique(np.asarray(group), return_inverse=True)
    groups = int(code.max()) + 1
    rng = np.random.default_rng(resampling.seed)
    drawn = rng.multinomial(groups, np.full(groups, 1 / groups), size=resampling.bootstrap)
    sums = np.stack([np.bincount(code, weights=row, minlength=groups) for row in (*probe, baseline)])
    resampled = drawn @ sums.T  # [resample, layer + 1], the baseline last
    with np.errstate(divide="ignore", invalid="ignore"):  # a resample may miss every group that has a loss
        explained = 1 - resampled[:, :-1] / resampled[:, -1:]
    low, high = np.nanquantile(explained, [(1 - resampling.level) / 2, (1 + resampling.level) / 2], axis=0)
    return low, high


def _exchangeable(code: np.ndarray) -> bool:
    return 2 * int(np.bincount(code).max()) <= len(code)
