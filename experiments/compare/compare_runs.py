"""Runs side by side: made equal in questions and samples, and how far their figures differ.

`pairs.py` says which runs may be compared; the tests are in `semcal.calibration.inference.paired`, the tables in
`report/comparison_tables.py`.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from experiments.compare.pairs import Scored, check_comparable, sensible_pairs
from experiments.config.study import Cell
from probes.evaluation.contrast import explained_differences
from probes.evaluation.result import BASELINE, LINEAR, Evaluation, at_layer
from semcal.calibration.estimators.finite_m import thin
from semcal.calibration.inference.paired import STATISTICS, Difference, holm, paired_difference
from semcal.calibration.nulls.null import null_of
from semcal.calibration.resampling import Resampling
from semcal.errors import UserError
from semcal.positions import LAST_PROMPT_TOKEN
from semcal.runs.run import Run
from semcal.seeds import keyed_generator
from semcal.semantics.confidence import Confidences


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
        predictability: rung -> the difference b - a of the share of its ceiling that a probe explains of the class
            distribution, at the last prompt token and last layer; empty where that cannot be compared.
        note: remarks on predictability, or why it is not compared.
    """

    a: Cell
    b: Cell
    matched: Matched
    differences: dict[str, Difference]
    predictability: dict[str, Difference]
    note: str


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
    return Comparison(a.cell, b.cell, matched, first | differences, *_predictability(a, b))


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


def stored_evaluation(run: Run, position: str, ids: Sequence[str]) -> Evaluation:
    """What `semcal probe` found of the class distribution at a position, on some of the questions probed there."""
    losses, table = run.probe_losses(), run.probes()
    losses = losses.loc[losses["position"] == position, :]
    frame = table.loc[(table["target"] == "classes") & (table["position"] == position) & (table["layer"] != ""), :]
    wide = losses.pivot(index=["rung", "layer"], columns="question_id", values="probe_nats")
    baseline = losses.drop_duplicates("question_id").set_index("question_id")["baseline_nats"]
    rows = wide.loc[list(zip(frame["rung"], frame["layer"], strict=True)), list(ids)]
    return Evaluation(frame.reset_index(drop=True), rows.to_numpy(float), baseline.loc[list(ids)].to_numpy(float))


def compare_last_layers(a: Run, b: Run, position: str, *, resampling: Resampling) -> tuple[dict[str, Difference], str]:
    """Rung -> how much better the class distribution can be predicted in the second of two runs, as shares of their
    ceilings, each run at its own last layer, without baselines; and remarks on it.

    On the questions that both were probed on; give runs of equal M.

    Raises:
        UserError: a run that was not probed at the position, no common question, or no rung in common.
    """
    one, two, group = _paired(a, b, position)
    layers, sizes = [_last_layer(e) for e in (one, two)], [int(e.frame["n"].iloc[0]) for e in (one, two)]
    remarks = [] if layers[0] == layers[1] else [f"at the last layers {' and '.join(layers)}"]
    if sizes[0] != sizes[1]:
        remarks.append(f"probes learnt from {sizes[0]} and {sizes[1]} questions")
    last = [_only(e, layer) for e, layer in zip((one, two), layers, strict=True)]
    try:
        found = explained_differences(*last, group=group, resampling=resampling)
    except ValueError:
        raise UserError(f"{a.folder} and {b.folder} share no rung at their last layers; `semcal probe` both") from None
    return {rung: d for (rung, *_), d in found.items()}, "; ".join(remarks)


def _last_layer(e: Evaluation) -> str:
    """The last layer that linear probes read; none without them."""
    lines = e.frame.loc[e.frame["rung"] == LINEAR, "layer"].tolist()
    return lines[-1] if lines else "none"


def _only(e: Evaluation, layer: str) -> Evaluation:
    """Rungs at one layer, whatever its name; no baselines."""
    probes = e.frame.loc[~e.frame["rung"].str.startswith(BASELINE), :]
    rows = at_layer(probes, layer).index.to_numpy()
    return Evaluation(e.frame.loc[rows, :].assign(layer="last"), e.losses[rows], e.baseline)


def _paired(a: Run, b: Run, position: str) -> tuple[Evaluation, Evaluation, list[str]]:
    """What was found of two runs on the questions that both were probed on, and their groups."""
    probed = []
    for run in (a, b):
        losses = run.probe_losses()
        if losses.empty or position not in set(losses["position"]):
            raise UserError(f"{run.folder} holds no probes of the class distribution at {position}; `semcal probe` it")
        probed.append(set(losses.loc[losses["position"] == position, "question_id"]))
    table = a.questions()
    common = table.loc[table["id"].isin(probed[0] & probed[1]), :]
    if common.empty:
        raise UserError(f"{a.folder} and {b.folder} were not probed on a common question; give them the same dataset")
    one, two = (stored_evaluation(run, position, list(common["id"])) for run in (a, b))
    return one, two, list(common["group"])
