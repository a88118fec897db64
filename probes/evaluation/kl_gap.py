"""The KL gap: what a predictor that sees the model before it answers still misses of its class distribution, in nats.

    E_x[CE(π_x, q(·|x)) − H(π_x)]

Knows class distributions and predicted log-probabilities; nothing of activations, rungs or layers. Predictors are
held-out: q has not seen the samples of the question, so that −Σ share·log q is the cross-entropy without bias.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from scipy.stats import norm, t

from probes.targets.entropy import Entropies, entropies, surprises
from probes.targets.open import OpenTarget
from semcal.arrays import FloatArray, IntArray
from semcal.calibration.inference.bootstrap import groups
from semcal.calibration.resampling import Resampling
from semcal.seeds import keyed_generator

_HALVINGS = 8  # of the samples, for the top class
_FEWEST = 4  # samples that can be halved: of a single one, half an answer, no entropy is known
_FLOOR_DRAWS = 100
_TINY = np.finfo(float).tiny  # for 1 − q that is 0 by rounding
_ROUNDING = 1e-3  # by which predicted probabilities may sum to more than 1, in single precision


@dataclass(frozen=True)
class KLGap:
    """The KL gap of one predictor, nats.

    Attributes:
        gap: cross-entropy − estimated entropy. Below 0 only by noise.
        low, high: its bootstrap interval, whole groups drawn.
        at_least, at_most: with the upper and the lower bound of the entropy: the gap lies between them in expectation;
            `at_least` is NaN where there is no upper bound, and below 0 says no more than 0.
        cross_entropy, entropy: means over questions.
        top: what of it concerns the top class: KL between the Bernoulli distributions "the top class, or another".
            NaN below four samples.
        top_low, top_high: its interval.
        rest: gap − top, by the chain rule what is missed of how the other classes share their mass.
        rest_low, rest_high: its interval.
        per_question, top_per_question: [question]; noisy, and unbiased as far as the entropies are.
        floor, floor_q95: mean and 95 % quantile of what a perfect predictor of so many questions would be measured to
            have, by simulation.
    """

    gap: float
    low: float
    high: float
    at_least: float
    at_most: float
    cross_entropy: float
    entropy: float
    top: float
    top_low: float
    top_high: float
    rest: float
    rest_low: float
    rest_high: float
    per_question: FloatArray
    top_per_question: FloatArray
    floor: float
    floor_q95: float


def kl_gap(
    target: OpenTarget, log_q: FloatArray, found: Entropies, group: Sequence[str], resampling: Resampling
) -> KLGap:
    """The KL gap of one predictor from log-probabilities [entry]; see `kl_gaps`."""
    return kl_gaps(target, np.asarray(log_q)[None], found, group, resampling)[0]


def kl_gaps(
    target: OpenTarget, log_q: FloatArray, found: Entropies, group: Sequence[str], resampling: Resampling
) -> list[KLGap]:
    """The KL gaps of several predictors (layers) of the same questions.

    The top class is found in one half of a question's samples and its share in the other, both ways and by several
    halvings: the largest of M frequencies overstates its probability, and would be missed even by the truth. Exact
    masses have a top class without that.

    Intervals are percentiles of the mean under resampled groups, at the level that makes up for few groups (Hesterberg
    2015, The American Statistician 69:371, "expanded percentile"), given the fitted predictors.

    Args:
        target: of n questions.
        log_q: [row, entry] log-probabilities that each predictor gives to the classes of each question; they sum to at
            most 1 over all classes.
        found: [question] entropies of the same target.
        group: [question] questions that depend on one another.
        resampling: of the intervals, at its level; its seed is also that of halvings and of the floor.

    Raises:
        ValueError: shapes that disagree, fewer than two groups, masses that are no shares of M samples, or
            log-probabilities that are not finite or sum to more than 1, naming row and question.
    """
    log_q = np.asarray(log_q, dtype=np.float64)
    _check(target, log_q, found, group)
    clusters = groups(np.asarray(group), len(target))
    if clusters.count < 2:
        raise ValueError("one group of questions leaves nothing to resample; give at least 2 groups")
    cross_entropy = 0.0 - _sums(target, target.mass * log_q)  # [row, question]; 0 and not −0 where q is 1
    gap = cross_entropy - found.point
    top = _top_gaps(target, log_q, resampling.seed)
    low, high = mean_intervals(np.concatenate([gap, top, gap - top]), clusters.index, resampling)
    floor, floor_q95 = perfect_gap(target, resampling.seed)
    rows = len(gap)
    return [
        KLGap(
            gap=float(gap[row].mean()),
            low=float(low[row]),
            high=float(high[row]),
            at_least=float((cross_entropy[row] - found.by_mass).mean()),
            at_most=float((cross_entropy[row] - found.plug_in).mean()),
            cross_entropy=float(cross_entropy[row].mean()),
            entropy=float(found.point.mean()),
            top=float(top[row].mean()),
            top_low=float(low[rows + row]),
            top_high=float(high[rows + row]),
            rest=float((gap[row] - top[row]).mean()),
            rest_low=float(low[2 * rows + row]),
            rest_high=float(high[2 * rows + row]),
            per_question=gap[row],
            top_per_question=top[row],
            floor=floor,
            floor_q95=floor_q95,
        )
        for row in range(rows)
    ]


def confidence_gaps(
    target: OpenTarget, log_sure: FloatArray, group: Sequence[str], resampling: Resampling
) -> list[KLGap]:
    """The KL gaps of several predictors of B-confidence: KL between the Bernoulli distributions "the top class, or
    another", nats. The top class is found in one half of the samples and its share in the other, as in `kl_gaps`.

    Args:
        target: the class distributions of n questions.
        log_sure: [row, question] log-probability that an answer is of the top class.
        group, resampling: as in `kl_gaps`.

    Raises:
        ValueError: shapes that disagree, or log-probabilities that are not finite or above 0.
    """
    if log_sure.ndim != 2 or not log_sure.shape[1] == len(group) == len(target):
        raise ValueError(f"log_sure is {log_sure.shape}, for {len(target)} questions and {len(group)} group labels")
    if not ((log_sure <= 0) & np.isfinite(log_sure)).all():
        raise ValueError("a predicted B-confidence is not a probability above 0")
    nan = float("nan")
    if target.m is not None and target.m < _FEWEST:
        gaps, entropy = np.full(log_sure.shape, nan), nan
    else:
        tops = _tops(target, resampling.seed)
        share, of_tops = tops.share.mean(0), tops.entropy.mean(0)
        gaps = -share * log_sure - (1 - share) * np.log(np.maximum(-np.expm1(log_sure), _TINY)) - of_tops
        entropy = float(of_tops.mean())
    low, high = mean_intervals(gaps, groups(np.asarray(group), len(target)).index, resampling)
    return [
        KLGap(
            *(float(own.mean()), float(low[row]), float(high[row]), nan, nan, float(own.mean()) + entropy, entropy),
            *(float(own.mean()), float(low[row]), float(high[row]), 0.0, 0.0, 0.0, own, own, nan, nan),
        )
        for row, own in enumerate(gaps)
    ]


def perfect_gap(target: OpenTarget, seed: int) -> tuple[float, float]:
    """Mean and 95 % quantile of the gap that would be measured of a perfect predictor: M samples are drawn from each
    distribution of the target, and predicted by that distribution. Entropies are those of counts alone. (0, 0) where
    masses are exact.
    """
    if target.m is None:
        return 0.0, 0.0
    m, rng = target.m, keyed_generator(seed, "floor")
    place = np.arange(len(target.mass)) - target.starts[target.question]
    samples = np.repeat(place, _counts(target)).reshape(len(target), m)
    width = int(place.max()) + 1
    log_pi = np.zeros((len(target), width))
    log_pi[target.question, place] = np.log(target.mass)
    first = np.arange(len(target))[:, None] * width
    measured = np.empty(_FLOOR_DRAWS)
    for draw in range(_FLOOR_DRAWS):
        again = np.take_along_axis(samples, rng.integers(m, size=samples.shape), axis=1)
        counts = np.bincount((again + first).ravel(), minlength=log_pi.size).reshape(log_pi.shape)
        measured[draw] = -(counts / m * (log_pi + surprises(counts, m))).sum(1).mean()
    return float(measured.mean()), float(np.quantile(measured, 0.95))


def _check(target: OpenTarget, log_q: FloatArray, found: Entropies, group: Sequence[str]) -> None:
    if log_q.ndim != 2 or log_q.shape[1] != len(target.mass) or not len(found.point) == len(group) == len(target):
        raise ValueError(
            f"log_q is {log_q.shape}, with {len(found.point)} entropies and {len(group)} group labels, for "
            f"{len(target.mass)} entries of {len(target)} questions; expected [row, entry] and one of each per question"
        )
    if target.m is not None:
        whole = _sums(target, _counts(target)) == target.m
        if not whole.all():
            raise ValueError(
                f"the masses of question {int(np.argmin(whole))} are no shares of M = {target.m} samples; expected "
                "counts / M, or m=None for exact masses"
            )
    finite = np.isfinite(log_q)
    if not finite.all():
        row, entry = np.argwhere(~finite)[0]
        raise ValueError(
            f"log_q[{row}] is {log_q[row, entry]} for a class of question {target.question[entry]}; expected finite "
            "log-probabilities (a class that can be sampled has a probability above 0)"
        )
    total = _sums(target, np.exp(np.minimum(log_q, 1.0)))
    if (total > 1 + _ROUNDING).any():
        row, question = np.argwhere(total > 1 + _ROUNDING)[0]
        raise ValueError(
            f"log_q[{row}] gives the classes of question {question} a probability of {total[row, question]:.4g} "
            "together; expected at most 1"
        )


def _sums(target: OpenTarget, values: FloatArray | IntArray) -> FloatArray:
    """Sums [..., question] over the entries of each question."""
    return np.add.reduceat(values, target.starts[:-1], axis=-1)


def _counts(target: OpenTarget) -> IntArray:
    """[entry] how often each class was drawn."""
    assert target.m is not None
    return np.rint(target.mass * target.m).astype(np.int64)


def mean_intervals(values: FloatArray, group: IntArray, resampling: Resampling) -> tuple[FloatArray, FloatArray]:
    """Ends [row] of the intervals of the means of `values` [row, question], whole groups drawn; see `kl_gaps`.

    Args:
        group: [question] numbers of the groups, from 0.
    """
    count = int(group.max()) + 1
    # The bootstrap's variance is too small by (G − 1)/G, and its tails are those of the normal.
    tail = norm.cdf(t.ppf((1 - resampling.level) / 2, count - 1) * np.sqrt(count / (count - 1)))
    rng = keyed_generator(resampling.seed, "bootstrap")
    drawn = rng.multinomial(count, np.full(count, 1 / count), size=resampling.bootstrap)  # [resample, group]
    sums = np.stack([np.bincount(group, row, count) for row in (*values, np.ones(len(group)))], axis=1)
    resampled = drawn @ sums
    low, high = np.quantile(resampled[:, :-1] / resampled[:, -1:], [tail, 1 - tail], axis=0)
    return low, high


def at_best_layer(gaps: FloatArray, group: np.ndarray, seed: int) -> FloatArray:
    """[question] gaps at the layer that is best on the other half of the groups: no layer is chosen by the questions it
    is measured on.

    Args:
        gaps: [layer, question].
        group: [question]; whole groups are halved.
        seed: of the halves.
    """
    labels = np.unique(group)
    if len(gaps) == 1 or len(labels) < 2:
        return gaps[0]
    chosen = keyed_generator(seed, "verdict", "layer").permutation(labels)[: len(labels) // 2]
    half = np.isin(group, chosen)
    best = [int(gaps[:, other].mean(axis=1).argmin()) for other in (~half, half)]
    return np.where(half, gaps[best[0]], gaps[best[1]])


# ---- the top class ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Tops:
    """Top classes of every question, and what is known of their shares without having chosen them by it."""

    entry: IntArray  # [draw, question]
    share: FloatArray  # [draw, question]
    entropy: FloatArray  # [draw, question] of "this class, or another", nats


def _top_gaps(target: OpenTarget, log_q: FloatArray, seed: int) -> FloatArray:
    """KL between the Bernoulli distributions of the top class: [row, question]."""
    if target.m is not None and target.m < _FEWEST:
        return np.full((len(log_q), len(target)), np.nan)
    tops, q = _tops(target, seed), np.exp(log_q)
    own = _sums(target, q)
    gaps = np.zeros((len(log_q), len(target)))
    for entry, share, entropy in zip(tops.entry, tops.share, tops.entropy, strict=True):
        others = np.maximum(1 - q[:, entry], own - q[:, entry])  # 1 − q is 0 by rounding where q is nearly 1
        log_others = np.log(np.where(share < 1, np.maximum(others, _TINY), 1.0))
        gaps -= share * log_q[:, entry] + (1 - share) * log_others + entropy
    return gaps / len(tops.entry)


def _tops(target: OpenTarget, seed: int) -> _Tops:
    return _exact_tops(target) if target.m is None else _sampled_tops(target, target.m, seed)


def _exact_tops(target: OpenTarget) -> _Tops:
    entry = target.starts[None, :-1]  # heaviest first
    share = np.minimum(target.mass[entry], 1.0)
    both = np.stack([share[0], 1 - share[0]], axis=1)
    return _Tops(entry, share, entropies(both, None).plug_in[None])


def _sampled_tops(target: OpenTarget, m: int, seed: int) -> _Tops:
    """By halves: the class most frequent in one half of a question's samples (ties at random), its share in the
    other."""
    rng, counts = keyed_generator(seed, "top class"), _counts(target)
    samples = np.repeat(np.arange(len(counts)), counts).reshape(len(target), m)
    sizes = m // 2, m - m // 2
    entropy_of = [entropies(np.stack([np.arange(s + 1), s - np.arange(s + 1)], axis=1) / s, s).point for s in sizes]
    entry, share, entropy = [], [], []
    for _ in range(_HALVINGS):
        one = np.bincount(rng.permuted(samples, axis=1)[:, : sizes[0]].ravel(), minlength=len(counts))
        for chosen_by, half in ((one, 1), (counts - one, 0)):
            rank = chosen_by + rng.random(len(counts))
            top = np.flatnonzero(rank == np.maximum.reduceat(rank, target.starts[:-1])[target.question])
            seen = (counts - chosen_by)[top]
            entry.append(top)
            share.append(seen / sizes[half])
            entropy.append(entropy_of[half][seen])
    return _Tops(np.stack(entry), np.stack(share), np.stack(entropy))
