"""Cross-validated predictability: how much of a target linear probes explain on unseen questions, layer by layer.

Knows activations, targets and groups of questions; nothing of models or of how the activations were captured. Every
choice (standardisation, axes, penalty) is made on training groups only; no layer is chosen, all are reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

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
    maximum_null,
    noise_ceiling,
    permuted_rows,
    share_interval,
)
from probes.heads import Head, RidgeHead, SoftmaxHead
from probes.rotation import Rotation, rotate
from probes.targets import ClassTarget

PENALTIES = (1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4, 1e5)
COLUMNS = ["target", "layer", "measure", "explained", "low", "high", "ceiling", "control", "selectivity"]
COLUMNS += ["null_q95", "p_value", "penalty", "n", "n_classes", "baseline_nats", "probe_nats"]
# nats still to be gained when a solver stops. At 1e-5 the share explained is within 1e-3 of its value at 1e-8.
_TOLERANCE = 1e-5
_ROUGH_TOLERANCE = 1e-4  # to compare penalties, and for the null
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
    null_folds: int = 1,
    bootstrap: int = 1000,
    level: float = 0.95,
    seed: int,
    device: str = "cpu",
) -> pd.DataFrame:
    """Predictability of the class distribution `π_x` from each layer: a row a layer, columns `COLUMNS`.

    - `explained`: 1 − Σ KL(π ‖ probe) / Σ KL(π ‖ marginal of the training fold), over all questions, each predicted by
      the fold that held its group out. 1 perfect, 0 as good as the marginal, below 0 worse than it.
    - `low`, `high`: percentile interval, groups drawn with replacement. The probes are not refitted: it is the
      uncertainty over questions given the fitted probes.
    - `ceiling`: share explainable given M samples a question (`noise_ceiling`, approximate).
    - `control`: the same for the control task (`control_target` within bins of B-confidence), with its own penalties;
      `selectivity` = explained − control.
    - `null_q95`, `p_value`: permutation null over the maximum of layers. The statistic is the share explained on the
      held-out questions of the first `null_folds` folds. Targets are permuted by whole questions (groups as blocks),
      every layer is refitted on those folds with the penalties that the true target chose there, and the largest share
      over layers is kept. `null_q95` is the 95 % quantile of those maxima, the same for all layers; `p_value` is
      (1 + #{maximum ≥ the layer's own statistic}) / (1 + permutations), thus adjusted for looking at all layers. The
      penalties are not chosen anew for each permutation; held-out scores make the error of that small. With fewer than
      all folds the null is wider than that of `explained`, and weak effects are missed rather than invented.
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
        null_folds: folds that the null is computed on, each costing `permutations` refits of all layers.
        bootstrap: resamples.
        level: of the interval.
        seed: of folds, control task, permutations and bootstrap.
        device: where the batched solver runs, e.g. "cuda".

    Raises:
        ValueError: lengths disagree, an activation is not finite, fewer groups than folds, or a penalty ≤ 0.
    """
    _check(activations, len(target), layers, group, penalties)
    fold_seed, control_seed, null_seed, bootstrap_seed = np.random.SeedSequence(seed).generate_state(4)
    control = control_target(target, group, confidence_strata(target), control_seed)
    result = _cross_validate(
        SoftmaxHead(),
        activations,
        np.stack([target.distribution, control.distribution]),
        splits=_nested_folds(group, folds, fold_seed),
        penalties=penalties,
        rows=permuted_rows(group, permutations, seed=null_seed),
        null_folds=null_folds,
        device=device,
    )
    frame = _frame(result, group, bootstrap, level, bootstrap_seed)
    baseline = float(result.baseline[0].mean())
    frame["ceiling"] = noise_ceiling(target, baseline)
    frame["baseline_nats"], frame["probe_nats"] = baseline, result.probe[:, 0].mean(1)
    frame = frame.assign(target="classes", layer=list(layers), measure="kl_explained", n_classes=len(target.classes))
    return frame.reindex(columns=COLUMNS)


def evaluate_scalar(
    activations: np.ndarray,
    y: np.ndarray,
    *,
    name: str,
    layers: Sequence[str],
    group: Sequence[str],
    noise_variance: float | None = None,
    folds: int = 5,
    penalties: Sequence[float] = PENALTIES,
    permutations: int = 100,
    bootstrap: int = 1000,
    level: float = 0.95,
    seed: int,
    device: str = "cpu",
) -> pd.DataFrame:
    """Predictability of a scalar (B-confidence, semantic entropy) by ridge regression: as `evaluate`, same columns.

    `explained` is r²: 1 − Σ (y − probe)² / Σ (y − mean of the training fold)². The control task gives every question
    the value of another group's; the null is over all folds, ridge being cheap. `ceiling` is 1 − noise_variance / mean
    squared baseline error. `n_classes` is 0 and the columns in nats are NaN.

    Args:
        activations: [question, layer, d_model], finite.
        y: [question], finite.
        name: of the target, for the column `target`.
        noise_variance: mean sampling variance of y, e.g. c(1 − c)/M for a share c of M draws; None: `ceiling` is NaN.

    The others, and the errors, as in `evaluate`.
    """
    _check(activations, len(y), layers, group, penalties)
    if not np.isfinite(y).all():
        raise ValueError(f"{name} is not finite at question {int(np.argmin(np.isfinite(y)))}")
    fold_seed, control_seed, null_seed, bootstrap_seed = np.random.SeedSequence(seed).generate_state(4)
    donor = exchange_between_groups(group, np.zeros(len(y), dtype=int), seed=control_seed)
    result = _cross_validate(
        RidgeHead(),
        activations,
        np.stack([y, y[donor]])[:, :, None],
        splits=_nested_folds(group, folds, fold_seed),
        penalties=penalties,
        rows=permuted_rows(group, permutations, seed=null_seed),
        null_folds=folds,
        device=device,
    )
    frame = _frame(result, group, bootstrap, level, bootstrap_seed)
    baseline = float(result.baseline[0].mean())
    known = noise_variance is not None and baseline > 0
    frame["ceiling"] = float(np.clip(1 - (noise_variance or 0.0) / baseline, 0, 1)) if known else float("nan")
    frame = frame.assign(target=name, layer=list(layers), measure="r2", n_classes=0)
    return frame.reindex(columns=COLUMNS)


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
    fit: np.ndarray  # the part of `train` that probes are fitted to while a penalty is chosen
    validation: np.ndarray  # the rest of `train`, other groups


def _nested_folds(group: Sequence[str], folds: int, seed: int) -> list[_Fold]:
    nested = []
    for train, test in group_folds(group, folds, seed=seed):
        inside = [str(name) for name in np.asarray(group)[train]]
        fit, validation = group_folds(inside, max(2, min(folds, len(set(inside)))), seed=seed)[0]
        nested.append(_Fold(train, test, train[fit], train[validation]))
    return nested


@dataclass(frozen=True)
class _Split:
    """One train/test split of some layers, on the axes of the training rows.

    The axes are found in double precision, the probes in single: at these tolerances the scores are the same to 1e-5.
    """

    rotation: Rotation
    held_out: Tensor  # [L, n_test, r]

    @classmethod
    def of(cls, X: Tensor, train: np.ndarray, test: np.ndarray) -> _Split:
        exact = rotate(X[:, train], standardise=True)
        rotation = replace(exact, scores=exact.scores.float(), spectrum=exact.spectrum.float())
        return cls(rotation, exact.transform(X[:, test]).float())

    def probe(
        self, head: Head, layer: Tensor, fitted: Tensor, penalty: Tensor, start: Tensor | None, tol: float
    ) -> Tensor:
        """Coefficients [B, r + 1, K] of probes on layers [B], fitted to targets [B, n, K]."""
        return head.fit(self.rotation, layer, fitted, penalty, start, tol)

    def losses(self, head: Head, layer: Tensor, theta: Tensor, scored: Tensor) -> Tensor:
        """Losses [B, n_test] of such probes on the held-out targets [B, n_test, K]."""
        output = theta.new_empty(len(theta), self.held_out.shape[1], theta.shape[2])
        for own in range(len(self.held_out)):  # likewise
            mine = layer == own
            product = torch.einsum("nr,brk->bnk", self.held_out[own], theta[mine, :-1])
            output[mine] = product + theta[mine, -1:]
        return head.loss(output.double(), scored.double())


@dataclass(frozen=True)
class _Result:
    baseline: np.ndarray  # [target, question]: loss of the training fold's constant
    probe: np.ndarray  # [layer, target, question]: loss of the probe
    penalty: np.ndarray  # [layer, fold], for the first target
    statistic: np.ndarray  # [layer, 1 + permutation]: share explained on the folds of the null, the true targets first


def _cross_validate(
    head: Head,
    activations: np.ndarray,
    targets: np.ndarray,
    *,
    splits: Sequence[_Fold],
    penalties: Sequence[float],
    rows: np.ndarray,
    null_folds: int,
    device: str,
) -> _Result:
    """All folds, layers and targets [target, question, K]; the null is of the first target, over `rows`."""
    n, depth, width = activations.shape
    Y = torch.as_tensor(targets, dtype=torch.float32, device=device)
    rows = np.concatenate([np.arange(n)[None], rows])
    baseline = np.empty(targets.shape[:2])
    probe = np.empty((depth, *targets.shape[:2]))
    penalty = np.empty((depth, len(splits)))
    null = np.zeros((2, depth, len(rows)))
    stride = max(1, _BYTES // (8 * n * width))
    for first in range(0, depth, stride):
        part = slice(first, first + stride)
        block = rearrange(activations[:, part], "question layer d -> layer question d")
        X = torch.as_tensor(np.ascontiguousarray(block), device=device).to(torch.float64)
        pairs = torch.cartesian_prod(torch.arange(len(X)), torch.arange(len(Y))).to(device)
        layer, target = pairs[:, 0], pairs[:, 1]
        for index, fold in enumerate(splits):
            inner = _Split.of(X, fold.fit, fold.validation)
            chosen = _choose(head, inner, fold, Y, layer, target, penalties)
            split = _Split.of(X, fold.train, fold.test)
            train, test = Y[:, fold.train], Y[:, fold.test]
            theta = split.probe(head, layer, train[target], chosen, None, _TOLERANCE)
            losses = split.losses(head, layer, theta, test[target])
            probe[part, :, fold.test] = rearrange(losses.cpu().numpy(), "(l t) q -> l t q", t=len(Y))
            baseline[:, fold.test] = head.loss(head.constant(train).double(), test.double()).cpu().numpy()
            own = chosen[target == 0]
            penalty[part, index] = own.cpu().numpy()
            if index < null_folds and len(rows) > 1:
                null[:, part] += _permuted_losses(head, split, Y[0], fold, rows, own)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _Result(baseline, probe, penalty, 1 - null[0] / null[1])


def _choose(
    head: Head, split: _Split, fold: _Fold, Y: Tensor, layer: Tensor, target: Tensor, penalties: Sequence[float]
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


def _permuted_losses(
    head: Head, split: _Split, Y: Tensor, fold: _Fold, rows: np.ndarray, penalty: Tensor
) -> np.ndarray:
    """Summed held-out losses of probe and baseline under each of `rows`: [2, layer, permutation]."""
    depth, n, rank = split.rotation.scores.shape
    curvature = 20 * rank  # ten pairs of vectors as long as the weights
    stride = max(1, _BYTES // (Y.element_size() * depth * Y.shape[1] * (2 * n + curvature)))
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


def _frame(result: _Result, group: Sequence[str], bootstrap: int, level: float, seed: int) -> pd.DataFrame:
    """The columns that are made alike for both measures."""
    probe, baseline = result.probe.sum(2), result.baseline.sum(1)  # [layer, target], [target]
    low, high = share_interval(result.probe[:, 0], result.baseline[0], group, bootstrap, level=level, seed=seed)
    explained = 1 - probe / np.where(baseline > 0, baseline, np.nan)
    null_q95, p_value = maximum_null(result.statistic[:, 1:], result.statistic[:, 0])
    return pd.DataFrame(
        {
            "explained": explained[:, 0],
            "low": low,
            "high": high,
            "control": explained[:, 1],
            "selectivity": explained[:, 0] - explained[:, 1],
            "null_q95": null_q95,
            "p_value": p_value,
            "penalty": np.quantile(result.penalty, 0.5, axis=1, method="lower"),  # stays on the grid
            "n": len(group),
        }
    )


def _check(
    activations: np.ndarray, targets: int, layers: Sequence[str], group: Sequence[str], penalties: Sequence[float]
) -> None:
    if activations.ndim != 3:
        raise ValueError(f"activations have shape {activations.shape}; want [question, layer, d_model]")
    n, depth, _ = activations.shape
    if not n == targets == len(group) or depth != len(layers):
        raise ValueError(
            f"activations are for {n} questions and {depth} layers, but there are {targets} targets, "
            f"{len(group)} group labels and {len(layers)} layer names"
        )
    for index, name in enumerate(layers):
        finite = np.isfinite(activations[:, index]).all(1)
        if not finite.all():
            raise ValueError(f"activations of layer {name} at question {int(np.argmin(finite))} are not finite")
    if not len(penalties) or not min(penalties) > 0:
        raise ValueError(f"penalties are {list(penalties)}; want at least one, all positive")
