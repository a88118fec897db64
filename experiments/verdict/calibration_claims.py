"""H1, H2, H3 and H6 tested on the runs they are about, by the rules in `rules.py`.

Knows runs as `Measured` arrays and tables; knows no files and no models.
"""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from math import nan
from operator import attrgetter
from typing import Any

import numpy as np

from experiments.verdict.measured_run import Measured
from experiments.verdict.rules import MOST_UNPARSED, CellRow, Finding, Part
from semcal.calibration.inference.equivalence import LossMargins, loss_equivalence, loss_margins, p_of_error
from semcal.calibration.inference.mean_error import ErrorCell, by_questions_and_models, mean_equivalence, p_of_models
from semcal.calibration.inference.paired import Contrast, Leaves, contrast, holm
from semcal.questions.question import CONTINUATION
from semcal.seeds import keyed_generator

PREFERENCE = ("dpo", "grpo", "rl", "instruct")
SHORT = ("concise", "sentence")
_BASE = "a model of stage base in concise or sentence on a dataset that is in distribution"

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


def above(what: str, unit: str, terms: Terms, raw: Terms, most: Terms, law: Law) -> Part:
    """To be shown: > 0, of `raw`, which keeps the floors of smECE, too; contradicted if `most`, a sum that is at least
    as large, is less than delta."""
    p, against = max(contrast(t).p_above(0.0) for t in (terms, raw)), contrast(most).p_below(law.delta)
    return replace(row(what, unit, terms, law), shown="> 0", p=p, p_against=against)


def below(what: str, unit: str, terms: Terms, most: Terms, law: Law) -> Part:
    """To be shown: < delta, even of `most`, a sum that is at least as large; contradicted if it is more. What can be
    ruled out lies above how much larger that sum is, the floor of smECE at this size."""
    found, largest = contrast(terms), contrast(most)
    reach = max(largest.estimate - found.estimate, 0.0) + largest.detectable(law.alpha)
    tested = {"p": largest.p_below(law.delta), "p_against": found.p_above(law.delta), "reach": reach}
    return replace(row(what, unit, terms, law), shown=f"< {law.delta:g}", **tested)


def labels(runs: Iterable[Measured]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(r.label for r in runs))


def in_and_out(runs: Iterable[Measured]) -> tuple[list[Measured], list[Measured]]:
    """Runs on datasets that are in distribution, and on those that are not."""
    known = list(runs)
    return [r for r in known if r.in_distribution], [r for r in known if not r.in_distribution]


def undecidable(runs: Iterable[Measured]) -> str:
    """Why these runs decide nothing: the one of which most is truncated or unparsed, or whose chains of thought are all
    alike, and the remedy; "" if they do."""
    lacks: list[tuple[float, str]] = []
    for run in runs:
        if run.style != CONTINUATION and run.truncated > MOST_UNPARSED:
            lacks.append((run.truncated, f"truncated in {run.label}; raise sampling.max_new_tokens"))
        elif run.alike:
            lacks.append((0.0, f"{run.label}: {run.alike}"))
        elif run.unparsed_share > MOST_UNPARSED:
            fix = "change the style's instruction or exemplars, or use another B"
            lacks.append((run.unparsed_share, f"unparsed in {run.label}; {fix}"))
    if not lacks:
        return ""
    share, said = max(lacks)
    return f"{share:.0%} {said}".replace("%", " %", 1) if share else said


def cell_row(run: Measured, law: Law, *, tested: bool = False) -> CellRow:
    """The figures of a run; `tested`: with its own equivalence test."""
    own, bounds = contrast([(1.0, run.excess)]), run.unparsed
    smece = run.error.estimate
    ends = (smece, smece, smece, 0)
    if bounds is not None:
        low, high = min(bounds.least, smece), max(bounds.most, smece)
        ends = (low, high, bounds.parsed_only.smece, bounds.left_out)
    within = nan
    if tested and run.chances is not None:
        uniform = run.chances.uniforms(law.null_draws, keyed_generator(law.seed, "verdict", "equivalence"))
        within = p_of_error(run.chances, run.correct, law.delta, uniform)
    figures = (smece, run.excess.estimate, *own.interval(law.level), within, own.p_above(law.delta), run.binned)
    left = nan if run.loss is None else run.loss.estimate
    return CellRow(run.label, *figures, left, run.seen_mass, run.truncated, run.unparsed_share, *ends)


def outside(runs: Iterable[Measured], law: Law) -> list[Part]:
    """A row for each run that a hypothesis leaves out since its dataset is not in distribution."""
    return [row(f"not in distribution: {r.label}", "excess smECE", [(1.0, r.excess)], law) for r in runs]


# ---- the mean error over cells -------------------------------------------------------------------------------------


def mean_error(runs: Sequence[Measured], law: Law) -> Part:
    """To be shown: the mean smECE error over cells is below delta."""
    terms = [(1 / len(runs), r.excess) for r in runs]
    means = _model_means(runs, excess)
    found = by_questions_and_models(terms, means)
    tests = (
        [p_of_mean_error(runs, law), p_of_models(_model_means(runs, error), law.delta)]
        if len(means) > 1
        else [p_of_mean_error(runs, law)]
    )
    reach = found.estimate + found.detectable(law.alpha)
    many = f"{counted(len(runs), 'cell')} of {counted(len(means), 'model')}"
    interval = found.interval(law.level)
    shown, against = f"smECE error < {law.delta:g}", found.p_above(law.delta)
    return Part(
        f"mean of {many}", "excess smECE", found.estimate, *interval, shown, float(np.max(tests)), against, reach
    )


def p_of_mean_error(runs: Sequence[Measured], law: Law) -> float:
    """Of "the mean smECE error is delta or more", by questions; NaN where the twins of a run are unknown (several
    correct classes and no log-probabilities)."""
    cells = [ErrorCell(r.dataset, r.correct, r.chances) for r in runs if r.chances is not None]
    if len(cells) < len(runs):
        return nan
    return mean_equivalence(cells, delta=law.delta, null_draws=law.null_draws, seed=law.seed)


def counted(number: int, what: str) -> str:
    """A number of things in words."""
    return f"{number} {what}{'' if number == 1 else 's'}"


def _model_means(runs: Sequence[Measured], figure: Figure) -> list[float]:
    by_model: dict[str, list[float]] = {}
    for r in runs:
        by_model.setdefault(r.model, []).append(figure(r).estimate)
    return [float(np.mean(values)) for values in by_model.values()]


def share_within(cells: Sequence[CellRow], law: Law) -> Part:
    """How many cells are within delta by their own test, untested."""
    known = [c for c in cells if np.isfinite(c.within)]
    within = sum(c.within <= law.alpha for c in known)
    above = int((holm([c.above for c in cells]) <= law.alpha).sum())
    what = f"{within} of {counted(len(cells), 'cell')} within {law.delta:g}, {above} certainly above"
    return Part(what, "share of cells", within / len(cells), nan, nan)


# ---- H1, H2, H3, H6 ------------------------------------------------------------------------------------------------


def base_calibrated(runs: Sequence[Measured], law: Law) -> Finding:
    bases, others = in_and_out(of_stage(standing(runs), ["base"]))
    context = outside(others, law)
    if not bases:
        return Finding("H1", context=tuple(context), reason=f"no scored run of {_BASE}")
    cells = tuple(cell_row(r, law, tested=True) for r in bases)
    each = [row(r.label, "excess smECE", [(1.0, r.excess)], law) for r in bases]
    return Finding(
        "H1",
        (mean_error(bases, law),),
        (share_within(cells, law), *each, *context),
        undecidable=undecidable(bases),
        runs=labels(bases),
        cells=cells,
    )


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
    raw, raw_steady, surer = mean_difference(tuned, error), mean_difference(sft, error), mean_difference(tuned, gap)
    beyond, raw_beyond, most_beyond = (
        one + _negated(two) for one, two in ((raised, steady), (raw, raw_steady), (most_raised, steady))
    )
    parts = (
        above("preference tuned − base", "excess smECE", raised, raw, most_raised, law),
        above("preference tuned − base", "signed gap", surer, surer, surer, law),
        above("preference tuned − SFT", "excess smECE", beyond, raw_beyond, most_beyond, law),
        below("SFT − base", "excess smECE", steady, most_steady, law),
    )
    return _found(key, parts, context, [run for pair in (*tuned, *sft) for run in pair], law)


def _found(key: str, parts: Sequence[Part], context: Sequence[Part], needed: Sequence[Measured], law: Law) -> Finding:
    """A finding on the runs it needs, each of which counts once."""
    once = list({r.label: r for r in needed}.values())
    cells = tuple(cell_row(r, law) for r in once)
    common = {"undecidable": undecidable(once), "runs": labels(once)}
    return Finding(key, tuple(parts), tuple(context), cells=cells, **common)


def _negated(terms: Terms) -> Terms:
    return [(-weight, run) for weight, run in terms]


def thinking_harms(runs: Sequence[Measured], law: Law) -> Finding:
    pairs = _thinking_pairs(standing(runs))
    kept, others = ([p for p in pairs if p[0].in_distribution is known] for known in (True, False))
    context = [
        row(f"{'' if cot.in_distribution else 'not in distribution: '}{cot.label} − {one.style}", unit, terms, law)
        for cot, one in (*kept, *others)
        for unit, figure in (("excess smECE", excess), ("signed gap", gap))
        for terms in [mean_difference([(cot, one)], figure)]
    ]
    if not kept:
        reason = "no model of stage base has both cot and concise or sentence on one dataset that is in distribution"
        return Finding("H3", context=tuple(context), reason=reason)
    context = [row("cot − short, mean", "signed gap", _by_place(kept, gap), law), *context]
    raised, raw, most = (_over_models(kept, *of) for of in ((excess,), (error,), (error, excess)))
    p, reach = max(raised.p_above(0.0), raw.p_above(0.0)), raised.detectable(law.alpha)
    figures = (raised.estimate, *raised.interval(law.level))
    tested = {"p": p, "p_against": most.p_below(law.delta), "reach": reach}
    part = Part("cot − short, mean", "excess smECE", *figures, "> 0", **tested)
    return _found("H3", (part,), context, [run for pair in kept for run in pair], law)


def _over_models(pairs: Sequence[Pair], figure: Figure, of_other: Figure | None = None) -> Contrast:
    """The mean over models and datasets, its error by questions and by models: three seeds of one training are three
    models, whose chances are not those of the questions."""
    models = dict.fromkeys(cot.model for cot, _ in pairs)
    own = [[pair for pair in pairs if pair[0].model == model] for model in models]
    means = [contrast(_by_place(some, figure, of_other)).estimate for some in own]
    return by_questions_and_models(_by_place(pairs, figure, of_other), means)


def _thinking_pairs(runs: Sequence[Measured]) -> list[Pair]:
    """Base models' runs in cot, each with those of the same dataset in short styles."""
    bases = of_stage(runs, ["base"], [*SHORT, "cot"])
    places = {(r.model, r.dataset): r for r in bases if r.style == "cot"}
    return [(places[key], r) for r in bases if r.style in SHORT and (key := (r.model, r.dataset)) in places]


def _by_place(pairs: Sequence[Pair], figure: Figure, of_other: Figure | None = None) -> Terms:
    """The mean over models and datasets with equal weights, however many short styles each has."""
    places = {(cot.model, cot.dataset): [p for p in pairs if p[0] is cot] for cot, _ in pairs}
    differences = [mean_difference(own, figure, of_other) for own in places.values()]
    return [(weight / len(places), run) for terms in differences for weight, run in terms]


def loss_left(runs: Sequence[Measured], law: Law) -> Finding:
    kept = standing(runs)
    bases, odd_bases = in_and_out(of_stage(kept, ["base"]))
    chat = (r for r in of_stage(kept, PREFERENCE) if r.prompt == "chat" and r.loss)
    tuned, odd_tuned = in_and_out(chat)
    sft = [r for r in of_stage(kept, ["sft"]) if r.prompt == "chat" and r.loss and r.in_distribution]
    context = [row(r.label, "nats", [(1.0, loss(r))], law) for r in (*bases, *tuned, *sft) if r.loss]
    odd = [r for r in (*odd_bases, *odd_tuned) if r.loss]
    context += [row(f"not in distribution: {r.label}", "nats", [(1.0, loss(r))], law) for r in odd]
    if not bases or not tuned:
        lacks = _BASE if not bases else "a model of stage dpo, grpo, rl or instruct under chat with a loss gap"
        return Finding("H6", context=tuple(context), reason=f"no run of {lacks}", runs=labels([*bases, *tuned]))
    mean = [(1 / len(tuned), loss(r)) for r in tuned]
    left = row(f"preference tuned, mean of {len(tuned)} cells", "nats", mean, law)
    shown = replace(left, shown="> 0", p=contrast(mean).p_above(0.0), p_against=p_of_mean_error(tuned, law))
    return _found("H6", (_no_loss(bases, law), shown), context, [*bases, *tuned], law)


def _no_loss(bases: Sequence[Measured], law: Law) -> Part:
    """To be shown: the mean loss gap of cells is below that of models off by delta; contradicted by their error."""
    found, margins = [r.loss for r in bases], [_margins(r, law) for r in bases]
    what, against = f"base, mean of {len(bases)} cells", mean_error(bases, law).p_against
    known = [m for m in margins if m is not None]
    losses = [(1 / len(bases), one) for one in found if one is not None]
    if min(len(known), len(losses)) < len(bases):  # all right or all wrong, or twins unknown
        return Part(what, "nats", nan, nan, nan, f"< that of an error of {law.delta:g}", p_against=against)
    test = loss_equivalence(known)
    return _part(what, "nats", losses, law, f"< {test.bound:.3f}", p=test.p_value, p_against=against)


def _margins(run: Measured, law: Law) -> LossMargins | None:
    if run.loss_gap is None:
        return None
    settings: dict[str, Any] = {"m": run.smoothing, "group": run.group, "stratum": run.dataset, "seed": law.seed}
    return loss_margins(run.confidence, run.correct, run.loss_gap, delta=law.delta, **settings)
