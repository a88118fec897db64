"""Does a probe of one run read another? Trained on each run, tested on each: a matrix of KL gaps.

Knows activations of one layer of each run, groups of questions, and which activations are of one space; nothing of
models, styles or folders.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from probes.evaluation.folds import group_folds
from probes.evaluation.kl_gap import mean_intervals
from probes.transfer.linear_map import LinearMap, fit_map, squared_errors
from probes.transfer.read_outs import Part, ReadOut
from semcal.arrays import FloatArray, IntArray
from semcal.calibration.inference.bootstrap import groups
from semcal.calibration.resampling import Resampling


@dataclass(frozen=True)
class ProbedRun:
    """What a probe of a run reads.

    Attributes:
        name: of the run.
        activations: [question, d_model] at one layer and position.
        group: [question] questions that must not straddle a split; a name means the same group in every run.
        asked: [question] what the model read: equal in two runs where both read the same question in the same style.
        space: what the activations are of, e.g. a family of checkpoints; those of two spaces are mapped.
    """

    name: str
    activations: FloatArray
    group: Sequence[str]
    asked: Sequence[str]
    space: str = ""

    def __post_init__(self) -> None:
        n = len(self.group)
        if self.activations.ndim != 2 or not len(self.activations) == n == len(self.asked):
            raise ValueError(
                f"{self.name}: activations {self.activations.shape}, {n} groups and {len(self.asked)} questions; "
                "expected [question, d_model] and one of each per question"
            )


@dataclass(frozen=True)
class TransferCell:
    """A probe trained on one run and tested on one; nats.

    Attributes:
        trained_on, tested_on: names of runs.
        gap: KL gap of the probe on the questions of the run tested on; `low`, `high`: its interval, groups drawn with
            replacement, given the fitted probes; `at_least`, `at_most`: its bracket (`KLGap`).
        top: what of the gap concerns the top class.
        alone: the gap of the model of the same training questions without activations (marginal, candidates). Where a
            run is tested on itself, what there is to know.
        added: alone − gap, what activations add; below 0 they mislead. `added_low`, `added_high`: its interval.
        floor_q95: 95 % quantile of what a perfect predictor would be measured to have.
        covered: share of the mass of the run tested on that lies in classes which the run trained on shows at all.
        n: questions tested on.
        shared: questions that the map between the activations was learnt from; 0: none was needed.
        mapped: r² of that map on held-out questions; NaN without one.
        rank: its most frequent rank over folds; 0 without one.
    """

    trained_on: str
    tested_on: str
    gap: float
    low: float
    high: float
    at_least: float
    at_most: float
    top: float
    alone: float
    added: float
    added_low: float
    added_high: float
    floor_q95: float
    covered: float
    n: int
    shared: int = 0
    mapped: float = float("nan")
    rank: int = 0


def transfer(
    runs: Sequence[ProbedRun], read_out: ReadOut, *, folds: int = 5, resampling: Resampling
) -> list[TransferCell]:
    """Probes trained on each run and tested on each: one cell per pair, row by row of the matrix.

    Groups of questions are dealt to folds once, over all runs. For each fold a probe is trained on a run's questions
    outside it and tested on every run's questions inside it, so no probe is tested on a group that it was trained on.
    Activations of another space than the probe's are mapped into it; the map is learnt from questions outside the fold
    that runs of both spaces were asked alike.

    Args:
        runs: at least 2; each with at least as many groups as folds. Activations of one space have one width, and mean
            the same (checkpoints, styles or questions of one model).
        read_out: of the same runs, in this order.
        folds: at least 2.
        resampling: of the intervals, the same within a column; its seed also deals folds and inner splits.

    Raises:
        ValueError: fewer than 2 runs, two of one name, widths that differ within a space, two spaces that share no
            question, or a run with too few groups.
    """
    _check(runs, read_out, folds)
    seed, count = resampling.seed, len(runs)
    ends = np.cumsum([len(run.group) for run in runs])
    starts = ends - [len(run.group) for run in runs]
    # Of a run tested on: [probe of each run, then the same without activations; value].
    values = [np.empty((2 * count, len(read_out.values(j, np.arange(n))))) for j, n in enumerate(read_out.sizes)]
    maps: list[dict[_Spaces, _Fitted]] = []
    everyone = [str(name) for run in runs for name in run.group]
    for train, test in group_folds(everyone, folds, seed=seed):
        fitted, held = ([rows[(rows >= s) & (rows < e)] - s for s, e in zip(starts, ends, strict=True)]
                        for rows in (train, test))  # fmt: skip
        maps.append(_fit_maps(runs, fitted, held, seed))
        for i, run in enumerate(runs):
            learnt = _part(runs, i, fitted[i])
            if len(set(learnt.group)) < 2:
                raise ValueError(f"{run.name}: fewer than 2 groups outside one of {folds} folds; give more questions")
            elsewhere = [_part(runs, j, held[j], maps[-1].get((runs[j].space, run.space))) for j in range(count)]
            for j, (by_probe, alone) in enumerate(read_out.predict(learnt, elsewhere, seed=seed)):
                at = read_out.values(j, held[j])
                values[j][i, at], values[j][count + i, at] = by_probe, alone
    columns = [_column(runs, j, read_out, values[j], resampling) for j in range(count)]
    cells = [columns[j][i] for i in range(count) for j in range(count)]
    spaces = [(tested.space, trained.space) for trained in runs for tested in runs]
    return [_with_map(cell, runs, pair, maps) for cell, pair in zip(cells, spaces, strict=True)]


def _part(runs: Sequence[ProbedRun], index: int, rows: IntArray, made: _Fitted | None = None) -> Part:
    """Some questions of a run, their activations mapped where there is a map."""
    run, states = runs[index], runs[index].activations[rows]
    names = [str(run.group[row]) for row in rows]
    return Part(index, rows, states if made is None else made.map(states), names)


def _column(
    runs: Sequence[ProbedRun], tested: int, read_out: ReadOut, log_q: FloatArray, resampling: Resampling
) -> list[TransferCell]:
    """Every probe on one run, from values [probes and then models without activations, value]."""
    run, count = runs[tested], len(runs)
    found = read_out.gaps(tested, log_q, run.group, resampling)
    per_question = np.stack([gap.per_question for gap in found])
    index = groups(np.asarray(run.group), len(run.group)).index
    low, high = mean_intervals(per_question[count:] - per_question[:count], index, resampling)
    return [
        TransferCell(
            trained_on=runs[i].name,
            tested_on=run.name,
            gap=probe.gap,
            low=probe.low,
            high=probe.high,
            at_least=probe.at_least,
            at_most=probe.at_most,
            top=probe.top,
            alone=alone.gap,
            added=alone.gap - probe.gap,
            added_low=float(low[i]),
            added_high=float(high[i]),
            floor_q95=probe.floor_q95,
            covered=read_out.covered(i, tested),
            n=len(run.group),
        )
        for i, (probe, alone) in enumerate(zip(found[:count], found[count:], strict=True))
    ]


# ---- from one space to another ---------------------------------------------------------------------------------------

_Spaces = tuple[str, str]  # from, into


@dataclass(frozen=True)
class _Fitted:
    """A map learnt outside one fold, and how well it does inside: summed squared errors of it and of the mean."""

    map: LinearMap
    error: float
    baseline: float


def _fit_maps(
    runs: Sequence[ProbedRun], fitted: Sequence[IntArray], held: Sequence[IntArray], seed: int
) -> dict[_Spaces, _Fitted]:
    """Between any two spaces, from questions `fitted` of each run, tried on those `held` out."""
    names = dict.fromkeys(run.space for run in runs)
    found = {}
    for pair in ((a, b) for a in names for b in names if a != b):
        X, Y, group = _asked_alike(runs, pair, fitted)
        made = fit_map(X, Y, group, seed=seed)
        errors = squared_errors(made, *_asked_alike(runs, pair, held)[:2])
        found[pair] = _Fitted(made, *(float(own.sum()) for own in errors))
    return found


def _asked_alike(
    runs: Sequence[ProbedRun], pair: _Spaces, rows: Sequence[IntArray]
) -> tuple[FloatArray, FloatArray, list[str]]:
    """Activations of both spaces, and groups, for the questions that runs of both were asked alike."""
    X, Y, group = [], [], []
    for a, one in enumerate(runs):
        for b, other in enumerate(runs):
            if (one.space, other.space) != pair:
                continue
            place = {other.asked[row]: row for row in rows[b]}
            both = [(row, place[one.asked[row]]) for row in rows[a] if one.asked[row] in place]
            X.append(one.activations[[row for row, _ in both]])
            Y.append(other.activations[[row for _, row in both]])
            group += [str(one.group[row]) for row, _ in both]
    return np.concatenate(X), np.concatenate(Y), group


def _with_map(
    cell: TransferCell, runs: Sequence[ProbedRun], pair: _Spaces, maps: Sequence[dict[_Spaces, _Fitted]]
) -> TransferCell:
    """The cell with what is known of the map behind it."""
    made = [own[pair] for own in maps if pair in own]
    if not made:
        return cell
    asked = [{key for run in runs if run.space == space for key in run.asked} for space in pair]
    baseline = sum(own.baseline for own in made)
    r2 = 1 - sum(own.error for own in made) / baseline if baseline > 0 else float("nan")
    rank = Counter(own.map.rank for own in made).most_common(1)[0][0]
    return replace(cell, shared=len(asked[0] & asked[1]), mapped=r2, rank=rank)


def _check(runs: Sequence[ProbedRun], read_out: ReadOut, folds: int) -> None:
    if len(runs) < 2:
        raise ValueError(f"{len(runs)} run; a probe is transferred from one run to another, so give at least 2")
    names = [run.name for run in runs]
    if len(set(names)) < len(names):
        raise ValueError(f"two runs are both called {max(names, key=names.count)!r}; give each its own name")
    if (sizes := [len(run.group) for run in runs]) != read_out.sizes:
        raise ValueError(f"targets of {read_out.sizes} questions for runs of {sizes}; expected one per question")
    first: dict[str, ProbedRun] = {}
    for run in runs:
        like = first.setdefault(run.space, run)
        if (widths := (like.activations.shape[1], run.activations.shape[1])) != widths[::-1]:
            raise ValueError(
                f"{like.name} has {widths[0]} features and {run.name} has {widths[1]}; expected one width in one space"
            )
        if (count := len(set(run.group))) < folds:
            raise ValueError(
                f"{run.name}: {count} groups of questions cannot be split into {folds} folds; ask more questions"
            )
    asked = {space: {key for run in runs if run.space == space for key in run.asked} for space in first}
    for one in first:
        for other in first:
            if one != other and not asked[one] & asked[other]:
                raise ValueError(
                    f"{first[one].name} and {first[other].name} are of different models, and no question was asked of "
                    "both in one style, from which a map between their activations could be learnt; run one dataset "
                    "and style with both models, and name these runs too"
                )
