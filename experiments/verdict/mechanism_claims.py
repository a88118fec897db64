"""The mechanism put to the test (H4): where a model's class distribution is easy to predict before it answers, is it
calibrated?

By the rules in `rules.py`; knows runs as `Measured` arrays, no files and no models.
"""

from collections.abc import Sequence
from dataclasses import replace
from math import nan

import numpy as np
from scipy.stats import t

from experiments.verdict.calibration_claims import (
    Law,
    cell_row,
    counted,
    in_and_out,
    labels,
    of_stage,
    outside,
    p_of_mean_error,
    row,
    standing,
    undecidable,
)
from experiments.verdict.measured_run import Measured
from experiments.verdict.rules import SMALL_GAP, Finding, Part
from experiments.verdict.stored_gaps import RUNGS
from probes.evaluation.result import OPEN_RUNGS
from probes.targets.closed import MOST_POOLED
from semcal.calibration.inference.errors_in_variables import slope
from semcal.calibration.inference.paired import Contrast, contrast, holm

FEWEST = 4  # cells; a line through three says too little
STYLES = ("concise", "sentence", "cot", "continuation")


def predictability_helps(runs: Sequence[Measured], law: Law) -> Finding:
    """H4, on the first of RUNGS that every cell has."""
    able, others = in_and_out(_one_prompt(of_stage(standing(runs), ["base", "sft"], STYLES)))
    probed, context = [r for r in able if r.kl_gaps], outside(others, law)
    cells = [r for r in probed if telling_rungs(r)]
    if len(cells) < FEWEST:
        return Finding("H4", context=tuple(context), reason=_too_few(probed, cells), runs=labels(cells))
    rung = shared_rung(cells)
    if rung is None:
        reason = f"its cells share no rung; fit one of {', '.join(RUNGS)} in every cell"
        return Finding("H4", context=tuple(context), reason=reason, runs=labels(cells))
    gaps = [kl_gap(r, rung) for r in cells]
    context += [*within_styles(cells, rung, law), *along_training(runs, rung, law)]
    context += [_gap_row(r, gap, law, rung) for r, gap in zip(cells, gaps, strict=True)]
    context += [row(r.label, "excess smECE", [(1.0, r.excess)], law) for r in cells]
    pooled = [r for r in probed if not telling_rungs(r)]
    context += [Part(f"left out, {r.pooled:.0%} pooled: {r.label}", "excess smECE", nan, nan, nan) for r in pooled]
    return Finding(
        "H4",
        mechanism_parts(cells, rung, law),
        tuple(context),
        undecidable=undecidable(cells),
        runs=labels(cells),
        cells=tuple(cell_row(r, law) for r in cells),
    )


def telling_rungs(run: Measured) -> list[str]:
    """The rungs whose KL gap says what is answered: those of closed classes do not where many classes are pooled."""
    return [rung for rung in run.kl_gaps if rung in OPEN_RUNGS or run.pooled <= MOST_POOLED]


def shared_rung(cells: Sequence[Measured]) -> str | None:
    """The first of RUNGS that every cell has."""
    return next((rung for rung in RUNGS if all(rung in telling_rungs(r) for r in cells)), None)


def mechanism_parts(cells: Sequence[Measured], rung: str, law: Law) -> tuple[Part, Part]:
    """To be shown: no cell with a small KL gap is miscalibrated, and the error grows with the gap."""
    gaps = [kl_gap(r, rung) for r in cells]
    return _small_gaps(cells, law), _slope(cells, gaps, law, rung)


def within_styles(cells: Sequence[Measured], rung: str, law: Law) -> list[Part]:
    """The slope among the cells of each style that has enough of them, where style cannot explain it, and among those
    of one style on one kind of dataset, where that cannot either."""
    found = []
    for style in STYLES:
        own = [r for r in cells if r.style == style]
        if FEWEST <= len(own) < len(cells):
            found.append(_slope_beside(style, own, rung, law))
        for kind in dict.fromkeys(kind_of(r.dataset) for r in own):
            same = [r for r in own if kind_of(r.dataset) == kind]
            if FEWEST <= len(same) < len(own):
                found.append(_slope_beside(f"{style}, {kind}", same, rung, law))
    return found


def kind_of(dataset: str) -> str:
    """The name of a dataset without what grades it: `atlas-routes` of `atlas-routes-4-stop`."""
    return "-".join(dataset.split("-")[:2])


def along_training(runs: Sequence[Measured], rung: str, law: Law) -> list[Part]:
    """The slope among all checkpoints that can write answers, step 0 left out, where there are any."""
    able, _ = in_and_out(_one_prompt(of_stage(runs, ["base", "sft"], STYLES)))
    written = [r for r in able if r.step != 0 and not undecidable([r]) and rung in telling_rungs(r)]
    if len(written) < FEWEST or not any(r not in standing(runs) for r in written):
        return []
    return [_slope_beside("along training", written, rung, law)]


def _slope_beside(what: str, cells: Sequence[Measured], rung: str, law: Law) -> Part:
    part = _slope(cells, [kl_gap(r, rung) for r in cells], law, rung)
    return replace(part, what=f"{what}: {part.what}", shown="")


def _too_few(probed: Sequence[Measured], cells: Sequence[Measured]) -> str:
    if not probed:
        return "no run of a model of stage base or sft was probed on a dataset in distribution; see probes.enabled"
    if len(cells) < len(probed):
        most = max(probed, key=lambda r: r.pooled)
        return (
            f"{most.pooled:.0%} of the mass of {most.label} lies in the pooled class, so its KL gap says how much is "
            f"pooled and not what is answered; {len(cells)} cells are left, expected at least {FEWEST}"
        )
    return f"only {counted(len(cells), 'cell')} with a KL gap; expected at least {FEWEST}"


def _one_prompt(runs: Sequence[Measured]) -> list[Measured]:
    """Each weights under one prompt, their natural one if it was run: the same weights twice are not two models."""
    prompts: dict[str, set[str]] = {}
    for run in runs:
        prompts.setdefault(run.weights, set()).add(run.prompt)

    def chosen(run: Measured) -> str:
        natural = "few-shot" if run.stage == "base" else "chat"
        return natural if natural in prompts[run.weights] else run.prompt

    return [run for run in runs if run.prompt == chosen(run)]


def kl_gap(run: Measured, rung: str) -> Contrast:
    """The KL gap, at least 0."""
    found = contrast([(1.0, run.kl_gaps[rung])])
    return replace(found, estimate=max(found.estimate, 0.0))


def _highest(run: Measured, law: Law) -> float:
    """One-sided upper bound of the KL gap of the best predictor that was fitted: the least bound of its rungs, each at
    alpha over their number; infinite where no error is known."""
    gaps = [kl_gap(run, rung) for rung in telling_rungs(run)]
    level = 1 - law.alpha / len(gaps)
    bounds = [g.estimate + float(t.ppf(level, g.freedom)) * g.standard_error for g in gaps if g.standard_error > 0]
    return min(bounds, default=float("inf"))


def _gap_row(run: Measured, gap: Contrast, law: Law, rung: str) -> Part:
    return Part(run.label, f"KL gap ({rung}), nats", gap.estimate, *gap.interval(law.level))


def _small_gaps(cells: Sequence[Measured], law: Law) -> Part:
    """Cells that are easily predictable: their mean error is below delta, and none is certainly above it."""
    small = [r for r in cells if _highest(r, law) < SMALL_GAP]
    what, shown = f"{len(small)} of {len(cells)} cells with a gap < {SMALL_GAP:g}", f"mean < {law.delta:g}, none above"
    if not small:
        return Part(what, "excess smECE", nan, nan, nan, shown)
    found = [contrast([(1.0, r.excess)]) for r in small]
    p = holm([one.p_above(law.delta) for one in found])
    worst = int(p.argmin())
    violated = bool(p[worst] <= law.alpha)
    figures = (found[worst].estimate, *found[worst].interval(law.level))
    least = 1.0 if violated else p_of_mean_error(small, law)
    return Part(f"{what}, worst {small[worst].label}", "excess smECE", *figures, shown, least, float(p[worst]))


def _slope(cells: Sequence[Measured], gaps: Sequence[Contrast], law: Law, rung: str) -> Part:
    """Of excess on gap, errors in both."""
    found = [contrast([(1.0, r.excess)]) for r in cells]
    x, y = np.array([gap.estimate for gap in gaps]), np.array([one.estimate for one in found])
    kin, places = [r.lineage or r.model for r in cells], [place_of(r) for r in cells]
    alone = len({(of, r.stage) for of, r in zip(kin, cells, strict=True)}) == len({r.model for r in cells})
    many = f"{counted(len(cells), 'cell')} of {counted(len(set(kin)), 'lineage')}"
    what = f"slope on the KL gap ({rung}), {many} in {counted(len(set(places)), 'place')}"
    errors = ([gap.standard_error for gap in gaps], [one.standard_error for one in found])
    # Checkpoints drift together, so of fewer than three lineages they show nothing; nor do two places.
    if not np.isfinite(errors).all() or (len(set(kin)) < 3 and not alone) or len(set(places)) < 3:
        return Part(what, "smECE per nat", nan, nan, nan, "> 0")
    line = slope(x, y, *errors, clusters=[places, kin] if len(set(kin)) >= 3 else [places])
    figures = (line.estimate, *line.interval(law.level))
    return Part(what, "smECE per nat", *figures, "> 0", line.p_positive, reach=line.detectable(law.alpha))


def place_of(run: Measured) -> tuple[str | None, ...]:
    """What cells of different lineages have in common: the same questions, asked alike, of models trained alike."""
    return (run.dataset, run.style, run.stage, run.arm, run.prompt)
