"""Does a probe of one run read another? Trained on each run, tested on each: a matrix of shares explained.

Knows activations of one layer, class distributions and groups of each run; nothing of models, styles or folders.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from probes.evaluation.ceiling import noise_ceiling
from probes.evaluation.controls import share_interval
from probes.evaluation.folds import group_folds
from probes.evaluation.rungwise import kl, log_marginal_of, predict_elsewhere
from probes.targets.closed import ClassTarget
from semcal.calibration.resampling import Resampling


@dataclass(frozen=True)
class ProbedRun:
    """What a probe of a run is trained and tested on.

    Attributes:
        name: of the run.
        activations: [question, d_model] at one layer and position.
        target: of all runs over one vocabulary (`probes.targets.closed.class_targets`).
        group: [question] questions that must not straddle a split; a name means the same group in every run.
    """

    name: str
    activations: np.ndarray
    target: ClassTarget
    group: Sequence[str]

    def __post_init__(self) -> None:
        n = len(self.target)
        if self.activations.ndim != 2 or not len(self.activations) == n == len(self.group):
            raise ValueError(
                f"{self.name}: activations {self.activations.shape}, {n} distributions and {len(self.group)} groups; "
                "expected [question, d_model] and one of each per question"
            )


@dataclass(frozen=True)
class TransferCell:
    """A probe trained on one run and tested on one.

    Attributes:
        trained_on, tested_on: names of runs.
        explained: 1 − Σ KL(π ‖ probe) / Σ KL(π ‖ marginal of the run tested on, learnt on its training folds): far
            below 0 for a probe that is confident and wrong, NaN where that run has nothing to explain.
        low, high: percentile interval, groups drawn with replacement, given the fitted probes.
        baseline_nats, probe_nats: mean KL to the marginal and to the probe.
        ceiling: share explainable at the M of the run tested on (`noise_ceiling`, approximate).
        covered: share of the mass of the run tested on that lies in classes which the run trained on shows at all.
        n: questions tested on.
    """

    trained_on: str
    tested_on: str
    explained: float
    low: float
    high: float
    baseline_nats: float
    probe_nats: float
    ceiling: float
    covered: float
    n: int


def transfer(
    runs: Sequence[ProbedRun],
    *,
    folds: int = 5,
    resampling: Resampling,
) -> list[TransferCell]:
    """Linear probes trained on each run and tested on each: one cell per pair, row by row of the matrix.

    Groups of questions are dealt to folds once, over all runs. For each fold a probe is trained on a run's questions
    outside it and tested on every run's questions inside it, so no probe is tested on a group that it was trained on.

    Args:
        runs: at least 2, of one d_model, whose activations mean the same (checkpoints, styles or questions of one
            model); each with at least as many groups as folds.
        folds: at least 2.
        resampling: of the intervals, the same within a column; its seed also deals folds and inner splits.

    Raises:
        ValueError: fewer than 2 runs, two of one name, different d_model, or a run with too few groups.
    """
    _check(runs, folds)
    seed = resampling.seed
    ends = np.cumsum([len(run.group) for run in runs])
    starts = ends - [len(run.group) for run in runs]
    Y = [run.target.distribution for run in runs]
    losses = [np.empty((len(runs) + 1, len(run.group))) for run in runs]  # a tested run: [trained run, question]
    everyone = [str(name) for run in runs for name in run.group]
    for train, test in group_folds(everyone, folds, seed=seed):
        fitted, held = ([rows[(rows >= s) & (rows < e)] - s for s, e in zip(starts, ends, strict=True)]
                        for rows in (train, test))  # fmt: skip
        held_out = [run.activations[rows] for run, rows in zip(runs, held, strict=True)]
        for i, (run, rows) in enumerate(zip(runs, fitted, strict=True)):
            names = [str(run.group[row]) for row in rows]
            if len(set(names)) < 2:
                raise ValueError(f"{run.name}: fewer than 2 groups outside one of {folds} folds; give more questions")
            found = predict_elsewhere(run.activations[rows], Y[i][rows], names, held_out, seed=seed)
            for j, log_q in enumerate(found):
                losses[j][i, held[j]] = kl(Y[j][held[j]], log_q)
            losses[i][-1, held[i]] = kl(Y[i][held[i]], log_marginal_of(Y[i][rows]))
    shown = [own.sum(0) > 0 for own in Y]
    columns = [_column(run, own_losses, shown, runs, resampling) for run, own_losses in zip(runs, losses, strict=True)]
    return [column[i] for i in range(len(runs)) for column in columns]


def _column(
    tested: ProbedRun,
    losses: np.ndarray,
    shown: Sequence[np.ndarray],
    runs: Sequence[ProbedRun],
    resampling: Resampling,
) -> list[TransferCell]:
    """Every probe on one run, from losses [trained run and the marginal last, question]."""
    probes, baseline = losses[:-1], losses[-1]
    low, high = share_interval(probes, baseline, tested.group, resampling)
    nats = float(baseline.mean())
    return [
        TransferCell(
            trained_on=run.name,
            tested_on=tested.name,
            explained=float(1 - probe.mean() / nats) if nats > 0 else float("nan"),
            low=float(low[i]),
            high=float(high[i]),
            baseline_nats=nats,
            probe_nats=float(probe.mean()),
            ceiling=noise_ceiling(tested.target, nats),
            covered=float(tested.target.distribution[:, shown[i]].sum(1).mean()),
            n=len(tested.target),
        )
        for i, (run, probe) in enumerate(zip(runs, probes, strict=True))
    ]


def _check(runs: Sequence[ProbedRun], folds: int) -> None:
    if len(runs) < 2:
        raise ValueError(f"{len(runs)} run; a probe is transferred from one run to another, so give at least 2")
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise ValueError(f"two runs are both called {max(names, key=names.count)!r}; give each its own name")
    first = runs[0]
    for run in runs:
        widths = first.activations.shape[1], run.activations.shape[1]
        if widths[0] != widths[1]:
            raise ValueError(
                f"{first.name} has {widths[0]} features and {run.name} has {widths[1]}: a probe of one cannot read the "
                "other; use checkpoints of one model"
            )
        if (groups := len(set(run.group))) < folds:
            raise ValueError(
                f"{run.name}: {groups} groups of questions cannot be split into {folds} folds; ask more questions"
            )
