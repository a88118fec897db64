"""Cross-validated predictability: how much of a target a linear probe explains on questions it has not seen, layer by layer.

Knows activations, targets and groups of questions; nothing of models or of how the activations were captured. Every
choice (standardisation, axes, penalty) is made on training groups only; no layer is chosen, all are reported.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import pandas as pd
import torch
from einops import rearrange
from sklearn.model_selection import GroupKFold
from torch import Tensor

from probes.controls import (
    confidence_strata,
    control_target,
    exchange_between_groups,
    noise_ceiling,
    permuted_rows,
)
from probes.linear import Rotation, kl_divergence, minimise, rotate, smoothed
from probes.targets import ClassTarget

PENALTIES = (1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4)
RIDGE_PENALTIES = (1e-1, 1.0, 1e1, 1e2, 1e3, 1e4, 1e5)
COLUMNS = (
    "target layer measure explained low high ceiling control selectivity null_q95 p_value penalty n n_classes "
    "baseline_nats probe_nats"
).split()
_TOLERANCE = 1e-5  # nats; moves the share explained by less than 1e-3
_NULL_TOLERANCE = 1e-4
_BYTES = 2**27  # working set of one batch


def evaluate(
    activations: np.ndarray,
    target: ClassTarget,
    *,
    layers: Sequence[str],
    group: Sequence[str],
    folds: int = 5,
    penalties: Sequence[float] = PENALTIES,
    permutations: int = 100,
    bootstrap: int = 1000,
    level: float = 0.95,
    seed: int,
    device: str = "cpu",
) -> pd.DataFrame:
    """Predictability of the class distribution `π_x` from each layer: a row a layer, columns `COLUMNS`.

    - `explained`: 1 − Σ KL(π ‖ probe) / Σ KL(π ‖ marginal of the training fold), over all questions, each predicted by the
      fold that held its group out. 1 perfect, 0 as good as the marginal, below 0 worse than it.
    - `low`, `high`: percentile interval, groups drawn with replacement. The probes are not refitted: it is the
      uncertainty over questions given the fitted probes.
    - `ceiling`: share explainable given M samples a question (`noise_ceiling`, approximate).
    - `control`: the same for the control task (`control_target` within bins of B-confidence), with its own penalties;
      `selectivity` = explained − control.
    - `null_q95`, `p_value`: permutation null over the maximum of layers. The statistic is the share explained on the first
      fold's test questions by probes fitted to its training questions; targets are permuted by whole questions (groups
      as blocks), every layer is refitted with the penalty that the true target chose there, and the largest share over
      layers is kept. `null_q95` is the 95 % quantile of those maxima, the same for all layers; `p_value` is
      (1 + #{maximum ≥ the layer's own statistic on that fold}) / (1 + permutations), thus adjusted for looking at all
      layers. One fold's null is wider than the pooled one would be: reading `explained` against it errs on the safe side.
    - `penalty`: chosen a layer and fold on one inner split by group within the training part, from the heaviest penalty
      down until two in a row do worse; then the probe is refitted to the whole training part. Median over folds.
    - `baseline_nats`, `probe_nats`: mean KL before and after.

    `explained` is NaN where the baseline is 0 (a single class). A share near 0 says "not linearly readable here", not
    "not known": see the rungs above linear probes.

    Args:
        activations: [question, layer, d_model], finite.
        target: [question, class] and M.
        layers: names of the layers.
        group: [question], questions that must not straddle a split.
        folds: of the outer cross-validation, at least 2.
        penalties: grid, > 0.
        permutations: of the null; 0 leaves its columns NaN.
        bootstrap: resamples.
        level: of the interval.
        seed: of folds, control task, permutations and bootstrap.
        device: where the batched solver runs, e.g. "cuda".

    Raises:
        ValueError: lengths disagree, an activation is not finite, fewer groups than folds, or a penalty ≤ 0.
    """
    n = _check(activations, len(target), layers, group, penalties)
    fold_seed, control_seed, null_seed, bootstrap_seed = _seeds(seed)
    control = control_target(target, group, confidence_strata(target), control_seed)
    result = _cross_validate(
        _Softmax(),
        activations,
        np.stack([target.distribution, control.distribution]),
        splits=_nested_folds(group, folds, fold_seed),
        penalties=penalties,
        rows=permuted_rows(group, permutations, seed=null_seed),
        device=device,
    )
    frame = _frame(result, group, bootstrap, level, bootstrap_seed)
    baseline = float(result.baseline[0].mean())
    frame["ceiling"] = noise_ceiling(target, baseline)
    frame["baseline_nats"], frame["probe_nats"] = baseline, result.probe[:, 0].mean(1)
    named = {"target": "classes", "layer": list(layers), "measure": "kl_explained", "n": n}
    return frame.assign(**named, n_classes=len(target.classes))[COLUMNS]


def evaluate_scalar(
    activations: np.ndarray,
    y: np.ndarray,
    *,
    name: str,
    layers: Sequence[str],
    group: Sequence[str],
    noise_variance: float | None = None,
    folds: int = 5,
    penalties: Sequence[float] = RIDGE_PENALTIES,
    permutations: int = 100,
    bootstrap: int = 1000,
    level: float = 0.95,
    seed: int,
    device: str = "cpu",
) -> pd.DataFrame:
    """Predictability of a scalar (B-confidence, semantic entropy) by ridge regression: as `evaluate`, same columns.

    `explained` is r²: 1 − Σ (y − probe)² / Σ (y − mean of the training fold)². The control task gives every question the
    value of another group's. `ceiling` is 1 − noise_variance / mean squared baseline error. `n_classes` is 0 and the
    columns in nats are NaN.

    Args:
        activations: [question, layer, d_model], finite.
        y: [question], finite.
        name: of the target, for the column `target`.
        noise_variance: mean sampling variance of y, e.g. c(1 − c)/M for a share c of M draws; None leaves `ceiling` NaN.

    The others, and the errors, as in `evaluate`.
    """
    n = _check(activations, len(y), layers, group, penalties)
    if not np.isfinite(y).all():
        raise ValueError(f"{name} is not finite at question {int(np.argmin(np.isfinite(y)))}")
    fold_seed, control_seed, null_seed, bootstrap_seed = _seeds(seed)
    donor = exchange_between_groups(group, np.zeros(n, dtype=int), seed=control_seed)
    result = _cross_validate(
        _Ridge(),
        activations,
        np.stack([y, y[donor]])[:, :, None],
        splits=_nested_folds(group, folds, fold_seed),
        penalties=penalties,
        rows=permuted_rows(group, permutations, seed=null_seed),
        device=device,
    )
    frame = _frame(result, group, bootstrap, level, bootstrap_seed)
    baseline = float(result.baseline[0].mean())
    known = noise_variance is not None and baseline > 0
    frame["ceiling"] = float(np.clip(1 - (noise_variance or 0.0) / baseline, 0, 1)) if known else float("nan")
    named = {"target": name, "layer": list(layers), "measure": "r2", "n": n, "n_classes": 0}
    return frame.assign(**named, baseline_nats=np.nan, probe_nats=np.nan)[COLUMNS]


def group_folds(group: Sequence[str], folds: int, *, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(train, test) row indices a fold; whole groups are held out, in seeded random order.

    Raises ValueError if there are fewer than 2 folds, or fewer groups than folds.
    """
    groups = len(set(group))
    if folds < 2 or groups < folds:
        raise ValueError(f"{groups} groups of questions cannot make {folds} folds; want at least 2 folds, a group each")
    splitter = GroupKFold(n_splits=folds, shuffle=True, random_state=seed)
    return list(splitter.split(np.zeros(len(group)), groups=np.asarray(group)))


@dataclass(frozen=True)
class _Fold:
    train: np.ndarray
    test: np.ndarray
    fit: np.ndarray
    """The part of `train` that probes are fitted to while a penalty is chosen."""
    validation: np.ndarray
    """The rest of `train`, other groups."""


def _nested_folds(group: Sequence[str], folds: int, seed: int) -> list[_Fold]:
    nested = []
    for train, test in group_folds(group, folds, seed=seed):
        inside = [group[row] for row in train]
        fit, validation = group_folds(inside, max(2, min(folds, len(set(inside)))), seed=seed)[0]
        nested.append(_Fold(train, test, train[fit], train[validation]))
    return nested


class _Head(Protocol):
    """What is fitted on the rotated activations and how it is scored; outputs are linear, [..., question, K]."""

    def constant(self, Y: Tensor) -> Tensor:
        """Output [T, 1, K] of the baseline learnt from training targets [T, n, K]."""
        ...

    def fit(self, rotation: Rotation, Y: Tensor, penalty: Tensor, start: Tensor | None, tol: float) -> Tensor:
        """Coefficients [B, r + 1, K], the bias last, from B rotated problems and targets [B, n, K]."""
        ...

    def loss(self, output: Tensor, Y: Tensor) -> Tensor:
        """[..., question], nats or squared units."""
        ...


class _Softmax:
    def constant(self, Y: Tensor) -> Tensor:
        return smoothed(Y).mean(1, keepdim=True).log()

    def fit(self, rotation: Rotation, Y: Tensor, penalty: Tensor, start: Tensor | None, tol: float) -> Tensor:
        return minimise(rotation.scores, rotation.spectrum, smoothed(Y), penalty, start=start, tol=tol).theta

    def loss(self, output: Tensor, Y: Tensor) -> Tensor:
        return kl_divergence(Y, torch.log_softmax(output, -1))


class _Ridge:
    def constant(self, Y: Tensor) -> Tensor:
        return Y.mean(1, keepdim=True)

    def fit(self, rotation: Rotation, Y: Tensor, penalty: Tensor, start: Tensor | None, tol: float) -> Tensor:  # noqa: ARG002
        centre = Y.mean(1, keepdim=True)
        theta = (rotation.scores.mT @ (Y - centre)) / (rotation.spectrum + penalty[:, None])[:, :, None]
        return torch.cat([theta, centre], 1)

    def loss(self, output: Tensor, Y: Tensor) -> Tensor:
        return (output - Y).square().sum(-1)


@dataclass(frozen=True)
class _Split:
    """One train/test split of some layers, on the axes of the training rows."""

    rotation: Rotation
    held_out: Tensor  # [L, n_test, r]

    @classmethod
    def of(cls, X: Tensor, train: np.ndarray, test: np.ndarray) -> _Split:
        rotation = rotate(X[:, train], standardise=True)
        return cls(rotation, rotation.transform(X[:, test]))

    def single_precision(self) -> _Split:
        rotation = self.rotation
        rotation = replace(rotation, scores=rotation.scores.float(), spectrum=rotation.spectrum.float())
        return _Split(rotation, self.held_out.float())

    def probe(
        self, head: _Head, layer: Tensor, fitted: Tensor, scored: Tensor, penalty: Tensor, start: Tensor | None, tol: float
    ) -> tuple[Tensor, Tensor]:
        """Losses [B, n_test] and coefficients of probes on layers [B], fitted to [B, n, K], scored on [B, n_test, K]."""
        chosen = replace(self.rotation, scores=self.rotation.scores[layer], spectrum=self.rotation.spectrum[layer])
        theta = head.fit(chosen, fitted, penalty, start, tol)
        return head.loss(torch.baddbmm(theta[:, -1:], self.held_out[layer], theta[:, :-1]), scored), theta


@dataclass(frozen=True)
class _Result:
    baseline: np.ndarray  # [target, question]: loss of the training fold's constant
    probe: np.ndarray  # [layer, target, question]: loss of the probe
    penalty: np.ndarray  # [layer, fold], for the first target
    statistic: np.ndarray  # [layer, 1 + permutation]: share explained on the first fold, the true targets first


def _cross_validate(
    head: _Head,
    activations: np.ndarray,
    targets: np.ndarray,
    *,
    splits: Sequence[_Fold],
    penalties: Sequence[float],
    rows: np.ndarray,
    device: str,
) -> _Result:
    """All folds, layers and targets [target, question, K]; the null is of the first target, over `rows`."""
    n, depth, width = activations.shape
    Y = torch.as_tensor(targets, dtype=torch.float64, device=device)
    rows = np.concatenate([np.arange(n)[None], rows])
    baseline = np.empty(targets.shape[:2])
    probe = np.empty((depth, *targets.shape[:2]))
    penalty = np.empty((depth, len(splits)))
    statistic = np.empty((depth, len(rows)))
    stride = max(1, _BYTES // (8 * n * width))
    for first in range(0, depth, stride):
        part = slice(first, first + stride)
        block = rearrange(activations[:, part], "question layer d -> layer question d")
        X = torch.as_tensor(np.ascontiguousarray(block), device=device).to(torch.float64)
        pairs = torch.cartesian_prod(torch.arange(len(X)), torch.arange(len(Y))).to(device)
        layer, target = pairs[:, 0], pairs[:, 1]
        for index, fold in enumerate(splits):
            inner = _Split.of(X, fold.fit, fold.validation)
            chosen = _choose(head, inner, Y[:, fold.fit], Y[:, fold.validation], layer, target, penalties)
            split = _Split.of(X, fold.train, fold.test)
            train, test = Y[:, fold.train], Y[:, fold.test]
            losses, _ = split.probe(head, layer, train[target], test[target], chosen, None, _TOLERANCE)
            probe[part, :, fold.test] = rearrange(losses.cpu().numpy(), "(l t) q -> l t q", t=len(Y))
            baseline[:, fold.test] = head.loss(head.constant(train), test).cpu().numpy()
            own = chosen[target == 0]
            penalty[part, index] = own.cpu().numpy()
            if index == 0 and len(rows) > 1:
                statistic[part] = _statistics(head, split.single_precision(), Y[0].float(), fold, rows, own.float())
    return _Result(baseline, probe, penalty, statistic)


def _choose(
    head: _Head, split: _Split, fitted: Tensor, scored: Tensor, layer: Tensor, target: Tensor, penalties: Sequence[float]
) -> Tensor:
    """The penalty [B] with the least validation loss, for each pair of layer and target.

    The path runs from the heaviest penalty down, each solution the start of the next; a pair leaves it after two in a row
    that do worse than its best, because the light end is where the solver is slow and the probe overfits.
    """
    best = torch.full((len(layer),), torch.inf, dtype=fitted.dtype, device=fitted.device)
    chosen = torch.zeros_like(best)
    misses = torch.zeros_like(layer)
    alive = torch.arange(len(layer), device=fitted.device)
    start = None
    for penalty in sorted(penalties, reverse=True):
        level = torch.full((len(alive),), penalty, dtype=fitted.dtype, device=fitted.device)
        which = target[alive]
        losses, start = split.probe(head, layer[alive], fitted[which], scored[which], level, start, _TOLERANCE)
        loss = losses.mean(1)
        better = loss < best[alive]
        best[alive] = torch.where(better, loss, best[alive])
        chosen[alive] = torch.where(better, level, chosen[alive])
        misses[alive] = torch.where(better, 0, misses[alive] + 1)
        stays = misses[alive] < 2
        alive, start = alive[stays], start[stays]
        if not len(alive):
            break
    return chosen


def _statistics(head: _Head, split: _Split, Y: Tensor, fold: _Fold, rows: np.ndarray, penalty: Tensor) -> np.ndarray:
    """Share explained on the fold's test questions, targets permuted by each of `rows`: [layer, permutation]."""
    depth, n, rank = split.rotation.scores.shape
    stride = max(1, _BYTES // (Y.element_size() * depth * n * (rank + Y.shape[1])))
    explained = []
    for first in range(0, len(rows), stride):
        permuted = Y[torch.as_tensor(rows[first : first + stride], device=Y.device)]  # [P, n, K]
        fitted, scored = permuted[:, fold.train], permuted[:, fold.test]
        pairs = torch.cartesian_prod(torch.arange(depth), torch.arange(len(permuted))).to(Y.device)
        layer, which = pairs[:, 0], pairs[:, 1]
        losses, _ = split.probe(head, layer, fitted[which], scored[which], penalty[layer], None, _NULL_TOLERANCE)
        baseline = head.loss(head.constant(fitted), scored).sum(1)  # [P]
        explained.append(1 - rearrange(losses.sum(1), "(l p) -> l p", l=depth) / baseline)
    return torch.cat(explained, 1).double().cpu().numpy()


def _frame(result: _Result, group: Sequence[str], bootstrap: int, level: float, seed: int) -> pd.DataFrame:
    """The columns that do not depend on the measure."""
    _, code = np.unique(np.asarray(group), return_inverse=True)
    groups = int(code.max()) + 1
    total = _by_group(code, groups)
    drawn = np.random.default_rng(seed).multinomial(groups, np.full(groups, 1 / groups), size=bootstrap)
    with np.errstate(divide="ignore", invalid="ignore"):
        explained = 1 - result.probe.sum(2) / result.baseline.sum(1)  # [layer, target]
        resampled = 1 - (total(result.probe[:, 0]) @ drawn.T) / (total(result.baseline[:1]) @ drawn.T)
    explained = np.where(result.baseline.sum(1) > 0, explained, np.nan)
    maxima = result.statistic[:, 1:].max(0)
    tail = (1 - level) / 2
    measured = pd.DataFrame({"explained": explained[:, 0], "control": explained[:, 1]})
    measured["selectivity"] = measured["explained"] - measured["control"]
    measured["low"], measured["high"] = np.quantile(resampled, [tail, 1 - tail], axis=1)
    measured["penalty"] = np.exp(np.median(np.log(result.penalty), axis=1))
    measured["null_q95"] = measured["p_value"] = np.nan
    if len(maxima) and result.baseline[0].sum() > 0:
        measured["null_q95"] = float(np.quantile(maxima, 0.95))
        beaten = (maxima[None] >= result.statistic[:, :1]).sum(1)
        measured["p_value"] = (1 + beaten) / (1 + len(maxima))
    return measured


def _by_group(code: np.ndarray, groups: int) -> Callable[[np.ndarray], np.ndarray]:
    """Sums [row, question] -> [row, group], the one definition of a bootstrap cluster."""
    return lambda values: np.stack([np.bincount(code, weights=row, minlength=groups) for row in values])


def _seeds(seed: int) -> tuple[int, int, int, int]:
    a, b, c, d = (int(state) for state in np.random.SeedSequence(seed).generate_state(4))
    return a, b, c, d


def _check(
    activations: np.ndarray, targets: int, layers: Sequence[str], group: Sequence[str], penalties: Sequence[float]
) -> int:
    if activations.ndim != 3:
        raise ValueError(f"activations have shape {activations.shape}; want [question, layer, d_model]")
    n, depth, _ = activations.shape
    if not n == targets == len(group) or depth != len(layers):
        raise ValueError(
            f"activations are for {n} questions and {depth} layers, but there are {targets} targets, {len(group)} groups "
            f"and {len(layers)} layer names"
        )
    for index, name in enumerate(layers):
        finite = np.isfinite(activations[:, index]).all(1)
        if not finite.all():
            raise ValueError(f"activations of layer {name} at question {int(np.argmin(finite))} are not finite")
    if not len(penalties) or not min(penalties) > 0:
        raise ValueError(f"penalties are {list(penalties)}; want at least one, all positive")
    return n
