"""Cross-validated predictability: how much of a target linear probes explain on unseen questions, layer by layer.

Knows activations, targets and groups of questions; nothing of models or of how the activations were captured. Every
choice (standardisation, axes, penalty) is made on training groups only; no layer is chosen, all are reported. Layers
are read a part at a time, and all targets are fitted to a part, with its rotations shared, before the next is read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from einops import rearrange
from torch import Tensor

from probes.activations.layers import Block, Layers
from probes.evaluation.baselines import Texts
from probes.evaluation.ceiling import Ceiling, ceiling_of
from probes.evaluation.controls import (
    confidence_strata,
    control_target,
    exchange_between_groups,
    maximum_null,
    permuted_rows,
)
from probes.evaluation.folds import Fold, nested_folds
from probes.evaluation.result import KL_EXPLAINED, LINEAR, R2, Evaluation, HeldOut, Seeds, evaluation
from probes.rungs.registry import PENALTIES, TOLERANCE
from probes.solver.minimise import minimise
from probes.solver.rotation import Rotation, rotate
from probes.targets.closed import ClassTarget, kl_divergence, smoothed
from probes.targets.open import OpenTarget, sparse
from probes.targets.scalars import ScalarTarget
from semcal.calibration.resampling import Resampling

_ROUGH_TOLERANCE = 1e-4  # to compare penalties, and for the null
_BYTES = 2**22  # working set of a batch of permutations, or the rows' own size if that is more

Target = ClassTarget | ScalarTarget
Source = Layers | Texts  # what probes read, a part at a time


@dataclass(frozen=True)
class CrossValidation:
    """How probes are cross-validated, the same for every rung and target.

    Attributes:
        folds: of the outer cross-validation, at least 2.
        penalties: grid for linear probes, > 0.
        permutations: of the null over layers; 0 leaves its columns NaN.
        null_folds: folds that the null is computed on, each costing `permutations` refits of all layers.
        exchanges: permutations of the targets behind the p-value of a rung that is not refitted (`evaluate_rung`).
        device: where the batched solver, MLPs and attention run, e.g. "cuda".

    Raises:
        ValueError: no penalty, or one that is not positive.
    """

    folds: int = 5
    penalties: Sequence[float] = PENALTIES
    permutations: int = 100
    null_folds: int = 1
    exchanges: int = 999
    device: str = "cpu"

    def __post_init__(self) -> None:
        if not len(self.penalties) or not min(self.penalties) > 0:
            raise ValueError(f"penalties are {list(self.penalties)}; expected at least one, all positive")


def evaluate_all(
    source: Source,
    targets: Sequence[Target],
    *,
    group: Sequence[str],
    how: CrossValidation | None = None,
    resampling: Resampling | None = None,
    rung: str = LINEAR,
) -> list[Evaluation]:
    """Predictability of targets from each layer, every layer being read and rotated once for all of them. The `.frame`
    of each target has one row per layer, columns `COLUMNS`.

    For a class distribution `π_x`:

    - `explained`: 1 − Σ KL(π ‖ probe) / Σ KL(π ‖ marginal of the training fold), over all questions, each predicted by
      the fold that held its group out. 1 perfect, 0 as good as the marginal, below 0 worse than it.
    - `low`, `high`: percentile interval, groups drawn with replacement. The probes are not refitted: it is the
      uncertainty over questions given the fitted probes. The best read-out would explain a little more, for probes
      learn from finitely many questions (`probes.evaluation.learning.learning_curve`).
    - `ceiling`, `ceiling_low`: share explainable given M samples per question, from two sides: `noise_ceiling` is
      rather too high, `reliability` a lower bound. `reliability`: the same in squared error, by halves.
      `of_ceiling` with its interval: explained / ceiling, as base and tuned models are compared; if anything too low.
    - `control`: the same for the control task (`control_target` within bins of B-confidence), with its own penalties;
      `selectivity` = explained − control.
    - `null_q95`, `p_value`: permutation null over the maximum of layers. The statistic is the share explained on the
      held-out questions of the first `null_folds` folds. Targets are permuted by whole questions (groups as blocks),
      every layer is refitted on those folds with the penalties that the true target chose there, and the largest share
      over layers is kept. `null_q95` is the 95 % quantile of those maxima, the same for all layers; `p_value` is
      (1 + #{maximum ≥ the layer's own statistic}) / (1 + permutations), adjusted for looking at all layers. With fewer
      than all folds the null is wider than that of `explained`: weak effects are missed rather than invented.
    - `penalty`: chosen per layer and fold on one inner split by group within the training part, from the heaviest down
      until two in a row do worse; then the probe is refitted to the whole training part. Median over folds.
    - `baseline_nats`, `probe_nats`: mean KL before and after.
    - `gap`, `gap_low`, `gap_high`: the KL gap in nats, finite M taken off, comparable across runs, with its interval;
      `gap_at_least`, `gap_at_most`: what the entropy's bounds leave open; `gap_top`, `gap_rest`: its part on the top
      class, and the rest, with `_low` and `_high` as well; `gap_floor`: the 95 % quantile of what a perfect predictor
      would be measured to have. See `probes.evaluation.kl_gap`. NaN where classes are not fixed beforehand
      (`ClassTarget.fixed_classes`).
    - `pooled`: share of the target's mass in "(other)". The gap is then one over the classes kept.

    `explained`, what derives from it, and `control` are NaN where more than `MOST_POOLED` is pooled: they would say how
    much is pooled. `explained` is NaN where the baseline is 0 (a single class), too. A share near 0 says "not linearly
    readable here", not "not known": see the rungs above linear probes (`probes.rungs`).

    For a scalar, probes are ridge regressions, and `explained` is r²: 1 − Σ (y − probe)² / Σ (y − mean of the training
    fold)². The control task gives every question the value of another group's; the null is over all folds, ridge being
    cheap. `ceiling` is 1 − noise variance / mean squared baseline error. `n_classes` is 0 and the columns in nats are
    NaN.

    Args:
        source: layers of finite activations, or texts.
        group: [question], questions that must not straddle a split.
        resampling: of the interval; its seed is also that of folds, control task and permutations.
        rung: for the column `rung`, e.g. "baseline:random-init".

    Raises:
        ValueError: lengths disagree, an activation is not finite, or fewer groups than folds.
    """
    how, resampling = how or CrossValidation(), resampling or Resampling()
    for target in targets:
        if len(target) != len(group):
            raise ValueError(f"{len(target)} targets and {len(group)} group labels; expected one of each per question")
    seeds = Seeds.of(resampling.seed)
    rows = permuted_rows(group, how.permutations, seed=seeds.null)
    tasks = [_Task.of(target, group, seeds.control, rows, how) for target in targets]
    scores = _cross_validate(source, tasks, nested_folds(group, how.folds, seeds.folds), how)
    found = []
    for target, own in zip(targets, scores, strict=True):
        baseline = float(own.baseline[0].mean())
        if isinstance(target, ClassTarget):
            measure, classes = KL_EXPLAINED, len(target.classes)
            ceiling = ceiling_of(target, baseline, seed=resampling.seed)
        else:
            measure, classes, ceiling = R2, 0, _scalar_ceiling(target, baseline)
        found.append(
            evaluation(
                HeldOut(own.probe[:, 0], own.baseline[0], own.log_q, own.log_marginal),
                {"rung": rung, "layer": source.names, "measure": measure},
                target=target,
                ceiling=ceiling,
                group=group,
                resampling=replace(resampling, seed=seeds.bootstrap),
                columns={"n_classes": classes} | _batched(own),
            )
        )
    return found


def _scalar_ceiling(target: ScalarTarget, baseline: float) -> Ceiling:
    if target.noise_variance is None or not baseline > 0:
        return Ceiling()
    return Ceiling(float(np.clip(1 - target.noise_variance / baseline, 0, 1)))


def _batched(scores: _Scores) -> dict[str, Any]:
    """The columns that only probes fitted in batches have."""
    total = scores.baseline[1].sum()
    null_q95, p_value = maximum_null(scores.statistic[:, 1:], scores.statistic[:, 0])
    penalty = np.quantile(scores.penalty, 0.5, axis=1, method="lower")  # stays on the grid
    return {
        "control": 1 - scores.probe[:, 1].sum(1) / (total if total > 0 else np.nan),
        "null_q95": null_q95,
        "p_value": p_value,
        "penalty": penalty,
        "choice": [f"penalty={one:g}" for one in penalty],
    }


@dataclass(frozen=True)
class _Scores:
    """Held-out losses of one target: nats, or squared errors.

    Attributes:
        baseline: [target or control, question], of the training fold's constant.
        probe: [layer, target or control, question].
        penalty: [layer, fold], for the target.
        statistic: [layer, 1 + permutation], share explained on the folds of the null, the true targets first.
        log_q, log_marginal: [layer, entry] and [entry], log-probabilities of the true target's classes; None for a
            scalar.
    """

    baseline: np.ndarray
    probe: np.ndarray
    penalty: np.ndarray
    statistic: np.ndarray
    log_q: np.ndarray | None
    log_marginal: np.ndarray | None

    @classmethod
    def empty(cls, task: _Task, depth: int, folds: int) -> _Scores:
        shape, entries = tuple(task.Y.shape[:2]), 0 if task.entries is None else len(task.entries.mass)
        sizes = shape, (depth, *shape), (depth, folds), (depth, len(task.rows))
        logs = (None, None) if task.entries is None else (np.empty((depth, entries)), np.empty(entries))
        baseline, probe, penalty, statistic = (np.empty(size) for size in sizes)
        return cls(baseline, probe, penalty, statistic, *logs)


@dataclass(frozen=True)
class _Task:
    """A target and its control task, to be fitted together.

    Attributes:
        Y: [target or control, question, K].
        rows: [1 + permutation, question], row indices of permuted targets, the identity first.
        null_folds: folds that the null is computed on.
        entries: the true target, question by question; None for a scalar.
        columns: [entry], the column of Y of each entry; empty for a scalar.
    """

    head: Head
    Y: Tensor
    rows: np.ndarray
    null_folds: int
    entries: OpenTarget | None
    columns: np.ndarray

    @classmethod
    def of(cls, target: Target, group: Sequence[str], seed: int, rows: np.ndarray, how: CrossValidation) -> _Task:
        """`seed`: of the control task."""
        if isinstance(target, ClassTarget):
            head, null_folds, entries = SoftmaxHead(), how.null_folds, sparse(target)
            columns = entries.columns(target.classes)
            control = control_target(target, group, confidence_strata(target), seed)
            Y = np.stack([target.distribution, control.distribution])
        else:
            head, null_folds, entries, columns = RidgeHead(), how.folds, None, np.empty(0, dtype=int)
            donor = exchange_between_groups(group, np.zeros(len(target), dtype=int), seed=seed)
            Y = np.stack([target.values, target.values[donor]])[:, :, None]
        rows = np.concatenate([np.arange(len(target))[None], rows])
        return cls(head, torch.as_tensor(Y, dtype=torch.float32, device=how.device), rows, null_folds, entries, columns)

    def pairs(self, layers: int) -> tuple[Tensor, Tensor]:
        """(layer [B], target [B]) of all problems on some layers."""
        pairs = torch.cartesian_prod(torch.arange(layers), torch.arange(len(self.Y))).to(self.Y.device)
        return pairs[:, 0], pairs[:, 1]


def _cross_validate(
    source: Source, tasks: Sequence[_Task], folds: Sequence[Fold], how: CrossValidation
) -> list[_Scores]:
    """All folds and layers of some targets; one part of the layers is held at a time."""
    n, depth = tasks[0].Y.shape[1], len(source.names)
    found = [_Scores.empty(task, depth, len(folds)) for task in tasks]
    for part in source.parts(n):  # a block is named nowhere here, so that it is gone before the next is read
        _explain(source.block(part, n, how.device), part, tasks, folds, how, found)
    return found


def _explain(
    block: Block | Texts,
    part: slice,
    tasks: Sequence[_Task],
    folds: Sequence[Fold],
    how: CrossValidation,
    found: Sequence[_Scores],
) -> None:
    """Fill in the scores of a part of the layers."""
    nulls = [np.zeros((2, len(block), len(task.rows))) for task in tasks]
    for index, fold in enumerate(folds):
        split = _Split.of(block, fold.fit, fold.validation)
        chosen = [_choose(task, split, fold, how.penalties) for task in tasks]
        del split  # or it would stay while the next one is made
        split = _Split.of(block, fold.train, fold.test)
        for task, penalty, scores, null in zip(tasks, chosen, found, nulls, strict=True):
            layer, target = task.pairs(len(block))
            train, test = task.Y[:, fold.train], task.Y[:, fold.test]
            theta = task.head.fit(split.rotation, layer, train[target], penalty, None, TOLERANCE)
            output = split.outputs(layer, theta)
            losses = task.head.loss(output, test[target].double())
            scores.probe[part, :, fold.test] = rearrange(losses.cpu().numpy(), "(l t) q -> l t q", t=len(task.Y))
            constant = task.head.constant(train).double()
            scores.baseline[:, fold.test] = task.head.loss(constant, test.double()).cpu().numpy()
            if task.entries is not None and scores.log_q is not None and scores.log_marginal is not None:
                at = task.entries.entries(fold.test)
                row = np.repeat(np.arange(len(fold.test)), np.diff(task.entries.starts)[fold.test])
                column = task.columns[at]
                scores.log_q[part, at] = torch.log_softmax(output[target == 0], -1)[:, row, column].cpu().numpy()
                scores.log_marginal[at] = torch.log_softmax(constant[0, 0], -1)[column].cpu().numpy()
            own = penalty[target == 0]
            scores.penalty[part, index] = own.cpu().numpy()
            if index < task.null_folds and len(task.rows) > 1:
                null += _permuted_losses(task, split, fold, own)
    for scores, null in zip(found, nulls, strict=True):
        with np.errstate(divide="ignore", invalid="ignore"):
            scores.statistic[part] = 1 - null[0] / null[1]


@dataclass(frozen=True)
class _Split:
    """One train/test split of some layers, on the axes of the training rows.

    The axes are found in double precision, the probes in single: at these tolerances the scores are the same to 1e-5.
    """

    rotation: Rotation
    held_out: Tensor  # [L, n_test, r]

    @classmethod
    def of(cls, block: Block | Texts, train: np.ndarray, test: np.ndarray) -> _Split:
        fitted, held_out = block.split(train, test)
        rotation = rotate(fitted, standardise=block.standardise, dtype=torch.float32)
        return cls(rotation, rotation.transform(held_out))

    def losses(self, head: Head, layer: Tensor, theta: Tensor, scored: Tensor) -> Tensor:
        """Losses [B, n_test] of such probes on the held-out targets [B, n_test, K]."""
        return head.loss(self.outputs(layer, theta), scored.double())

    def outputs(self, layer: Tensor, theta: Tensor) -> Tensor:
        """Linear outputs [B, n_test, K] of such probes, float64."""
        output = theta.new_empty(len(theta), self.held_out.shape[1], theta.shape[2])
        for own in range(len(self.held_out)):  # all problems of a layer in one product
            mine = layer == own
            product = torch.einsum("nr,brk->bnk", self.held_out[own], theta[mine, :-1])
            output[mine] = product + theta[mine, -1:]
        return output.double()


def _choose(task: _Task, split: _Split, fold: Fold, penalties: Sequence[float]) -> Tensor:
    """The penalty [B] with the least validation loss, for each pair of layer and target.

    Penalties are tried from the heaviest down, each solution the start of the next; a pair stops after two in a row
    that do worse than its best, because at light penalties the solver is slow and the probe overfits.
    """
    head, (layer, target) = task.head, task.pairs(len(split.held_out))
    fitted, scored = task.Y[:, fold.fit], task.Y[:, fold.validation]
    best = torch.full((len(layer),), torch.inf, dtype=torch.float64, device=fitted.device)
    chosen = torch.zeros_like(best, dtype=fitted.dtype)
    misses = torch.zeros_like(layer)
    alive = torch.arange(len(layer), device=fitted.device)
    start = None
    for penalty in sorted(penalties, reverse=True):
        level = torch.full((len(alive),), penalty, dtype=fitted.dtype, device=fitted.device)
        which = target[alive]
        start = head.fit(split.rotation, layer[alive], fitted[which], level, start, _ROUGH_TOLERANCE)
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


def _permuted_losses(task: _Task, split: _Split, fold: Fold, penalty: Tensor) -> np.ndarray:
    """Summed held-out losses of probe and baseline under each permutation of the targets: [2, layer, permutation]."""
    head, Y, rows = task.head, task.Y[0], task.rows
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
        theta = head.fit(split.rotation, layer, fitted[which], penalty[layer], None, _ROUGH_TOLERANCE)
        probe = rearrange(split.losses(head, layer, theta, scored[which]).sum(1), "(l p) -> l p", l=depth)
        baseline = head.loss(head.constant(fitted).double(), scored.double()).sum(1)
        sums.append(torch.stack([probe, baseline.expand_as(probe)]))
    return torch.cat(sums, 2).cpu().numpy()


class SoftmaxHead:
    """Log-linear class probabilities. Outputs are linear, [..., question, K]; losses are KL in nats."""

    def constant(self, Y: Tensor) -> Tensor:
        """Output [T, 1, K] of the baseline learnt from training targets [T, n, K]."""
        return smoothed(Y).mean(1, keepdim=True).log()

    def fit(
        self, rotation: Rotation, layer: Tensor, Y: Tensor, penalty: Tensor, start: Tensor | None, tol: float
    ) -> Tensor:
        """Coefficients [B, r + 1, K], the bias last, of problems on the rotated rows of layers [B] and targets Y."""
        fit = minimise(rotation.scores, rotation.spectrum, smoothed(Y), penalty, layer=layer, start=start, tol=tol)
        return torch.cat([fit.weight, fit.bias[:, None]], 1)

    def loss(self, output: Tensor, Y: Tensor) -> Tensor:
        """[..., question]."""
        return kl_divergence(Y, torch.log_softmax(output, -1))


class RidgeHead:
    """The same for a scalar, K = 1: outputs are predictions, losses squared errors."""

    def constant(self, Y: Tensor) -> Tensor:
        return Y.mean(1, keepdim=True)

    def fit(
        self,
        rotation: Rotation,
        layer: Tensor,
        Y: Tensor,
        penalty: Tensor,
        start: Tensor | None,  # noqa: ARG002
        tol: float,  # noqa: ARG002
    ) -> Tensor:
        centre = Y.mean(1, keepdim=True)
        moment = Y.new_empty(len(Y), rotation.spectrum.shape[1], 1)
        for own in range(len(rotation.scores)):  # all targets of a layer in one product, its rows copied for none
            mine = layer == own
            moment[mine] = ((Y - centre)[mine, :, 0] @ rotation.scores[own])[:, :, None]
        return torch.cat([moment / (rotation.spectrum[layer] + penalty[:, None])[:, :, None], centre], 1)

    def loss(self, output: Tensor, Y: Tensor) -> Tensor:
        return (output - Y).square().sum(-1)


Head = SoftmaxHead | RidgeHead
