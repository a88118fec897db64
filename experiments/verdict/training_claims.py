"""The intervention on training (H5): where training changed what can be predicted before an answer, and nothing else,
does calibration follow?

By the rules in `rules.py`; knows runs as `Measured` arrays, no files and no models.
"""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import isfinite, nan
from typing import Protocol, TypeVar

import numpy as np

from experiments.verdict.calibration_claims import (
    Figure,
    Law,
    Pair,
    Terms,
    cell_row,
    counted,
    error,
    excess,
    labels,
    mean_difference,
    row,
    standing,
    undecidable,
)
from experiments.verdict.measured_run import Measured
from experiments.verdict.mechanism_claims import shared_rung, telling_rungs
from experiments.verdict.rules import ALIKE, SMALL_GAP, Finding, Part
from experiments.verdict.stored_gaps import RUNGS
from probes.evaluation.result import BILINEAR, GENERATIVE
from semcal.calibration.inference.mean_error import by_questions_and_models
from semcal.calibration.inference.paired import Contrast

CONTROL = "direct"  # the arm that all others are compared with
HARDER = {"atlas-shuffles": "atlas-rings"}  # name of datasets whose chains have no short cut -> of those whose have
SEEDS = 3  # of training, at least: with fewer, how far they differ by chance is not known
_MISSING = "no base model of arm {} in cot next to another arm of its lineage, or to itself on other maps, with KL gaps"
_NO_RUNG = f"its cells share no rung; fit one of {', '.join(RUNGS)} in every cell"


class Trained(Protocol):
    """What is asked of a trained model, as far as it says with what it may be compared."""

    @property
    def arm(self) -> str: ...
    @property
    def lineage(self) -> str: ...
    @property
    def prompt(self) -> str: ...
    @property
    def dataset(self) -> str: ...


T = TypeVar("T", bound=Trained)


def training_moves(runs: Sequence[Measured], law: Law) -> Finding:
    """H5."""
    cells = [r for r in standing_arms(runs) if r.kl_gaps]
    contrasts = contrasts_of(cells)
    needed = list({r.label: r for pairs in contrasts.values() for pair in pairs for r in pair}.values())
    rung = shared_rung(needed)
    if lacks := _untested(contrasts, needed) or ("" if rung else _NO_RUNG):
        return Finding("H5", reason=lacks, runs=labels(needed))
    assert rung is not None
    context: list[Part] = []
    parts: list[Part] = []
    why_not: list[str] = []
    for what, pairs in contrasts.items():
        gap = _over_lineages(pairs, lambda r: r.kl_gaps[rung])
        context += [_row(what, f"KL gap ({rung}), nats", gap, law)]
        context += [
            Part(f"{what}, {lineage}", "accuracy", apart, nan, nan) for lineage, apart in _accuracy(pairs).items()
        ]
        context += [_row(what, "excess smECE", _over_lineages(pairs, excess), law)]
        if lacks := _unfit(what, pairs, gap, law):
            why_not.append(f"{what}: {lacks}")
            context.append(Part(f"left out, {lacks}: {what}", "excess smECE", nan, nan, nan))
        else:
            parts.append(_raised(what, pairs, law))
    for one in needed:
        context += [row(one.label, f"KL gap ({rung}), nats", [(1.0, one.kl_gaps[rung])], law)]
    lacks = "" if parts else "no contrast moved the gap at like accuracy: " + "; ".join(why_not)
    rows = tuple(cell_row(r, law) for r in needed)
    return Finding("H5", tuple(parts), tuple(context), undecidable=lacks, runs=labels(needed), cells=rows)


def _untested(contrasts: Mapping[str, Sequence[Pair]], needed: Sequence[Measured]) -> str:
    """Why nothing can be tested; "" if something can."""
    if not contrasts:
        return _MISSING.format(CONTROL)
    if not all(map(telling_rungs, needed)):
        most = max((r for r in needed if not telling_rungs(r)), key=lambda r: r.pooled)
        return (
            f"{most.pooled:.0%} of the mass of {most.label} lies in the pooled class, so its KL gap says how much is "
            f"pooled and not what is answered; fit {GENERATIVE} or {BILINEAR}, which pool nothing"
        )
    return too_few_lineages(contrasts)


def too_few_lineages(contrasts: Mapping[str, Sequence[tuple[Trained, Trained]]]) -> str:
    """How few lineages the contrast with most of them has, in words; "" if they are enough."""
    most = max(len({one.lineage for one, _ in pairs}) for pairs in contrasts.values())
    return "" if most >= SEEDS else f"arms of {counted(most, 'lineage')}, expected at least {SEEDS}"


def _unfit(what: str, pairs: Sequence[Pair], gap: Contrast, law: Law) -> str:
    """Why a contrast shows nothing; "" if it does."""
    if lacks := undecidable([r for pair in pairs for r in pair]):
        return lacks
    if lacks := too_few_lineages({what: pairs}):
        return lacks
    if gap.p_above(0.0) > law.alpha or gap.estimate < SMALL_GAP:
        found = f"the KL gap is raised by {gap.estimate:.2f} nats with p {gap.p_above(0.0):.2g}"
        return f"{found}, expected at least {SMALL_GAP:g} with p at most {law.alpha:.2g}"
    lineage, apart = max(_accuracy(pairs).items(), key=lambda found: abs(found[1]))
    if abs(apart) > ALIKE:
        return f"accuracy differs by {apart:+.3f} in {lineage}, expected at most {ALIKE:g} in each"
    return ""


def _accuracy(pairs: Sequence[Pair]) -> dict[str, float]:
    """Lineage -> by how much the mean accuracy of its pairs differs."""
    found: dict[str, list[float]] = {}
    for one, other in pairs:
        found.setdefault(one.lineage, []).append(float(one.correct.mean() - other.correct.mean()))
    return {lineage: float(np.mean(values)) for lineage, values in found.items()}


def standing_arms(runs: Sequence[Measured]) -> list[Measured]:
    """Runs in cot of base models with an arm, the last step of each."""
    arms = {r.arm for r in runs if r.arm}
    by_arm = [standing([r for r in runs if r.arm == arm and r.stage == "base"]) for arm in sorted(arms)]
    return [r for kept in by_arm for r in kept if r.style == "cot"]


def contrasts_of(cells: Sequence[T]) -> dict[str, list[tuple[T, T]]]:
    """What is compared -> pairs of cells of one lineage under one prompt, the one whose gap should be larger first.
    A dataset has one B in all of them (`study_verdict.check_alike`)."""
    found: dict[str, list[tuple[T, T]]] = {}
    for one, other in itertools.permutations(cells, 2):
        alike = (one.lineage, one.prompt) == (other.lineage, other.prompt)
        if alike and other.arm == CONTROL and (what := _less_control(one, other)):
            found.setdefault(what, []).append((one, other))
    return found


def _less_control(one: Trained, control: Trained) -> str:
    """What the difference of a cell from one of CONTROL is called; "" where they differ in more than one thing."""
    if one.arm != CONTROL:
        return f"{one.arm} − {CONTROL}" if one.dataset == control.dataset else ""
    for hard, easy in HARDER.items():
        which = one.dataset.removeprefix(hard)  # such as -4-stop
        if which != one.dataset and control.dataset == easy + which:
            return f"{one.dataset} − {control.dataset} ({CONTROL})"
    return ""


def _over_lineages(pairs: Sequence[Pair], figure: Figure, of_other: Figure | None = None) -> Contrast:
    """The mean over pairs of the difference, its error by questions and by training seeds."""
    by_seed: dict[str, list[float]] = {}
    for one, other in pairs:
        difference = figure(one).estimate - (of_other or figure)(other).estimate
        by_seed.setdefault(one.lineage, []).append(difference)
    terms: Terms = mean_difference(pairs, figure, of_other)
    return by_questions_and_models(terms, [float(np.mean(values)) for values in by_seed.values()])


def _row(what: str, unit: str, found: Contrast, law: Law) -> Part:
    reach = found.detectable(law.alpha)
    return Part(what, unit, found.estimate, *found.interval(law.level), reach=reach if isfinite(reach) else nan)


def _raised(what: str, pairs: Sequence[Pair], law: Law) -> Part:
    """To be shown: the error is raised, in excess and in smECE; contradicted by a raise certainly below delta."""
    raised, raw, most = (_over_lineages(pairs, *f) for f in ((excess,), (error,), (error, excess)))
    p = max(raised.p_above(0.0), raw.p_above(0.0))
    return replace(_row(what, "excess smECE", raised, law), shown="> 0", p=p, p_against=most.p_below(law.delta))
