"""Comparisons as tables: pairs of runs with their tests, and runs at several temperatures."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from experiments.compare.by_gap import ByGap
from experiments.compare.compare_runs import Comparison, Matched, adjusted
from experiments.config.run_folder import FACTORS, differing
from experiments.config.study import Cell
from experiments.report.page.html_page import title
from experiments.report.summary_table import interval, number, p_text, text_table
from experiments.terminal.fitted_table import FittedTable
from semcal.calibration.inference.paired import Difference, smallest_difference
from semcal.calibration.measures.scores import signed_gap, weighted_mean
from semcal.calibration.measures.smece import smece

SIGNED = ("excess", "signed_gap")


def comparison_tables(comparisons: Sequence[Comparison]) -> list[tuple[str, FittedTable]]:
    """A heading and a table per pair, p-values adjusted over all of them; then, of two styles, one of the questions by
    KL gap."""
    found = []
    for c, holm in zip(comparisons, adjusted(comparisons), strict=True):
        found.append((_heading(c), _pair_table(c, holm)))
        if c.by_gap is not None:
            what = f"the same questions, in quarters by the KL gap ({c.by_gap.rung}) of the {c.by_gap.sorted_by}:\n"
            what += c.by_gap.told(_columns(c), c.a.calibration.level)
            found.append((what, _quarters_table(c, c.by_gap)))
    return found


def records(comparisons: Sequence[Comparison]) -> list[dict[str, Any]]:
    """The same as data, a record per pair."""
    return [
        {
            "first": c.a.folder,
            "second": c.b.folder,
            "differ_in": differing(c.a, c.b),
            "matched": c.matched.note,
            "note": c.note,
            "figures": {name: vars(d) | {"holm": p[name]} for name, d in (c.differences | c.predictability).items()},
            "by_gap": c.by_gap and asdict(c.by_gap) | {"trend": asdict(c.by_gap.trend)},
        }
        for c, p in zip(comparisons, adjusted(comparisons), strict=True)
    ]


def explanation(comparisons: Sequence[Comparison]) -> str:
    """The meaning of the columns, once for all tables."""
    tests = _tests(c.differences for c in comparisons)
    probed = _tests(c.predictability for c in comparisons)
    level = comparisons[0].a.calibration.level
    family = f"all {tests} tests shown"
    if probed:
        family = f"all {tests} tests of calibration shown, and separately for the {probed} of the KL gap"
    said = (
        f"difference: second − first, with the {level:.0%} interval of resampling groups of questions jointly for both "
        f"runs · p: is this figure the same in both? · Holm: p adjusted for {family} · swap: are the runs "
        "exchangeable? (for smECE and AUROC a stronger hypothesis than that of p) · detectable: the smallest true "
        f"difference found with power 0.8 at p = {1 - level:.2g}"
    )
    if probed:
        said += (
            " · KL gap: nats that a probe at the last prompt token and last layer misses of the class distribution, "
            "finite M taken off, paired by question; probes are not fitted again"
        )
    if any(c.by_gap for c in comparisons):
        said += (
            " · quarter: of the groups of questions, by the mean KL gap of the run that is harder to predict · excess: "
            "smECE minus the mean of its null there · Holm: adjusted over the quarters. The theory expects that run to "
            "be off where its gap is large, and not elsewhere; per nat: slope of the difference over the quarters on "
            "the mean gap, its error by groups"
        )
    return said


def _tests(families: Iterable[Mapping[str, Difference]]) -> int:
    return sum(math.isfinite(d.p_value) for family in families for d in family.values())


def temperature_table(matched: Matched) -> FittedTable:
    """One row per temperature, coldest first, on equal questions and samples."""
    table = text_table(["T", "smECE", "null mean", "excess", "signed gap", "confidence", "accuracy"], [])
    for run in matched.runs:
        sure, right = run.found.plug_in, run.found.correct
        error = smece(sure, right)
        table.add_row(
            f"{run.cell.sampling.temperature:g}",
            number(error),
            number(run.null_mean),
            number(error - run.null_mean, "+"),
            number(float(signed_gap(sure, right)), "+"),
            number(float(weighted_mean(sure))),
            number(float(weighted_mean(right))),
        )
    return table


def _heading(c: Comparison) -> str:
    factors = ", ".join(differing(c.a, c.b)) or "no setting of the study"
    probes = f"\nKL gap: {c.note}" if c.note else ""
    return f"first: {_name(c.a)}\nsecond: {_name(c.b)}\nthey differ in {factors} · {c.matched.note}{probes}"


def _name(cell: Cell) -> str:
    hot = f" · T = {cell.sampling.temperature:g}" if cell.sampling.temperature != 1 else ""
    return f"{cell.label}{hot}  ({cell.folder})"


def _pair_table(c: Comparison, holm: dict[str, float]) -> FittedTable:
    table = text_table(["", *_columns(c), "difference", "p", "Holm", "swap", "detectable"], [])
    for name, d in c.differences.items():
        table.add_row(title(name), *_cells(d, holm[name], c, "+" if name in SIGNED else ""))
    table.add_section()
    for rung, d in c.predictability.items():
        table.add_row(f"KL gap, {rung}", *_cells(d, holm[rung], c, ""))
    return table


def _quarters_table(c: Comparison, found: ByGap) -> FittedTable:
    runs = _columns(c)
    titles = [f"{what}, {run}" for what in ("KL gap", "excess") for run in runs]
    table = text_table(["quarter", "n", *titles, "difference", "Holm"], [])
    for number_of, q in enumerate(found.quarters, start=1):
        d = q.excess
        table.add_row(
            str(number_of),
            str(q.n),
            *(number(gap) for gap in q.gaps),
            *(number(excess, "+") for excess in (d.a, d.b)),
            interval(d.estimate, d.low, d.high, "+"),
            p_text(q.holm),
        )
    return table


def _cells(d: Difference, holm: float, c: Comparison, sign: str) -> tuple[str, ...]:
    return (
        number(d.a, sign),
        number(d.b, sign),
        interval(d.estimate, d.low, d.high, "+"),
        *map(p_text, (d.p_value, holm, d.p_exchange)),
        number(smallest_difference(d.standard_error, alpha=1 - c.a.calibration.level)),
    )


def _columns(c: Comparison) -> tuple[str, str]:
    """Titles of the two runs: the factors in which they differ, if these have names."""
    factors = [f for f in differing(c.a, c.b) if f in FACTORS]
    words = [" · ".join(_value(cell, f) for f in factors) for cell in (c.a, c.b)]
    return ("first", "second") if words[0] == words[1] else (words[0], words[1])


def _value(cell: Cell, factor: str) -> str:
    return {
        "model": cell.model.name,
        "style": cell.style,
        "B": cell.semantics.label,
        "temperature": f"T = {cell.sampling.temperature:g}",
    }[factor]
