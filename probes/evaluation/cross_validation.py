"""Linear probes of many layers, cross-validated together: penalties, control task and permutation null in batches.

Knows blocks of features, targets and folds; nothing of what the layers are or how the scores are reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from probes.evaluation.folds import Fold
from probes.solver.heads import Head
from probes.solver.rotation import Rotation, rotate

# nats still to be gained when a solver stops. At 1e-5 the share explained is within 1e-3 of its value at 1e-8.
TOLERANCE = 1e-5
_ROUGH_TOLERANCE = 1e-4  # to compare penalties, and for the null
_BYTES = 2**22  # working set of a batch of permutations, or the rows' own size if that is more


class Features(Protocol):
    """Some layers of all questions, from which a fold takes its rows."""

    @property
    def standardise(self) -> bool: ...

    def __len__(self) -> int:
        """Layers."""
        ...

    def split(self, train: np.ndarray, test: np.ndarray) -> tuple[Tensor, Tensor]:
        """([L, n_train, d], [L, n_test, d]); what is learnt for it, from the training rows."""
        ...


class Source(Protocol):
    """What probes read, a part at a time: `probes.activations.layers.Layers`, `probes.evaluation.texts.Texts`."""

    @property
    def names(self) -> tuple[str, ...]: ...

    def parts(self, n: int) -> list[slice]: ...

    def block(self, part: slice, n: int, device: str) -> Features: ...


@dataclass(frozen=True)
class Scores:
    """Held-out losses: nats, or squared errors."""

    baseline: np.ndarray
    """[target, question], of the training fold's constant."""

    probe: np.ndarray
    """[layer, target, question]."""

    penalty: np.ndarray
    """[layer, fold], for the first target."""

    statistic: np.ndarray
    """[layer, 1 + permutation], share explained on the folds of the null, the true targets first."""


def cross_validate(
    head: Head,
    source: Source,
    targets: np.ndarray,
    *,
    folds: Sequence[Fold],
    penalties: Sequence[float],
    rows: np.ndarray,
    null_folds: int,
    device: str,
) -> Scores:
    """All folds and layers of some targets; the null is of the first target. One part of the layers is held at a time.

    Args:
        targets: [target, question, K].
        penalties: grid, > 0.
        rows: [permutation, question], row indices of permuted targets.
        null_folds: folds that the null is computed on.

    Raises:
        ValueError: what `source` raises.
    """
    n, depth = targets.shape[1], len(source.names)
    Y = torch.as_tensor(targets, dtype=torch.float32, device=device)
    rows = np.concatenate([np.arange(n)[None], rows])
    found = Scores(
        baseline=np.empty(targets.shape[:2]),
        probe=np.empty((depth, *targets.shape[:2])),
        penalty=np.empty((depth, len(folds))),
        statistic=np.empty((depth, len(rows))),
    )
    for part in source.parts(n):  # a block is named nowhere here, so that it is gone before the next is read
        _explain(head, source.block(part, n, device), part, Y, folds, penalties, rows, null_folds, found)
    return found


def _explain(
    head: Head,
    block: Features,
    part: slice,
    Y: Tensor,
    folds: Sequence[Fold],
    penalties: Sequence[float],
    rows: np.ndarray,
    null_folds: int,
    found: Scores,
) -> None:
    """Fill in the scores of a part of the layers."""
    pairs = torch.cartesian_prod(torch.arange(len(block)), torch.arange(len(Y))).to(Y.device)
    layer, target = pairs[:, 0], pairs[:, 1]
    null = np.zeros((2, len(block), len(rows)))
    for index, fold in enumerate(folds):
        chosen = _choose(head, _Split.of(block, fold.fit, fold.validation), fold, Y, layer, target, penalties)
        split = _Split.of(block, fold.train, fold.test)
        train, test = Y[:, fold.train], Y[:, fold.test]
        theta = split.probe(head, layer, train[target], chosen, None, TOLERANCE)
        losses = split.losses(head, layer, theta, test[target])
        found.probe[part, :, fold.test] = rearrange(losses.cpu().numpy(), "(l t) q -> l t q", t=len(Y))
        found.baseline[:, fold.test] = head.loss(head.constant(train).double(), test.double()).cpu().numpy()
        own = chosen[target == 0]
        found.penalty[part, index] = own.cpu().numpy()
        if index < null_folds and len(rows) > 1:
            null += _permuted_losses(head, split, Y[0], fold, rows, own)
    with np.errstate(divide="ignore", invalid="ignore"):
        found.statistic[part] = 1 - null[0] / null[1]


@dataclass(frozen=True)
class _Split:
    """One train/test split of some layers, on the axes of the training rows.

    The axes are found in double precision, the probes in single: at these tolerances the scores are the same to 1e-5.
    """

    rotation: Rotation
    held_out: Tensor  # [L, n_test, r]

    @classmethod
    def of(cls, block: Features, train: np.ndarray, test: np.ndarray) -> _Split:
        fitted, held_out = block.split(train, test)
        rotation = rotate(fitted, standardise=block.standardise, dtype=torch.float32)
        return cls(rotation, rotation.transform(held_out))

    def probe(
        self, head: Head, layer: Tensor, fitted: Tensor, penalty: Tensor, start: Tensor | None, tol: float
    ) -> Tensor:
        """Coefficients [B, r + 1, K] of probes on layers [B], fitted to targets [B, n, K]."""
        return head.fit(self.rotation, layer, fitted, penalty, start, tol)

    def losses(self, head: Head, layer: Tensor, theta: Tensor, scored: Tensor) -> Tensor:
        """Losses [B, n_test] of such probes on the held-out targets [B, n_test, K]."""
        output = theta.new_empty(len(theta), self.held_out.shape[1], theta.shape[2])
        for own in range(len(self.held_out)):  # all problems of a layer in one product
            mine = layer == own
            product = torch.einsum("nr,brk->bnk", self.held_out[own], theta[mine, :-1])
            output[mine] = product + theta[mine, -1:]
        return head.loss(output.double(), scored.double())


def _choose(
    head: Head, split: _Split, fold: Fold, Y: Tensor, layer: Tensor, target: Tensor, penalties: Sequence[float]
) -> Tensor:
    """The penalty [B] with the least validation loss, for each pair of layer and target of Y [target, question, K].

    The path runs from the heaviest penalty down, each solution the start of the next; a pair leaves it after two in
    a row that do worse than its best, because the light end is where the solver is slow and the probe overfits.
    """
    fitted, scored = Y[:, fold.fit], Y[:, fold.validation]
    best = torch.full((len(layer),), torch.inf, dtype=torch.float64, device=fitted.device)
    chosen = torch.zeros_like(best, dtype=fitted.dtype)
    misses = torch.zeros_like(layer)
    alive = torch.arange(len(layer), device=fitted.device)
    start = None
    for penalty in sorted(penalties, reverse=True):
        level = torch.full((len(alive),), penalty, dtype=fitted.dtype, device=fitted.device)
        which = target[alive]
        start = split.probe(head, layer[alive], fitted[which], level, start, _ROUGH_TOLERANCE)
        loss = split.losses(head, layer[alive], start, scored[which]).mean(1)
        better = loss < best[alive]
        best[alive] = torch.where(better, loss, best[alive])
        chosen[alive] = torch.where(better, level, chosen[alive])
        misses[alive] = torch.where(better, 0, misses[alive] + 1)
        stays = misses[alive] < 2
        alive, start = alive[stays], start[stays]
        if not len(alive):
            break
    return chosen


def _permuted_losses(head: Head, split: _Split, Y: Tensor, fold: Fold, rows: np.ndarray, penalty: Tensor) -> np.ndarray:
    """Summed held-out losses of probe and baseline under each of `rows`: [2, layer, permutation]."""
    depth, n, rank = split.rotation.scores.shape
    curvature = 20 * rank  # ten pairs of vectors as long as the weights
    budget = max(_BYTES, Y.element_size() * depth * n * rank)
    stride = max(1, budget // (Y.element_size() * depth * Y.shape[1] * (2 * n + curvature)))
    sums = []
    for first in range(0, len(rows), stride):
        permuted = Y[torch.as_tensor(rows[first : first + stride], device=Y.device)]  # [P, n, K]
        fitted, scored = permuted[:, fold.train], permuted[:, fold.test]
        pairs = torch.cartesian_prod(torch.arange(depth), torch.arange(len(permuted))).to(Y.device)
        layer, which = pairs[:, 0], pairs[:, 1]
        theta = split.probe(head, layer, fitted[which], penalty[layer], None, _ROUGH_TOLERANCE)
        probe = rearrange(split.losses(head, layer, theta, scored[which]).sum(1), "(l p) -> l p", l=depth)
        baseline = head.loss(head.constant(fitted).double(), scored.double()).sum(1)
        sums.append(torch.stack([probe, baseline.expand_as(probe)]))
    return torch.cat(sums, 2).cpu().numpy()
