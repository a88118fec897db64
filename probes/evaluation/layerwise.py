"""Cross-validated predictability: how much of a target linear probes explain on unseen questions, layer by layer.

Knows activations, targets and groups of questions; nothing of models or of how the activations were captured. Every
choice (standardisation, axes, penalty) is made on training groups only; no layer is chosen, all are reported.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from probes.activations.layers import Layers
from probes.evaluation.controls import (
    confidence_strata,
    control_target,
    exchange_between_groups,
    maximum_null,
    noise_ceiling,
    permuted_rows,
)
from probes.evaluation.cross_validation import Scores, Source, cross_validate
from probes.evaluation.folds import group_folds, nested_folds
from probes.evaluation.reliability import reliability
from probes.evaluation.result import COLUMNS, Ceiling, Evaluation, Seeds, evaluation
from probes.solver.heads import RidgeHead, SoftmaxHead
from probes.targets.closed import ClassTarget

__all__ = ["COLUMNS", "PENALTIES", "Evaluation", "evaluate", "evaluate_scalar", "group_folds"]

PENALTIES = (1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4, 1e5)


def evaluate(
    activations: np.ndarray | Source,
    target: ClassTarget,
    *,
    layers: Sequence[str] | None = None,
    group: Sequence[str],
    name: str = "classes",
    rung: str = "linear",
    ceiling: Ceiling | None = None,
    folds: int = 5,
    penalties: Sequence[float] = PENALTIES,
    permutations: int = 100,
    null_folds: int = 1,
    bootstrap: int = 1000,
    level: float = 0.95,
    seed: int,
    device: str = "cpu",
) -> Evaluation:
    """Predictability of the class distribution `π_x` from each layer: `.frame` has a row a layer, columns `COLUMNS`.

    - `explained`: 1 − Σ KL(π ‖ probe) / Σ KL(π ‖ marginal of the training fold), over all questions, each predicted by
      the fold that held its group out. 1 perfect, 0 as good as the marginal, below 0 worse than it.
    - `low`, `high`: percentile interval, groups drawn with replacement. The probes are not refitted: it is the
      uncertainty over questions given the fitted probes. What the best read-out would explain lies a little higher,
      for probes learn from finitely many questions: `probes.evaluation.learning_curve` shows whether more would help.
    - `ceiling`, `ceiling_low`: share explainable given M samples a question, from two sides: `noise_ceiling` is rather
      too high, `probes.evaluation.reliability` a lower bound. `reliability`: the like in squared error, by halves.
      `of_ceiling` with its interval: explained / ceiling, as base and tuned models are compared; if anything too low.
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
    "not known": see the rungs above linear probes (`probes.rungs`).

    Args:
        activations: [question, layer, d_model], finite; or `Layers`, which are read a part at a time; or `Texts`.
        target: [question, class] and M.
        layers: names of the layers; None where `activations` knows them.
        group: [question], questions that must not straddle a split.
        name: of the target, for the column `target`.
        rung: for the column `rung`, e.g. "baseline:random-init".
        ceiling: None: estimated from M. Give `Ceiling()` for targets with sampling noise that M does not tell
            (`ranked_target`).
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
    source = _source(activations, layers)
    _check(len(target), group, penalties)
    seeds = Seeds.of(seed)
    control = control_target(target, group, confidence_strata(target), seeds.control)
    scores = cross_validate(
        SoftmaxHead(),
        source,
        np.stack([target.distribution, control.distribution]),
        folds=nested_folds(group, folds, seeds.folds),
        penalties=penalties,
        rows=permuted_rows(group, permutations, seed=seeds.null),
        null_folds=null_folds,
        device=device,
    )
    return evaluation(
        scores.probe[:, 0],
        scores.baseline[0],
        rung=rung,
        target=name,
        layers=source.names,
        measure="kl_explained",
        ceiling=ceilings(target, float(scores.baseline[0].mean()), seed=seed) if ceiling is None else ceiling,
        group=group,
        bootstrap=bootstrap,
        level=level,
        seed=seeds.bootstrap,
        columns={"n_classes": len(target.classes)} | _batched(scores),
    )


def evaluate_scalar(
    activations: np.ndarray | Source,
    y: np.ndarray,
    *,
    name: str,
    layers: Sequence[str] | None = None,
    group: Sequence[str],
    rung: str = "linear",
    noise_variance: float | None = None,
    folds: int = 5,
    penalties: Sequence[float] = PENALTIES,
    permutations: int = 100,
    bootstrap: int = 1000,
    level: float = 0.95,
    seed: int,
    device: str = "cpu",
) -> Evaluation:
    """Predictability of a scalar (B-confidence, semantic entropy) by ridge regression: as `evaluate`, same columns.

    `explained` is r²: 1 − Σ (y − probe)² / Σ (y − mean of the training fold)². The control task gives every question
    the value of another group's; the null is over all folds, ridge being cheap. `ceiling` is 1 − noise_variance / mean
    squared baseline error. `n_classes` is 0 and the columns in nats are NaN.

    Args:
        activations: [question, layer, d_model], finite; or `Layers`, or `Texts`.
        y: [question], finite.
        name: of the target, for the column `target`.
        noise_variance: mean sampling variance of y (`reliability.sampling_variance`); None: `ceiling` is NaN.

    The others, and the errors, as in `evaluate`.
    """
    source = _source(activations, layers)
    _check(len(y), group, penalties)
    if not np.isfinite(y).all():
        raise ValueError(f"{name} is not finite at question {int(np.argmin(np.isfinite(y)))}; leave the question out")
    seeds = Seeds.of(seed)
    donor = exchange_between_groups(group, np.zeros(len(y), dtype=int), seed=seeds.control)
    scores = cross_validate(
        RidgeHead(),
        source,
        np.stack([y, y[donor]])[:, :, None],
        folds=nested_folds(group, folds, seeds.folds),
        penalties=penalties,
        rows=permuted_rows(group, permutations, seed=seeds.null),
        null_folds=folds,
        device=device,
    )
    baseline = float(scores.baseline[0].mean())
    known = noise_variance is not None and baseline > 0
    return evaluation(
        scores.probe[:, 0],
        scores.baseline[0],
        rung=rung,
        target=name,
        layers=source.names,
        measure="r2",
        ceiling=Ceiling(float(np.clip(1 - (noise_variance or 0.0) / baseline, 0, 1))) if known else Ceiling(),
        group=group,
        bootstrap=bootstrap,
        level=level,
        seed=seeds.bootstrap,
        columns={"n_classes": 0} | _batched(scores),
    )


def ceilings(target: ClassTarget, baseline: float, *, seed: int) -> Ceiling:
    """Both sides of the ceiling of a target whose baseline is off by `baseline` nats."""
    if not baseline > 0:
        return Ceiling()
    among = reliability(target, seed=seed)
    low = float(np.clip(among.nats / baseline, 0, 1))
    return Ceiling(noise_ceiling(target, baseline), low, among.stepped_up)


def _batched(scores: Scores) -> dict[str, Any]:
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


def _source(activations: np.ndarray | Source, layers: Sequence[str] | None) -> Source:
    if isinstance(activations, np.ndarray):
        if layers is None:
            raise ValueError("activations are an array, which does not name its layers; give layers=[...]")
        return Layers.of(activations, layers)
    if layers is not None:
        raise ValueError("these activations name their layers; leave layers out, or pick some with Layers.only")
    return activations


def _check(targets: int, group: Sequence[str], penalties: Sequence[float]) -> None:
    if targets != len(group):
        raise ValueError(f"{targets} targets and {len(group)} group labels; want one each a question")
    if not len(penalties) or not min(penalties) > 0:
        raise ValueError(f"penalties are {list(penalties)}; want at least one, all positive")
