"""Verdicts as tables, as Markdown and as a forest plot; decides nothing."""

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from rich.table import Table

from experiments.report.page.html_page import save_figures
from experiments.report.summary_table import interval, markdown_table, number, p_text, text_table
from experiments.verdict.rules import CLAIMS, Part, Verdict
from experiments.verdict.study_verdict import Judgement

GREY = "#6B6B6B"
COLOURS = {"holds": "#0072B2", "fails": "#D55E00"}  # else grey
SUMMARY = ("", "hypothesis", "verdict", "weakest part", "p (Holm)", "p against (Holm)")
DETAIL = ("", "unit", "estimate", "to be shown", "p", "p against", "would find")
CELLS = (
    "run",
    "smECE",
    "excess",
    "p (error ≥ δ)",
    "binned",
    "loss gap",
    "seen mass",
    "truncated",
    "unparsed",
    "range",
    "parsed only",
)
ROW, WIDTH = 0.24, 11.0  # inches


def verdict_tables(judgement: Judgement) -> list[tuple[str, Table]]:
    """A table with one row per hypothesis, then the rows behind each."""
    tables = [(_explanation(judgement), text_table(SUMMARY, summary_rows(judgement.verdicts), left=4))]
    for verdict in judgement.verdicts:
        if rows := detail_rows(verdict):
            tables.append((_heading(verdict), text_table(DETAIL, rows, left=2)))
        if verdict.finding.cells:
            tables.append((f"{verdict.finding.key}, run by run", text_table(CELLS, cell_rows(verdict), left=1)))
    return tables


def as_markdown(judgement: Judgement) -> str:
    """The same tables as Markdown, with a list of missing cells."""
    lines = [f"# Verdicts on {judgement.study.name}", "", _explanation(judgement), ""]
    lines += markdown_table(SUMMARY, summary_rows(judgement.verdicts))
    if judgement.missing:
        lines += ["", "Missing:", "", *(f"- {missing}" for missing in judgement.missing)]
    for verdict in judgement.verdicts:
        lines += ["", f"## {_heading(verdict)}", ""]
        if verdict.finding.runs:
            lines += [f"Tested on {len(verdict.finding.runs)} runs: {', '.join(verdict.finding.runs)}.", ""]
        lines += markdown_table(DETAIL, detail_rows(verdict)) if detail_rows(verdict) else []
        lines += ["", *markdown_table(CELLS, cell_rows(verdict))] if verdict.finding.cells else []
    return "\n".join(lines) + "\n"


def summary_rows(verdicts: Sequence[Verdict]) -> list[tuple[str, ...]]:
    rows = []
    for v in verdicts:
        f = v.finding
        why = f"not tested: {f.reason}" if f.reason else f.undecidable or _weakest(v)
        rows.append((f.key, CLAIMS[f.key], v.decision, why, p_text(v.p_holm), p_text(v.p_against_holm)))
    return rows


def _weakest(v: Verdict) -> str:
    """The part that decides: the one with the largest p or, if the hypothesis fails, with the smallest p against it."""
    parts = v.finding.parts
    if v.decision == "fails":
        part = min(parts, key=lambda part: math.inf if math.isnan(part.p_against) else part.p_against)
    else:
        part = max(parts, key=lambda part: (math.isnan(part.p), part.p))
    found = f"{part.what}: {part.unit} {_interval(part)}, to be {part.shown}"
    if v.decision == "undecided" and math.isnan(part.p):
        return f"{found}; could not be tested"
    reach = number(part.reach, digits=_digits(part.unit))
    return f"{found}; would find {reach}" if v.decision == "undecided" else found


def detail_rows(verdict: Verdict) -> list[tuple[str, ...]]:
    """The parts, then rows for context."""
    return [
        (
            *(p.what, p.unit, _interval(p), p.shown or "context", p_text(p.p), p_text(p.p_against)),
            number(p.reach, digits=_digits(p.unit)),
        )
        for p in _all(verdict)
    ]


def cell_rows(verdict: Verdict) -> list[tuple[str, ...]]:
    """The figures of each run whose smECE entered."""
    return [
        (
            *(c.label, number(c.smece), interval(c.excess, c.low, c.high, "+", 3), p_text(c.within), number(c.binned)),
            *(number(c.loss), number(c.seen), _percent(c.truncated), _percent(c.unparsed)),
            f"{number(c.least)} to {number(c.most)}",
            number(c.parsed_only) + (f" without {c.left_out}" if c.left_out else ""),
        )
        for c in verdict.finding.cells
    ]


def _percent(share: float) -> str:
    return "—" if math.isnan(share) else f"{share:.1%}"


def _explanation(judgement: Judgement) -> str:
    c = judgement.study.calibration
    return (
        f"{judgement.study.name}: {judgement.runs} runs, confidence {judgement.read_by} in all of them, "
        f"delta {c.delta:g}, level {c.level:g}. Intervals at that level, p one-sided. A hypothesis holds if all its "
        "parts are shown (p: the largest of the parts, Holm over hypotheses); it fails if one is contradicted. Would "
        "find: the smallest true effect with power 0.8; for an error < delta, the smallest error that can be ruled "
        "out. Run by run: binned is the debiased binned error, which sees errors that oscillate and escape smECE; "
        "range is that of smECE over what the unparsed answers might have been. Where confidence is by mass, figures "
        "differ a little from those on the pages of the runs, which are by counts."
    )


def _heading(verdict: Verdict) -> str:
    why = verdict.finding.reason or verdict.finding.undecidable
    reason = f" ({why})" if why else ""
    return f"{verdict.finding.key}: {CLAIMS[verdict.finding.key]}: {verdict.decision}{reason}"


def _digits(unit: str) -> int:
    return 2 if unit == "share of cells" else 3


def _interval(part: Part) -> str:
    return interval(part.estimate, part.low, part.high, "+", _digits(part.unit))


# ---- the figure ------------------------------------------------------------------------------------------------------


def draw_verdict(judgement: Judgement, folder: Path) -> str:
    """figures/verdict.png and .svg in a folder; returns the name of the first."""
    figure = forest(judgement.verdicts, title=f"{judgement.study.name}: the evidence for each hypothesis")
    save_figures({"verdict": figure}, folder / "figures")
    return "figures/verdict.png"


def forest(verdicts: Sequence[Verdict], *, title: str) -> Figure:
    """Two panels per hypothesis, its units with most rows: estimate and interval, filled for parts of the rule.

    Rows of a hypothesis on the same runs share a line across its panels.
    """
    shown = [v for v in verdicts if v.finding.parts or v.finding.context]
    rows = [max(1, len(_lines(v))) for v in shown]
    figure = Figure(figsize=(WIDTH, 1.0 + ROW * sum(rows) + 0.85 * len(shown)), layout="constrained")
    figure.suptitle(title, x=0.01, ha="left", fontsize=12)
    if not shown:
        figure.text(0.5, 0.5, "no hypothesis was tested", ha="center")
        return figure
    panels = figure.subplots(len(shown), 2, squeeze=False, height_ratios=[n + 2.5 for n in rows])
    for verdict, (first, second) in zip(shown, panels, strict=True):
        _panel(verdict, first, second)
    return figure


def _all(verdict: Verdict) -> tuple[Part, ...]:
    return (*verdict.finding.parts, *verdict.finding.context)


def _units(verdict: Verdict) -> list[str]:
    """At most two, those with most rows; others are in the tables alone."""
    rows = [p.unit for p in _all(verdict)]
    return sorted(dict.fromkeys(rows), key=lambda unit: -rows.count(unit))[:2]


def _lines(verdict: Verdict) -> list[str]:
    return list(dict.fromkeys(p.what for p in _all(verdict) if p.unit in _units(verdict)))


def _panel(verdict: Verdict, first: Axes, second: Axes) -> None:
    lines, units = _lines(verdict), _units(verdict)
    colour = COLOURS.get(verdict.decision, GREY)
    for axes, unit in zip((first, second), [*units, None], strict=False):
        if unit is None:
            axes.set_axis_off()
            continue
        axes.axvline(0, color="#222222", lw=0.8)
        for part in (p for p in _all(verdict) if p.unit == unit and np.isfinite(p.estimate)):
            y, face = lines.index(part.what), colour if part.shown else "white"
            axes.plot([part.low, part.high], [y, y], color=colour, lw=1.3)
            axes.plot(part.estimate, y, "o" if part.shown else "s", ms=5, color=colour, mfc=face)
        axes.set(ylim=(len(lines) - 0.5, -0.5), xlabel=unit)
        axes.set_yticks(range(len(lines)), lines if axes is first else [], fontsize=8)
        axes.tick_params(axis="x", labelsize=8)
        axes.grid(axis="x", color="#E6E6E6", lw=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    first.set_title(_heading(verdict), loc="left", fontsize=9.5, color=colour)
