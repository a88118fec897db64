"""H1, H2, H3 and H6 tested on the runs they are about, by the rules in `rules.py`.

Knows runs as `Measured` arrays and tables; knows no files and no models.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import nan
from operator import attrgetter
from typing import Any

from experiments.verdict.measured_run import Measured
from experiments.verdict.rules import Finding, Part
from semcal.calibration.inference.equivalence import equivalence, loss_equivalence
from semcal.calibration.inference.paired import Leaves, contrast
from semcal.calibration.resampling import Resampling

PREFERENCE = ("dpo", "grpo", "rl", "instruct")
SHORT = ("concise", "sentence")

Figure = Callable[[Measured], Leaves]
Pair = tuple[Measured, Measured]  # the run of interest, then the one it is compared with
Terms = list[tuple[float, Leaves]]


@dataclass(frozen=True)
class Law:
    """The numbers in the rules: the smallest calibration error that counts, the level of intervals (1 - alpha), and the
    simulated data sets of each equivalence test."""

    delta: float = 0.05
    level: float = 0.95
    null_draws: int = 400
    seed: int = 0

    @property
    def alpha(self) -> float:
        return 1 - self.level

    @property
    def least_loss(self) -> float:
        """The least loss, in nats, that a calibration error of delta leaves to recover: 2 delta² (Pinsker, Jensen)."""
        return 2 * self.delta**2


excess: Figure = attrgetter("excess")
error: Figure = attrgetter("error")
gap: Figure = attrgetter("gap")
loss: Figure = attrgetter("loss")


# ---- which runs ----------------------------------------------------------------------------------------------------


def standing(runs: Sequence[Measured]) -> list[Measured]:
    """The runs, without checkpoints that a later one of the same stage, or the finished model, represents."""
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


def paired_with_base(runs: Sequence[Measured], stages: Sequence[str], prompt: str, styles: Sequence[str]) -> list[Pair]:
    """Tuned runs under a prompt, each paired with its base model's few-shot run of the same dataset and style."""
    bases = {(r.lineage, r.dataset, r.style): r for r in runs if r.stage == "base" and r.prompt == "few-shot"}
    tuned = [r for r in of_stage(runs, stages, styles) if r.prompt == prompt]
    return [(r, bases[key]) for r in tuned if (key := (r.lineage, r.dataset, r.style)) in bases]


# ---- what is shown -------------------------------------------------------------------------------------------------


def mean_difference(pairs: Sequence[Pair], figure: Figure, of_other: Figure | None = None) -> Terms:
    """The mean over pairs of a figure of the first run minus that figure, or another, of the second."""
    share, other_figure = 1 / len(pairs), of_other or figure
    return [term for one, other in pairs for term in ((share, figure(one)), (-share, other_figure(other)))]


def _part(what: str, unit: str, terms: Terms, law: Law, shown: str = "", **tested: float) -> Part:
    found = contrast(terms)
    return Part(what, unit, found.estimate, *found.interval(law.level), shown, **tested)


def row(what: str, unit: str, terms: Terms, law: Law) -> Part:
    """A figure shown for context, without a test."""
    return _part(what, unit, terms, law, reach=contrast(terms).detectable(law.alpha))


def above(what: str, unit: str, terms: Terms, most: Terms, law: Law) -> Part:
    """To be shown: > 0; contradicted if `most`, a sum that is at least as large, is less than delta."""
    p, against = contrast(terms).p_above(0.0), contrast(most).p_below(law.delta)
    return replace(row(what, unit, terms, law), shown="> 0", p=p, p_against=against)


def below(what: str, unit: str, terms: Terms, most: Terms, law: Law) -> Part:
    """To be shown: < delta, even of `most`, a sum that is at least as large; contradicted if it is more."""
    p, against = contrast(most).p_below(law.delta), contrast(terms).p_above(law.delta)
    return replace(row(what, unit, terms, law), shown=f"< {law.delta:g}", p=p, p_against=against)


def calibrated(run: Measured, law: Law) -> Part:
    """To be shown: the error of a run is less than delta."""
    terms, shown = [(1.0, run.excess)], f"error < {law.delta:g}"
    if run.chances is None:  # several correct classes and no log-probabilities: its calibrated twins are unknown
        return _part(run.label, "excess smECE", terms, law, shown)
    resampling = Resampling(null_draws=law.null_draws, level=law.level, seed=law.seed)
    test = equivalence(run.chances, run.confidence, run.correct, delta=law.delta, resampling=resampling)
    tested = {"p": test.p_value, "p_against": contrast(terms).p_above(law.delta), "reach": test.within}
    return _part(run.label, "excess smECE", terms, law, shown, **tested)


def no_loss(run: Measured, law: Law) -> Part:
    """To be shown: the loss gap of a run is less than that of an error of delta."""
    if run.loss is None or run.loss_gap is None:
        return Part(run.label, "nats", nan, nan, nan, f"< that of an error of {law.delta:g}")
    settings: dict[str, Any] = {"m": run.smoothing, "group": run.group, "delta": law.delta, "seed": law.seed}
    test = loss_equivalence(run.confidence, run.correct, run.loss_gap, **settings)
    terms = [(1.0, run.loss)]
    tested = {"p": test.p_value, "p_against": contrast(terms).p_above(law.least_loss)}
    return _part(run.label, "nats", terms, law, f"< {test.bound:.3f}", **tested)


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
    prompted = "under chat" if prompt == "chat" else "few-shot"
    tuned, sft = (paired_with_base(kept, stages, prompt, SHORT) for stages in (PREFERENCE, ["sft"]))
    along = [pair for stages in (PREFERENCE, ["sft"]) for pair in paired_with_base(kept, stages, prompt, ["cot"])]
    context = [
        row(f"{one.label} − base", unit, mean_difference([(one, base)], figure), law)
        for one, base in (*tuned, *sft, *along)
        for unit, figure in (("excess smECE", excess), ("signed gap", gap))
    ]
    seen = labels(run for pair in (*tuned, *sft) for run in pair)
    if not tuned or not sft:
        lacks = "dpo, grpo, rl or instruct" if not tuned else "sft"
        reason = f"no model of stage {lacks} {prompted} next to its few-shot base in concise or sentence"
        return Finding(key, context=tuple(context), reason=reason, runs=seen)
    raised, most_raised = mean_difference(tuned, excess), mean_difference(tuned, error, excess)
    steady, most_steady = mean_difference(sft, excess), mean_difference(sft, error, excess)
    surer = mean_difference(tuned, gap)
    parts = (
        above("preference tuned − base", "excess smECE", raised, most_raised, law),
        above("preference tuned − base", "signed gap", surer, surer, law),
        above("preference tuned − SFT", "excess smECE", raised + _negated(steady), most_raised + _negated(steady), law),
        below("SFT − base", "excess smECE", steady, most_steady, law),
    )
    return Finding(key, parts, tuple(context), runs=seen)


def _negated(terms: Terms) -> Terms:
    return [(-weight, run) for weight, run in terms]


def thinking_harms(runs: Sequence[Measured], law: Law) -> Finding:
    bases = of_stage(standing(runs), ["base"], [*SHORT, "cot"])
    places = {(r.model, r.dataset): r for r in bases if r.style == "cot"}
    short = [r for r in bases if r.style in SHORT and (r.model, r.dataset) in places]
    if not short:
        return Finding("H3", reason="no model of stage base has both cot and concise or sentence on one dataset")
    pairs = [(places[r.model, r.dataset], r) for r in short]
    context = [row("cot − short, mean", "signed gap", _by_place(pairs, gap), law)]
    context += [
        row(f"{cot.label} − {one.style}", unit, mean_difference([(cot, one)], figure), law)
        for cot, one in pairs
        for unit, figure in (("excess smECE", excess), ("signed gap", gap))
    ]
    most = _by_place(pairs, error, excess)
    part = above("cot − short, mean", "excess smECE", _by_place(pairs, excess), most, law)
    return Finding("H3", (part,), tuple(context), runs=labels(run for pair in pairs for run in pair))


def _by_place(pairs: Sequence[Pair], figure: Figure, of_other: Figure | None = None) -> Terms:
    """The mean over models and datasets with equal weights, however many short styles each has."""
    places = {(cot.model, cot.dataset): [p for p in pairs if p[0] is cot] for cot, _ in pairs}
    differences = [mean_difference(own, figure, of_other) for own in places.values()]
    return [(weight / len(places), run) for terms in differences for weight, run in terms]


def loss_left(runs: Sequence[Measured], law: Law) -> Finding:
    kept = standing(runs)
    bases = of_stage(kept, ["base"])
    tuned, sft = ([r for r in of_stage(kept, s) if r.prompt == "chat" and r.loss] for s in (PREFERENCE, ["sft"]))
    context = [row(run.label, "nats", [(1.0, loss(run))], law) for run in (*tuned, *sft)]
    parts = tuple(no_loss(run, law) for run in bases)
    if not bases or not tuned:
        lacks = "base" if not bases else "dpo, grpo, rl or instruct under chat"
        reason = f"no model of stage {lacks} with a loss gap in concise or sentence"
        return Finding("H6", context=(*parts, *context), reason=reason, runs=labels([*bases, *tuned]))
    mean = [(1 / len(tuned), loss(run)) for run in tuned]
    none_left = max(no_loss(run, law).p for run in tuned)  # a fitted tilt alone recovers too little to show this
    left = row("preference tuned, mean", "nats", mean, law)
    parts = (*parts, replace(left, shown="> 0", p=contrast(mean).p_above(0.0), p_against=none_left))
    return Finding("H6", parts, tuple(context), runs=labels([*bases, *tuned, *sft]))
