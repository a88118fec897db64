"""How short a code of the class distributions can be, given the activations: prequential code length.

Knows a rung's candidates, inputs and targets; nothing of layers or models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.special import xlogy

from probes.evaluation.rungwise import check_lengths, learn_best, log_marginal_of
from probes.rungs.rung import Rung, check_targets
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
