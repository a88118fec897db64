"""Runs side by side: made equal in questions and samples, and how far their figures differ.

`pairs.py` says which runs may be compared; the tests are in `semcal.calibration.inference.paired`, the tables in
`comparison_tables.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from experiments.compare.by_gap import ByGap, by_gap
from experiments.compare.pairs import Scored, check_comparable, sensible_pairs
from experiments.compare.probe_rows import MUCH_POOLED, layer_rows, probe_table
from experiments.config.run_folder import differing
from experiments.config.study import Cell
from experiments.verdict.stored_gaps import RUNGS
from probes.evaluation.contrast import gap_difference
from probes.evaluation.result import BASELINE, at_layer
from semcal.calibration.estimators.finite_m import thin
from semcal.calibration.inference.paired import STATISTICS, Difference, holm, paired_difference
from semcal.calibration.nulls.null import null_of
from semcal.calibration.resampling import Resampling
from semcal.errors import UserError
from semcal.positions import LAST_PROMPT_TOKEN
from semcal.runs.run import Run
from semcal.seeds import keyed_generator
from semcal.semantics.confidence import Confidences

_KINDS = {"linear": "closed", "bilinear": "open"}  # by the rung that reads every layer


@dataclass(frozen=True)
class Equal:
    """A run on the questions, and with the number of samples, that it has in common with others; `null_mean` is the
    mean smECE of calibrated models with these class distributions, at this n and M."""

    cell: Cell
    found: Confidences
    null_mean: float


@dataclass(frozen=True)
class Matched:
    """Runs made equal in n and M, on the same questions in the same order.

    Attributes:
        group: [question] labels of dependent questions.
        m: samples per question; None where answers were enumerated.
        note: what was done to make them equal, in words.
    """

    runs: tuple[Equal, ...]
    group: np.ndarray
    m: int | None
    note: str


@dataclass(frozen=True)
class Comparison:
    """Two runs.

    Attributes:
        differences: statistic -> their difference b - a; "excess" is smECE minus the mean of its null.
        predictability: rung -> the difference b - a of its KL gap, nats, at the last prompt token and last layer; empty
            where that cannot be compared.
        note: remarks on predictability, or why it is not compared.
        by_gap: two styles in quarters of the questions by KL gap; None where predictability is not compared, the runs
            differ in more than the style or in M, or the questions are too few.
    """

    a: Cell
    b: Cell
    matched: Matched
    differences: dict[str, Difference]
    predictability: dict[str, Difference]
    note: str
    by_gap: ByGap | None = None


def equalised(runs: Sequence[Scored]) -> Matched:
    """Runs on their common questions, with the smallest M among them: smECE has a floor that depends on both.

    Raises:
        UserError: see `check_comparable`.
    """
    first = runs[0]
    for run in runs[1:]:
        check_comparable(first, run)
    common = first.questions.index
    for run in runs[1:]:
        common = common[common.isin(run.questions.index)]
    if common.empty:
        raise UserError(f"no question is answered by all {len(runs)} runs; give their datasets the same n and seed")
    m = None if first.m is None else min(run.m or 0 for run in runs)
    sizes, samples = [len(run.questions) for run in runs], [run.m for run in runs]
    note = [f"{len(common)} questions" + ("" if m is None else f", M = {m}")]
    if len(set(sizes)) > 1 or sizes[0] > len(common):
        note.append(f"common to runs of {', '.join(map(str, sizes))} questions")
    if len(set(samples)) > 1:
        note.append(f"of M = {', '.join(map(str, samples))} samples each, {m} are kept at random")
    made = tuple(_equal(run, common, m) for run in runs)
    return Matched(made, np.asarray(first.questions.loc[common, "group"]), m, "; ".join(note))


def _equal(run: Scored, common: pd.Index, m: int | None) -> Equal:
    table = run.table.select(run.questions.index.get_indexer(common))
    if m is not None and run.m == m and len(common) == len(run.questions):
        return Equal(run.cell, table.by_count, run.calibration["null_mean"])
    if run.m != m and m is not None:
        rng = keyed_generator(run.cell.seed, "compare", "thin")
        table = replace(table, counts=thin(table.sampled_counts, m, rng=rng, repeats=1)[0], masses=None)
    null = null_of(table, null_draws=run.cell.calibration.null_draws, seed=run.cell.seed)
    return Equal(run.cell, table.by_count, null.mean)


def compare(a: Scored, b: Scored) -> Comparison:
    """Every statistic of two runs, and their difference on equal questions and samples.

    Raises:
        UserError: see `check_comparable`.
    """
    matched = equalised([a, b])
    one, two = matched.runs
    differences = {
        name: paired_difference(
            STATISTICS[name],
            (one.found.plug_in, one.found.correct),
            (two.found.plug_in, two.found.correct),
            group=matched.group,
            resampling=a.cell.calibration.resampling(a.cell.seed),
        )
        for name in STATISTICS
    }
    smece = differences.pop("smece")
    first = {"smece": smece, "excess": smece.minus(one.null_mean, two.null_mean)}
    predictability, note = _predictability(a, b)
    quarters = in_quarters(a, b) if predictability and differing(a.cell, b.cell) == ["style"] else None
    return Comparison(a.cell, b.cell, matched, first | differences, predictability, note, quarters)


def in_quarters(a: Scored, b: Scored) -> ByGap | None:
    """Two runs of one study in quarters of their questions, by the KL gap of the first rung that both have; None where
    one has no KL gaps at the last prompt token, they share no rung, or much is pooled."""
    if not all(_has_gaps(Run(run.folder), LAST_PROMPT_TOKEN) for run in (a, b)):
        return None
    one, two = (_Gaps.of(Run(run.folder), LAST_PROMPT_TOKEN) for run in (a, b))
    shared = [rung for rung in RUNGS if rung in one.nats.index and rung in two.nats.index]
    if not shared or max(one.pooled, two.pooled) > MUCH_POOLED:
        return None
    known = [e.nats.loc[shared[0]].dropna() for e in (one, two)]
    both = known[0].index.intersection(known[1].index)
    return by_gap(a, b, shared[0], (known[0][both], known[1][both]))


def _has_gaps(run: Run, position: str) -> bool:
    losses = run.probe_losses()
    return "gap_nats" in losses and position in set(losses["position"])


def _predictability(a: Scored, b: Scored) -> tuple[dict[str, Difference], str]:
    """See `Comparison`. Probes that were trained under other conditions cannot be made equal as samples can."""
    for what, one, two in (
        ("M", a.m, b.m),
        ("seed", a.cell.seed, b.cell.seed),
        ("probes.folds", a.cell.probes.folds, b.cell.probes.folds),
        ("probes.max_classes", a.cell.probes.max_classes, b.cell.probes.max_classes),
    ):
        if one != two:
            return {}, f"not compared: {what} is {one} and {two}"
    resampling = a.cell.calibration.resampling(a.cell.seed)
    try:
        return compare_last_layers(Run(a.folder), Run(b.folder), LAST_PROMPT_TOKEN, resampling=resampling)
    except UserError as error:
        return {}, f"not compared: {error}"


def adjusted(comparisons: Sequence[Comparison]) -> list[dict[str, float]]:
    """Holm's p-value of every statistic and every rung of every comparison.

    All statistics together are one family, and predictability is another: what is said of calibration must not depend
    on how many rungs were fitted.
    """
    found: list[dict[str, float]] = [{} for _ in comparisons]
    for families in ([c.differences for c in comparisons], [c.predictability for c in comparisons]):
        tests = [(at, name, d.p_value) for at, family in enumerate(families) for name, d in family.items()]
        for (at, name, _), p in zip(tests, holm([p for *_, p in tests]), strict=True):
            found[at][name] = float(p)
    return found


def compare_all(
    runs: Sequence[Scored], named: bool, tell: Callable[[Cell, str], None] = lambda *_: None
) -> list[Comparison]:
    """Every run against the first if they were named one by one; otherwise the pairs that make sense.

    Raises:
        UserError: a pair that cannot be compared, before anything is computed.
    """
    pairs = [(runs[0], run) for run in runs[1:]] if named else sensible_pairs(runs)
    for a, b in pairs:
        check_comparable(a, b)
    found = []
    for done, (a, b) in enumerate(pairs, start=1):
        tell(b.cell, f"comparing, pair {done} of {len(pairs)}")
        found.append(compare(a, b))
    return found


# ---- predictability --------------------------------------------------------------------------------------------------


def compare_last_layers(a: Run, b: Run, position: str, *, resampling: Resampling) -> tuple[dict[str, Difference], str]:
    """Rung -> the difference b − a of the KL gap of the class distribution, nats, paired by question, each run at its
    own last layer, without baselines; and remarks on it.

    On the questions that both were probed on; give runs of equal M.

    Raises:
        UserError: a run without KL gaps at the position, targets of different kind, no common question, or no rung in
            common.
    """
    one, two = (_Gaps.of(run, position) for run in (a, b))
    if one.kind and two.kind and one.kind != two.kind:
        raise UserError(
            f"the targets are of different kind: {a.folder} has {_KINDS[one.kind]} classes and {b.folder} "
            f"{_KINDS[two.kind]} ones; `semcal probe` both alike"
        )
    questions = a.questions().set_index("id")
    common = questions.index[questions.index.isin(one.nats.columns.intersection(two.nats.columns))]
    if common.empty:
        raise UserError(f"{a.folder} and {b.folder} were not probed on a common question; give them the same dataset")
    rungs = [rung for rung in one.rungs if rung in one.nats.index and rung in two.nats.index]
    if not rungs:
        raise UserError(f"{a.folder} and {b.folder} share no rung at their last layers; `semcal probe` both")
    group = questions.loc[common, "group"].tolist()
    found = {
        rung: gap_difference(
            *(e.nats.loc[rung, common].to_numpy(float) for e in (one, two)), group=group, resampling=resampling
        )
        for rung in rungs
    }
    remarks = [] if one.layer == two.layer else [f"at the last layers {one.layer} and {two.layer}"]
    sizes = [e.nats.shape[1] for e in (one, two)]
    if sizes[0] != sizes[1]:
        remarks.append(f"probes learnt from {sizes[0]} and {sizes[1]} questions")
    pooled = [e.pooled for e in (one, two)]
    if max(pooled) > MUCH_POOLED:
        remarks.append(f"{pooled[0]:.0%} and {pooled[1]:.0%} of the mass are pooled, so the gaps concern the rest")
    return found, "; ".join(remarks)


@dataclass(frozen=True)
class _Gaps:
    """What `semcal probe` found of the class distribution of a run at a position and the last layer.

    Attributes:
        layer: the last that the rung of every layer reads; "none" without one.
        kind: that rung, which says whether classes are closed ("linear") or open ("bilinear"); "" without one.
        pooled: share of the mass in the pooled class.
        rungs: up the ladder, without baselines.
        nats: [rung, question] KL gaps, of those that have one.
    """

    layer: str
    kind: str
    pooled: float
    rungs: tuple[str, ...]
    nats: pd.DataFrame

    @classmethod
    def of(cls, run: Run, position: str) -> _Gaps:
        losses, table = run.probe_losses(), probe_table(run)
        if losses.empty or position not in set(losses["position"]):
            raise UserError(f"{run.folder} holds no probes of the class distribution at {position}; `semcal probe` it")
        if "gap_nats" not in losses:
            raise UserError(f"the probes of {run.folder} are of an earlier version of semcal; `semcal probe` it")
        fitted = ~table["rung"].str.startswith(BASELINE) & (table["target"] == "classes")
        rows = table.loc[fitted & (table["position"] == position), :]
        lines = layer_rows(rows)
        layer = str(lines["layer"].iloc[-1]) if len(lines) else "none"
        last = at_layer(rows, layer)
        losses = losses.loc[losses["position"] == position, :]
        wide = losses.pivot(index=["rung", "layer"], columns="question_id", values="gap_nats")
        wide = wide.loc[wide.index.isin(list(zip(last["rung"], last["layer"], strict=True))), :].droplevel("layer")
        kind = str(lines["rung"].iloc[-1]) if len(lines) else ""
        pooled = float(np.nanmax([0.0, *last["pooled"]]))
        return cls(layer, kind, pooled, tuple(last["rung"]), wide.dropna(how="all"))
