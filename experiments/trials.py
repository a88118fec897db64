"""Each hypothesis put to the runs it is about, by the rules in `hypotheses.py`.

Knows runs as `Measured` arrays and tables; knows no files and no models.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from math import nan

from experiments.evidence import Measured
from experiments.hypotheses import Finding, Part
from semcal.calibration import Contrast, Leaves, contrast, equivalence_of, loss_equivalence

PREFERENCE = ("dpo", "grpo", "rl", "instruct")
SHORT = ("concise", "sentence")

Figure = Callable[[Measured], Leaves]
Pair = tuple[Measured, Measured]  # the run of interest, then the one it is held against
Terms = list[tuple[float, Leaves]]


@dataclass(frozen=True)
class Law:
    """The numbers that the rules are made with.

    Attributes:
        delta: the smallest calibration error that counts.
        level: of intervals; 1 - level is alpha.
        draws: simulated data sets of each equivalence test.
        seed: of all that is drawn.
    """

    delta: float = 0.05
    level: float = 0.95
    draws: int = 400
    seed: int = 0

    @property
    def alpha(self) -> float:
        return 1 - self.level

    @property
    def least_loss(self) -> float:
        """Nats that a model with a calibration error of delta leaves at least: 2 delta² (Pinsker, Jensen)."""
        return 2 * self.delta**2


def excess(run: Measured) -> Leaves:
    return run.excess


def gap(run: Measured) -> Leaves:
    return run.gap


def loss(run: Measured) -> Leaves:
    assert run.loss is not None
    return run.loss


# ---- which runs ----------------------------------------------------------------------------------------------------


def standing(runs: Sequence[Measured]) -> list[Measured]:
    """The runs without checkpoints that a later one of the same stage, or the finished model, stands for."""
    kept = []
    for run in runs:
        kin = [r for r in runs if (r.lineage, r.stage, r.prompt) == (run.lineage, run.stage, run.prompt)]
        finished = any(r.step is None for r in kin)
        last = max((r.step for r in kin if r.step is not None), default=None)
        if run.step is None or (not finished and run.step == last):
            kept.append(run)
    return kept


def of_stage(runs: Iterable[Measured], stages: Sequence[str], styles: Sequence[str] = SHORT) -> list[Measured]:
    return [r for r in runs if r.stage in stages and r.style in styles]


def beside_base(runs: Sequence[Measured], stages: Sequence[str], prompt: str, styles: Sequence[str]) -> list[Pair]:
    """Tuned runs under a prompt, each with its base model's run of the same dataset and style, few-shot."""
    bases = {(r.lineage, r.dataset, r.style): r for r in runs if r.stage == "base" and r.prompt == "few-shot"}
    tuned = [r for r in of_stage(runs, stages, styles) if r.prompt == prompt]
    return [(r, bases[key]) for r in tuned if (key := (r.lineage, r.dataset, r.style)) in bases]


# ---- what is shown -------------------------------------------------------------------------------------------------


def mean_difference(pairs: Sequence[Pair], figure: Figure) -> Terms:
    share = 1 / len(pairs)
    return [term for one, other in pairs for term in ((share, figure(one)), (-share, figure(other)))]


def row(what: str, unit: str, found: Contrast, law: Law) -> Part:
    """A figure that stands beside: two-sided p is not asked of it."""
    return Part(what, unit, found.estimate, *found.interval(law.level), reach=found.detectable(law.alpha))


def above(what: str, unit: str, terms: Terms, law: Law, matters: float) -> Part:
    """To be shown: > 0; contradicted if it is less than what `matters`."""
    found = contrast(terms)
    ends = found.interval(law.level)
    against, reach = found.p_below(matters), found.detectable(law.alpha)
    return Part(what, unit, found.estimate, *ends, "> 0", found.p_above(0.0), against, reach)


def below(what: str, unit: str, terms: Terms, law: Law, bound: float) -> Part:
    """To be shown: < bound; contradicted if it is more."""
    found = contrast(terms)
    ends = found.interval(law.level)
    reach = found.detectable(law.alpha)
    return Part(what, unit, found.estimate, *ends, f"< {bound:g}", found.p_below(bound), found.p_above(bound), reach)


def calibrated(run: Measured, law: Law) -> Part:
    """Its error is less than delta."""
    found = contrast([(1.0, run.excess)])
    what, ends = run.label, found.interval(law.level)
    shown = f"error < {law.delta:g}"
    if run.chances is None:  # several correct classes and no log-probabilities: nobody knows its calibrated twins
        return Part(what, "excess smECE", found.estimate, *ends, shown)
    test = equivalence_of(
        run.chances,
        run.confidence,
        run.correct,
        delta=law.delta,
        alpha=law.alpha,
        draws=law.draws,
        seed=law.seed,
    )
    against = found.p_above(law.delta)
    return Part(what, "excess smECE", found.estimate, *ends, shown, test.p_value, against, test.within)


def no_loss(run: Measured, law: Law) -> Part:
    """Its loss gap is less than that of an error of delta."""
    shown = f"< that of an error of {law.delta:g}"
    if run.loss is None or run.chances is None:
        return Part(run.label, "nats", nan, nan, nan, shown)
    found = contrast([(1.0, run.loss)])
    settings = {"delta": law.delta, "draws": law.draws, "seed": law.seed}
    p = loss_equivalence(run.chances, run.loss_gap, m=run.smoothing, group=run.group, **settings)
    against, reach = found.p_above(law.least_loss), found.detectable(law.alpha)
    return Part(run.label, "nats", found.estimate, *found.interval(law.level), shown, p, against, reach)


def labels(runs: Iterable[Measured]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(r.label for r in runs))


# ---- H1, H2, H3, H6 ------------------------------------------------------------------------------------------------


def base_calibrated(runs: Sequence[Measured], law: Law) -> Finding:
    bases = of_stage(standing(runs), ["base"])
    if not bases:
        return Finding("H1", reason="no scored run of a model of stage base in concise or sentence")
    parts = [part for run in bases for part in (calibrated(run, law), no_loss(run, law))]
    return Finding("H1", tuple(parts), runs=labels(bases))


def tuning_harms(runs: Sequence[Measured], law: Law, prompt: str) -> Finding:
    key, kept = "H2" if prompt == "chat" else "H2 same prompt", standing(runs)
    how = "under chat" if prompt == "chat" else "few-shot"
    tuned, sft = (beside_base(kept, stages, prompt, SHORT) for stages in (PREFERENCE, ["sft"]))
    along = [pair for stages in (PREFERENCE, ["sft"]) for pair in beside_base(kept, stages, prompt, ["cot"])]
    beside = [
        row(f"{one.label} − base", unit, contrast(mean_difference([(one, base)], figure)), law)
        for one, base in (*tuned, *sft, *along)
        for unit, figure in (("excess smECE", excess), ("signed gap", gap))
    ]
    seen = labels(run for pair in (*tuned, *sft) for run in pair)
    if not tuned or not sft:
        lacks = "dpo, grpo, rl or instruct" if not tuned else "sft"
        reason = f"no model of stage {lacks} {how} beside its few-shot base in concise or sentence"
        return Finding(key, beside=tuple(beside), reason=reason, runs=seen)
    raised, kept_calibrated = mean_difference(tuned, excess), mean_difference(sft, excess)
    apart = raised + [(-weight, its) for weight, its in kept_calibrated]
    parts = (
        above("preference tuned − base", "excess smECE", raised, law, law.delta),
        above("preference tuned − base", "signed gap", mean_difference(tuned, gap), law, law.delta),
        above("preference tuned − SFT", "excess smECE", apart, law, law.delta),
        below("SFT − base", "excess smECE", kept_calibrated, law, law.delta),
    )
    return Finding(key, parts, tuple(beside), runs=seen)


def thinking_harms(runs: Sequence[Measured], law: Law) -> Finding:
    bases = of_stage(standing(runs), ["base"], [*SHORT, "cot"])
    places = {(r.model, r.dataset): r for r in bases if r.style == "cot"}
    short = [r for r in bases if r.style in SHORT and (r.model, r.dataset) in places]
    if not short:
        return Finding("H3", reason="no model of stage base has both cot and concise or sentence on one dataset")
    pairs = [(places[r.model, r.dataset], r) for r in short]
    beside = [row("cot − short, mean", "signed gap", contrast(_by_place(pairs, gap)), law)]
    beside += [
        row(f"{cot.label} − {one.style}", unit, contrast(mean_difference([(cot, one)], figure)), law)
        for cot, one in pairs
        for unit, figure in (("excess smECE", excess), ("signed gap", gap))
    ]
    part = above("cot − short, mean", "excess smECE", _by_place(pairs, excess), law, law.delta)
    return Finding("H3", (part,), tuple(beside), runs=labels(run for pair in pairs for run in pair))


def _by_place(pairs: Sequence[Pair], figure: Figure) -> Terms:
    """The mean over models and datasets, each alike, however many short styles it has."""
    places = {(cot.model, cot.dataset): [p for p in pairs if p[0] is cot] for cot, _ in pairs}
    return [(weight / len(places), its) for own in places.values() for weight, its in mean_difference(own, figure)]


def loss_left(runs: Sequence[Measured], law: Law) -> Finding:
    kept = standing(runs)
    bases = of_stage(kept, ["base"])
    tuned, sft = ([r for r in of_stage(kept, s) if r.prompt == "chat" and r.loss] for s in (PREFERENCE, ["sft"]))
    beside = [row(run.label, "nats", contrast([(1.0, loss(run))]), law) for run in (*tuned, *sft)]
    parts = tuple(no_loss(run, law) for run in bases)
    if not bases or not tuned:
        lacks = "base" if not bases else "dpo, grpo, rl or instruct under chat"
        reason = f"no model of stage {lacks} with a loss gap in concise or sentence"
        return Finding("H6", beside=(*parts, *beside), reason=reason, runs=labels([*bases, *tuned]))
    terms = [(1 / len(tuned), loss(run)) for run in tuned]
    parts = (*parts, above("preference tuned, mean", "nats", terms, law, law.least_loss))
    return Finding("H6", parts, tuple(beside), runs=labels([*bases, *tuned, *sft]))
