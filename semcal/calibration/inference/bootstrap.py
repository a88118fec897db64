"""Which questions belong together, intervals from resampling them together, and folds that hold them out together.

Only `groups` turns labels into clusters, so intervals, nulls, tests and folds cannot disagree about them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from semcal.arrays import FloatArray, IntArray, as_numbers
from semcal.calibration.resampling import Resampling
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
        low, high: its ends; NaN where a single group, or no defined replicate, leaves nothing to resample, and where a
            replicate is infinite, as is the log loss of a certain but wrong answer.
        replicates: `[bootstrap]` the statistic on the resamples.
    """

    estimate: float
    low: float
    high: float
    replicates: FloatArray


def groups(labels: ArrayLike | None, n: int) -> Groups:
    """The partition of n questions by label; None makes each question its own group.

    Raises:
        ValueError: the number of labels is not n, or a label is missing (None, NaN or ""): unlabelled questions would
            otherwise silently form one large group.
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


def multiplicities(clusters: Groups, bootstrap: int, rng: np.random.Generator) -> FloatArray:
    """How often each resample of whole groups holds each question, `[bootstrap, n]`."""
    drawn = rng.integers(clusters.count, size=(bootstrap, clusters.count))
    slot = drawn + np.arange(bootstrap)[:, None] * clusters.count
    times = np.bincount(slot.ravel(), minlength=slot.size).reshape(bootstrap, clusters.count)
    return times[:, clusters.index].astype(np.float64)


def bootstrap_interval(
    statistic: Callable[..., FloatArray],
    arrays: Sequence[ArrayLike],
    *,
    resampling: Resampling,
    group: ArrayLike | None = None,
    centred: bool = False,
    bounds: tuple[float, float] = (-np.inf, np.inf),
) -> Interval:
    """Cluster bootstrap: whole groups are drawn with replacement, as many as there are.

    A resample is a row of multiplicities rather than indices: unequal groups still give arrays of one shape, and the
    statistic is computed on all resamples in one batched call.

    Args:
        statistic: called as `statistic(*arrays, weight=weight)` with `weight [R, n]`, returns `[R]`; every measure of
            this package qualifies, and so does a difference of two of them over two runs on the same questions.
        arrays: each `[n]`, one value per question.
        resampling: its seed, the labels and `bootstrap` determine the resamples, whatever the statistic.
        group: `[n]` labels of questions that depend on one another; None for independent questions.
        centred: False takes the percentile interval, the quantiles of the replicates. True takes
            estimate + quantiles - mean of the replicates, for statistics such as smECE whose replicates lie above the
            estimate: resampling adds its own noise to the noise that already makes smECE positive. Centring keeps
            spread and skew and drops this second shift. The first, the floor of finite n and M, stays in the estimate;
            that is what `null_of` is for.
        bounds: range of the statistic, to which the interval is clipped.

    Raises:
        ValueError: arrays or labels of different lengths, or no questions.
    """
    values = [as_numbers(f"arrays[{i}]", array) for i, array in enumerate(arrays)]
    shapes = [array.shape for array in values]
    if not shapes or len(shapes[0]) != 1 or len(set(shapes)) != 1 or shapes[0][0] == 0:
        raise ValueError(f"the bootstrap needs arrays of one length n > 0, got shapes {shapes}")
    n = shapes[0][0]
    clusters = groups(group, n)
    estimate = float(np.asarray(statistic(*values, weight=np.ones((1, n)))).reshape(()))

    rng = keyed_generator(resampling.seed, "bootstrap")
    step = max(1, BATCH_ELEMENTS // n)
    replicates = np.empty(resampling.bootstrap)
    for start in range(0, resampling.bootstrap, step):
        rows = min(step, resampling.bootstrap - start)
        replicates[start : start + rows] = statistic(*values, weight=multiplicities(clusters, rows, rng))

    defined = replicates[~np.isnan(replicates)]  # AUROC is undefined where a resample holds only one outcome
    if clusters.count < 2 or defined.size == 0 or np.isinf(defined).any():
        return Interval(estimate, float("nan"), float("nan"), replicates)
    ends = np.quantile(defined, resampling.ends)
    if centred:
        ends = estimate + ends - defined.mean()
    low, high = np.clip(ends, *bounds)
    return Interval(estimate, float(low), float(high), replicates)


def folds_by_group(group: ArrayLike | None, n: int, folds: int, *, seed: int) -> IntArray:
    """The fold of each of n questions, `[n]` in [0, folds); a group is in one fold, and no fold is empty.

    Folds hold equal numbers of groups up to one, not equal numbers of questions.

    Args:
        group: `[n]` labels of questions that depend on one another; None for independent questions.
        n: number of questions.
        folds: at least 3: while one is held out, choosing a penalty on the others takes two.
        seed: deals the groups.

    Raises:
        ValueError: fewer than 3 folds, fewer groups than folds, or labels of another length.
    """
    clusters = groups(group, n)
    if folds < 3:
        raise ValueError(f"folds is {folds}; expected at least 3: one is held out, two choose a penalty")
    if clusters.count < folds:
        raise ValueError(f"{clusters.count} groups of questions cannot fill {folds} folds; use fewer folds")
    dealt = keyed_generator(seed, "folds").permutation(clusters.count) % folds
    return dealt[clusters.index]
