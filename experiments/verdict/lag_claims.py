"""Along training, with a lag: does the KL gap of a cell fall before its calibration error does?

The rule, written before any such study was measured. A cell is a lineage, a dataset and a style; its checkpoints, at
least FEWEST_STEPS after step 0 and all asked the same questions, give two curves. A checkpoint of which more than
MOST_UNPARSED is unparsed or truncated is left out: its error says that it cannot write answers yet. The curves are over
log2(step): the KL gap of one rung, and the excess smECE. A curve is followed from its highest value on, since an
untrained model answers the same to every question, which is easy to predict and not calibrated. Its end is the mean of
the last ENDS checkpoints, and its half fall where it first comes half way down. A curve that does not certainly fall
has none, and its cell says so. The lag is the half fall of the error minus that of the gap, in doublings of training,
so it is > 0 where the gap falls first. Its mean over cells is tested against 0, by questions (the same blocks of them
left out at all checkpoints) and by lineages, which are training seeds.

Knows runs as `Measured` arrays, no files and no models.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import isfinite, nan

import numpy as np

from experiments.verdict.calibration_claims import Law, counted
from experiments.verdict.measured_run import Measured
from experiments.verdict.mechanism_claims import shared_rung
from experiments.verdict.rules import MOST_UNPARSED, Finding, Part
from semcal.arrays import FloatArray
from semcal.calibration.inference.mean_error import by_questions_and_models
from semcal.calibration.inference.paired import Leaves, contrast

FEWEST_STEPS = 12
ENDS = 2  # checkpoints whose mean a curve ends at
_UNIT = "doublings of training"


def with_lag(finding: Finding, runs: Sequence[Measured], law: Law) -> Finding:
    """H4 with what its checkpoints say of the lag, which decides nothing, as context."""
    return replace(finding, context=(*falls_first(runs, law), *finding.context))


def falls_first(runs: Sequence[Measured], law: Law) -> list[Part]:
    """A row for the mean lag, with p of "the gap does not fall first" and of "the error does not", and one a cell;
    none where no cell has enough checkpoints."""
    cells = trajectories(runs)
    rung = shared_rung([run for own in cells.values() for run in own])
    if not cells or rung is None:
        return []
    lags, rows = {}, []
    for (lineage, dataset, style), own in cells.items():
        gaps, errors = [run.kl_gaps[rung] for run in own], [run.excess for run in own]
        name = f"{lineage} · {dataset} · {style}"
        if flat := [what for what, curve in (("KL gap", gaps), ("error", errors)) if not certainly_falls(curve, law)]:
            rows.append(Part(f"{name}: its {' and its '.join(flat)} does not certainly fall", _UNIT, nan, nan, nan))
            continue
        found = lag([run.step or 0 for run in own], gaps, errors)
        lags.setdefault(lineage, []).append(found)
        rows.append(_row(name, [(1.0, found)], [], law))
    every = [one for own in lags.values() for one in own]
    if not every:
        return rows
    means = [float(np.mean([one.estimate for one in own])) for own in lags.values()]
    many = f"{counted(len(every), 'cell')} of {counted(len(lags), 'lineage')}"
    what = f"half fall of the error minus that of the KL gap ({rung}), mean of {many}"
    mean = _row(what, [(1 / len(every), one) for one in every], means, law)
    return [mean, *rows]


def trajectories(runs: Sequence[Measured]) -> dict[tuple[str, str, str], list[Measured]]:
    """(lineage, dataset, style) -> the probed checkpoints of a base model that can write answers, in the order of
    training, without step 0, where there are enough."""
    found: dict[tuple[str, str, str], list[Measured]] = {}
    able = [r for r in runs if r.stage == "base" and r.step and r.kl_gaps and r.in_distribution and _writes(r)]
    for run in sorted(able, key=lambda r: r.step or 0):
        found.setdefault((run.lineage or run.model, run.dataset, run.style), []).append(run)
    return {cell: own for cell, own in found.items() if len({r.step for r in own}) == len(own) >= FEWEST_STEPS}


def _writes(run: Measured) -> bool:
    return not (run.truncated > MOST_UNPARSED or run.unparsed_share > MOST_UNPARSED)  # NaN: nothing was truncated


def half_fall(log_steps: FloatArray, values: FloatArray) -> FloatArray:
    """Where curves, from their highest value on, first come half way down to their end; NaN where they never do.

    Args:
        log_steps: `[T]`, rising.
        values: `[..., T]`.

    Returns:
        `[...]` on the scale of `log_steps`, linear between checkpoints.
    """
    half = (values.max(axis=-1) + values[..., -ENDS:].mean(axis=-1))[..., None] / 2
    after = np.arange(len(log_steps)) > values.argmax(axis=-1)[..., None]
    there = after & (values <= half)
    at = there.argmax(axis=-1)[..., None]  # 0 where there is none, which the last line takes out
    before = np.maximum(at - 1, 0)
    above, below = (np.take_along_axis(values, i, -1) for i in (before, at))
    share = np.divide(above - half, above - below, out=np.ones_like(half), where=above > below)
    place = log_steps[before] + share * (log_steps[at] - log_steps[before])
    return np.where(there.any(axis=-1), place[..., 0], nan)


def certainly_falls(curve: Sequence[Leaves], law: Law) -> bool:
    """Whether the end of a curve is below its highest value by more than chance.

    The highest of many noisy values is above the end of a flat curve, too, so that its p is multiplied by the number of
    values that it was found among (Bonferroni 1936, which holds however checkpoints depend on each other).
    """
    among = curve[:-ENDS]
    top = max(among, key=lambda at: at.estimate)
    found = contrast([(1.0, top), *((-1 / ENDS, end) for end in curve[-ENDS:])])
    return found.p_above(0.0) * len(among) <= law.alpha


def lag(steps: Sequence[int], gaps: Sequence[Leaves], errors: Sequence[Leaves]) -> Leaves:
    """Half fall of the error minus half fall of the gap, in doublings of training.

    Args:
        steps: [T] of the checkpoints, from 1 on.
        gaps, errors: [T] of one stratum.
    """
    at = np.log2(np.asarray(steps, dtype=float))

    def falls(curve: Sequence[Leaves]) -> tuple[float, FloatArray]:
        whole, without = np.array([one.estimate for one in curve]), np.stack([one.without for one in curve], -1)
        return float(half_fall(at, whole)), half_fall(at, without)

    (gap, gap_without), (error, error_without) = falls(gaps), falls(errors)
    return Leaves(gaps[0].stratum, error - gap, error_without - gap_without)


def _row(what: str, terms: list[tuple[float, Leaves]], means: Sequence[float], law: Law) -> Part:
    found = by_questions_and_models(terms, means)
    reach = found.detectable(law.alpha)
    part = Part(what, _UNIT, found.estimate, *found.interval(law.level), reach=reach if isfinite(reach) else nan)
    return replace(part, p=found.p_above(0.0), p_against=found.p_below(0.0))
