"""What a probe has learnt by how many questions: learning curves, and prequential code length.

Knows a rung's candidates, inputs and targets; nothing of layers or models.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import xlogy

from probes.evaluation.controls import share_interval
from probes.evaluation.folds import group_folds
from probes.evaluation.result import Seeds
from probes.evaluation.rungwise import check_lengths, kl, learn_best, log_marginal_of
from probes.rungs.rung import Rung, check_targets
from probes.targets.closed import ClassTarget
from semcal.calibration.resampling import Resampling
from semcal.seeds import keyed_generator


@dataclass(frozen=True)
class OnlineCode:
    """Code lengths in nats per question, for one answer of the model drawn from its class distribution.

    Attributes:
        probe: coded block after block, by a probe of what came before.
        marginal: likewise, by the mean of what came before: what is gained on it is owed to the activations.
        uniform: log K.
        entropy: mean entropy of the targets, below which no code of them can get.
        ends: [block] questions coded by the end of each block.
        blocks: [block] nats per question of the probe's code in each block; the first block has the uniform code.
    """

    probe: float
    marginal: float
    uniform: float
    entropy: float
    ends: tuple[int, ...]
    blocks: tuple[float, ...]

    @property
    def compression(self) -> float:
        """Uniform code length / the probe's, as Voita & Titov report it; 1 for a single class."""
        return self.uniform / self.probe if self.probe > 0 else 1.0

    @property
    def explained(self) -> float:
        """1 − (probe − entropy) / (marginal − entropy): as the share of KL explained, but paid for in data as well."""
        room = self.marginal - self.entropy
        return 1 - (self.probe - self.entropy) / room if room > 0 else float("nan")


def online_code(
    path: Sequence[Rung], X: Any, Y: np.ndarray, *, group: Sequence[str], first: int = 16, seed: int
) -> OnlineCode:
    """Minimum description length by online coding, with soft labels (Voita & Titov 2020, arXiv 2003.12298, 2.3).

    Groups of questions are coded in random order. The first block has the uniform code; each later block doubles what
    has been coded, with a probe fitted to all blocks before it, whose choices are made on groups among these. Soft
    labels: the length is the cross-entropy of π_x and the code, the expected length of one sampled class. A probe that
    needs many questions pays for it, whatever it reaches in the end; so does one that needs many parameters.

    Args:
        path: candidates of a rung, the most constrained first (`probes.rungs.registry.candidates`).
        X: what the rung reads.
        Y: [question, class], rows sum to 1.
        group: [question]; a group is never split between blocks.
        first: questions in the first block, at least; whole groups are taken until it is reached.
        seed: of the order of groups, and of inner splits.

    Raises:
        ValueError: lengths disagree, a row of Y is not a distribution, no more than `first` questions, or all in one
            block.
    """
    Y = np.asarray(Y, dtype=np.float64)
    check_lengths(X, Y, group)
    check_targets(Y)
    blocks = doubling_blocks(group, first, seed=seed)
    if len(blocks) < 2:
        raise ValueError(
            f"{len(Y)} questions in {len(set(group))} groups make a single block, which leaves nothing to learn from; "
            f"give more questions or a `first` below {first}"
        )
    rows = np.concatenate(blocks)
    uniform = float(np.log(Y.shape[1]))
    probe, marginal = [len(blocks[0]) * uniform], [len(blocks[0]) * uniform]
    for at in range(1, len(blocks)):
        coded, next_ = np.concatenate(blocks[:at]), blocks[at]
        log_q = learn_best(path, X, Y, group, coded, next_, seed=seed)
        probe.append(-float((Y[next_] * log_q).sum()))
        marginal.append(-float((Y[next_] * log_marginal_of(Y[coded])).sum()))
    n = len(rows)
    return OnlineCode(
        probe=sum(probe) / n,
        marginal=sum(marginal) / n,
        uniform=uniform,
        entropy=-float(xlogy(Y, Y).sum()) / n,
        ends=tuple(np.cumsum([len(block) for block in blocks]).tolist()),
        blocks=tuple(nats / len(block) for nats, block in zip(probe, blocks, strict=True)),
    )


def doubling_blocks(group: Sequence[str], first: int, *, seed: int) -> list[np.ndarray]:
    """Rows [block][row]: groups in random order, cut where `first`, 2·first, 4·first, ... questions are reached.

    Raises:
        ValueError: `first` below 1.
    """
    if first < 1:
        raise ValueError(f"first is {first}; expected at least 1 question in the first block")
    ordered = shuffled_groups(group, seed=seed)
    blocks: list[list[int]] = [[]]
    coded, limit = 0, first
    for rows in ordered:
        if coded >= limit:
            blocks.append([])
            limit = 2 * coded
        blocks[-1] += rows
        coded += len(rows)
    return [np.array(block) for block in blocks]


def shuffled_groups(group: Sequence[str], *, seed: int) -> list[list[int]]:
    """Rows of each group, groups in seeded random order."""
    members: dict[str, list[int]] = {}
    for row, name in enumerate(group):
        members.setdefault(str(name), []).append(row)
    names = sorted(members)
    order = keyed_generator(seed, "order of groups").permutation(len(names))
    return [members[names[i]] for i in order]


def learning_curve(
    path: Sequence[Rung],
    X: Any,
    target: ClassTarget,
    *,
    sizes: Sequence[int],
    group: Sequence[str],
    folds: int = 5,
    resampling: Resampling | None = None,
) -> pd.DataFrame:
    """Share of KL explained against training questions: one row per size, columns questions, explained, low, high.

    In each outer fold (those of `evaluate_all` with the same seed) whole groups of the training part are taken in one
    random order until a size is reached, so that smaller subsets lie within larger ones. Choices are made on groups
    within the subset. The denominator is the same for all sizes, the KL that the marginal of the *whole* training part
    leaves: a probe of few questions may therefore fall below 0, and a rising curve says that more questions would help.

    Args:
        path: candidates of a rung, the most constrained first.
        X: what the rung reads.
        target: [question, class].
        sizes: training questions; one beyond what a fold has means all of it.
        group: [question].

    Returns:
        `questions` is the mean number learnt from over folds, at least the size, for groups are kept whole.

    Raises:
        ValueError: lengths disagree, no size or one below 1, fewer groups than folds, or a single class.
    """
    resampling = resampling or Resampling()
    check_lengths(X, target, group)
    if not len(sizes) or min(sizes) < 1:
        raise ValueError(f"sizes are {list(sizes)}; expected at least one number of training questions, all at least 1")
    seed, Y = resampling.seed, target.distribution
    seeds = Seeds.of(seed)
    log_q, log_marginal = np.empty((len(sizes), *Y.shape)), np.empty(Y.shape)
    learnt = np.zeros(len(sizes))
    splits = group_folds(group, folds, seed=seeds.folds)
    for train, test in splits:
        ordered = [train[rows] for rows in shuffled_groups(np.asarray(group)[train].tolist(), seed=seed)]
        reached = np.cumsum([len(rows) for rows in ordered])
        log_marginal[test] = log_marginal_of(Y[train])
        for at, size in enumerate(sizes):
            taken = np.concatenate(ordered[: int(np.searchsorted(reached, size)) + 1])
            log_q[at, test] = learn_best(path, X, Y, group, taken, test, seed=seed)
            learnt[at] += len(taken) / len(splits)
    losses, baseline = kl(Y, log_q), kl(Y, log_marginal)
    if not baseline.sum() > 0:
        raise ValueError("all questions have one and the same class distribution, so there is nothing to explain")
    low, high = share_interval(losses, baseline, group, replace(resampling, seed=seeds.bootstrap))
    explained = 1 - losses.sum(1) / baseline.sum()
    return pd.DataFrame({"questions": learnt, "explained": explained, "low": low, "high": high})
