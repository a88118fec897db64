"""Which questions belong together, and intervals by resampling them together.

`groups` is the only place that turns labels into clusters, so that intervals, nulls and tests cannot disagree on them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from semcal.arrays import FloatArray, IntArray, as_numbers
from semcal.seeds import keyed_generator

BATCH_ELEMENTS = 2**22  # weights held at once, 32 MB


@dataclass(frozen=True)
class Groups:
    """A partition of the questions.

    Attributes:
        index: `[n]` the group of each question, in [0, count).
        count: number of groups.
    """

    index: IntArray
    count: int


@dataclass(frozen=True)
class Interval:
    """A statistic and its bootstrap interval.

    Attributes:
        estimate: the statistic on the data.
        low: lower end; NaN where a single group, or no defined replicate, leaves nothing to resample, and where a
            replicate is infinite, as the log loss of a sure and wrong answer is.
        high: upper end, NaN likewise.
        replicates: `[num_samples]` the statistic on the resamples.
    """

    estimate: float
    low: float
    high: float
    replicates: FloatArray


def groups(labels: ArrayLike | None, n: int) -> Groups:
    """The partition of n questions by label; None makes each question its own group.

    Raises:
        ValueError: the number of labels is not n, or a label is missing (None, NaN or the empty text), since questions
            without a label would otherwise silently form one large group.
    """
    if labels is None:
        return Groups(np.arange(n), n)
    array = np.asarray(labels)
    if array.shape != (n,):
        raise ValueError(f"group has shape {array.shape} but there are {n} questions")
    missing = [label is None or label == "" or label != label for label in array.tolist()]
    if any(missing):
        raise ValueError(f"group[{missing.index(True)}] is missing; give every question a label, or no labels at all")
    distinct, index = np.unique(array, return_inverse=True)
    return Groups(index.astype(np.int64), len(distinct))


def multiplicities(clusters: Groups, resamples: int, rng: np.random.Generator) -> FloatArray:
    """How often each resample of whole groups holds each question, `[resamples, n]`."""
    drawn = rng.integers(clusters.count, size=(resamples, clusters.count))
    slot = drawn + np.arange(resamples)[:, None] * clusters.count
    times = np.bincount(slot.ravel(), minlength=slot.size).reshape(resamples, clusters.count)
    return times[:, clusters.index].astype(np.float64)


def bootstrap(
    statistic: Callable[..., FloatArray],
    arrays: Sequence[ArrayLike],
    *,
    group: ArrayLike | None = None,
    num_samples: int = 1000,
    level: float = 0.95,
    seed: int,
    centred: bool = False,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Interval:
    """Cluster bootstrap: whole groups are drawn with replacement, as many as there are.

    A resample is a row of multiplicities, not of indices, so that unequal groups still give arrays of one shape and the
    statistic is computed on all resamples in one batched call.

    Args:
        statistic: called as `statistic(*arrays, weight=weight)` with `weight [R, n]`, returns `[R]`; every measure of
            this package will do, and so will a difference of two of them over arrays of two runs on the same questions.
        arrays: each `[n]`, one value per question.
        group: `[n]` labels of questions that depend on one another; None for independent questions.
        num_samples: number of resamples.
        level: coverage aimed at.
        seed: the same seed, labels and num_samples give the same resamples whatever the statistic.
        centred: False takes the percentile interval, the quantiles of the replicates. True takes
            estimate + quantiles - mean of the replicates, for statistics such as smECE whose replicates lie above the
            estimate: resampling adds its own noise to the noise that already makes smECE positive, so the percentile
            interval may not even contain the estimate, and the basic (reverse-percentile) interval would subtract that
            shift twice and mirror the skew. Centring keeps spread and skew and drops the second shift; the first, the
            floor of finite n and M, stays in the estimate and is what `simulated_null` is for.
        bounds: range of the statistic, to which the interval is clipped.

    Raises:
        ValueError: arrays or labels of different lengths, no questions, no resamples, a level outside (0, 1).
    """
    values = [as_numbers(f"arrays[{i}]", array) for i, array in enumerate(arrays)]
    shapes = [array.shape for array in values]
    if not shapes or len(shapes[0]) != 1 or len(set(shapes)) != 1 or shapes[0][0] == 0:
        raise ValueError(f"bootstrap needs arrays of one length n > 0, got shapes {shapes}")
    if num_samples < 1 or not 0 < level < 1:
        raise ValueError(f"num_samples must be positive and level in (0, 1), got {num_samples} and {level}")
    n = shapes[0][0]
    clusters = groups(group, n)
    estimate = float(np.asarray(statistic(*values, weight=np.ones((1, n)))).reshape(()))

    rng = keyed_generator(seed, "bootstrap")
    step = max(1, BATCH_ELEMENTS // n)
    replicates = np.empty(num_samples)
    for start in range(0, num_samples, step):
        rows = min(step, num_samples - start)
        replicates[start : start + rows] = statistic(*values, weight=multiplicities(clusters, rows, rng))

    defined = replicates[~np.isnan(replicates)]  # AUROC is undefined where a resample holds only one outcome
    if clusters.count < 2 or defined.size == 0 or np.isinf(defined).any():
        return Interval(estimate, float("nan"), float("nan"), replicates)
    ends = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    if centred:
        ends = estimate + ends - defined.mean()
    low, high = np.clip(ends, *bounds)
    return Interval(estimate, float(low), float(high), replicates)
