"""The verdict on every hypothesis of a study on one page: the figures of its rule, and the single cells in grey.

Decides nothing; the numbers of every cell are in the tables.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.report.figures.figure_files import save_figures
from experiments.report.summary_table import p_text
from experiments.verdict.rules import CLAIMS, Part, Verdict
from experiments.verdict.study_verdict import Judgement
from semcal.calibration.plots.palette import BLUE, FAINT, INK, LIGHT_GREY, MUTED, TOLERANCE, tolerance_name
from semcal.calibration.plots.sheet import Sheet

COLOURS = {"holds": BLUE, "fails": "#D55E00"}  # else grey
_ROW, _LINE = 0.19, 0.115  # inches: of what is drawn in a row, and of a line of text above it
_UNBROKEN = "\N{NO-BREAK SPACE}"
_OPAQUE = {"facecolor": "white", "edgecolor": "none", "pad": 0.6}  # so that no line strikes a text through
_OUTSIDE = "not in distribution"
_ON_ERRORS = ("smECE", "excess smECE", "signed gap", "smECE per nat")  # one axis, on which delta has a place


def draw_verdict(judgement: Judgement, folder: Path, width: float | None = None) -> str:
    """figures/verdict.png, .svg and .pdf in a folder; returns the name of the first. `width` in inches, None for the
    figure's own."""
    study = judgement.study
    title = f"{study.name}: the evidence for each hypothesis"
    figure = forest(judgement.verdicts, title=title, delta=study.calibration.delta, width=width)
    save_figures({"verdict": figure}, folder / "figures")
    return "figures/verdict.png"


@dataclass(frozen=True)
class _Row:
    """A line of a panel: a part of the rule with its interval, or the single cells in one unit."""

    text: str
    p: str = ""
    part: Part | None = None
    cells: tuple[Part, ...] = ()

    @property
    def height(self) -> float:
        return _ROW + _LINE * (self.text.count("\n") + 1)


@dataclass(frozen=True)
class _Panel:
    """A hypothesis: its heading, its rows from the top, and the units along its axis."""

    verdict: Verdict
    heading: str
    rows: tuple[_Row, ...]
    units: tuple[str, ...]

    @property
    def rows_height(self) -> float:
        return sum(row.height for row in self.rows) + 0.06

    @property
    def height(self) -> float:
        """With heading and axis, inches."""
        return self.rows_height + 0.13 * (self.heading.count("\n") + 1) + 0.55

    @property
    def colour(self) -> str:
        return COLOURS.get(self.verdict.decision, MUTED)


def forest(
    verdicts: Sequence[Verdict], *, title: str = "", delta: float | None = None, width: float | None = None
) -> Figure:
    """One panel per hypothesis: each figure that its rule asks for, with its interval; below, in grey, the estimates of
    the single cells (hollow: not in distribution). Its height depends on the rules, not on the number of cells.

    Args:
        verdicts: hypotheses without any figure are left out.
        title: above the figure.
        delta: the smallest calibration error that counts; None: not drawn.
        width: of the figure, inches; None for its own.
    """
    sheet = Sheet.dense(width, 7.0)
    columns = 2 if sheet.width >= 5.5 else 1
    across = sheet.width / columns - 0.3
    panels = [_panel(v, sheet, across) for v in verdicts if v.finding.parts or v.finding.context]
    panels = [panel for panel in panels if panel.rows]
    if not panels:
        figure = sheet.figure(1.2)
        sheet.entitle(figure, title)
        figure.text(0.5, 0.5, "no hypothesis was tested", ha="center", fontsize=sheet.label)
        return figure
    split = _balanced([panel.height for panel in panels]) if columns == 2 and len(panels) > 1 else len(panels)
    stacks = [stack for stack in (panels[:split], panels[split:]) if stack]
    tallest = max(_height(stack) for stack in stacks)
    figure = sheet.figure(tallest + 0.3)
    places = figure.subfigures(1, len(stacks), squeeze=False)[0]
    for stack, place in zip(stacks, places, strict=True):
        ratios = [*(panel.height for panel in stack), max(tallest - _height(stack), 1e-3)]
        *drawn, rest = place.subplots(len(ratios), 1, height_ratios=ratios)
        rest.set_axis_off()
        for axes, panel in zip(drawn, stack, strict=True):
            _draw(axes, panel, delta, sheet)
    sheet.entitle(figure, title)
    every = [axes for place in figure.subfigs for axes in place.axes]
    sheet.legend(figure, every, 4)
    return figure


def _panel(verdict: Verdict, sheet: Sheet, across: float) -> _Panel:
    parts, context = verdict.finding.parts, [p for p in verdict.finding.context if np.isfinite(p.estimate)]
    units = list(dict.fromkeys(part.unit for part in parts)) or _commonest(context)
    rows = []
    for unit in units:
        what = f" ({unit})" if len(units) > 1 else ""
        for part in (p for p in parts if p.unit == unit):
            said = f"{part.what}{what}, shown if {part.shown.replace(' ', _UNBROKEN)}"
            rows.append(_Row(_shortened(sheet, said, across - 0.6), _decides(verdict, part), part))
        cells = tuple(p for p in context if p.unit == unit)
        if cells:
            things = "pairs" if any("−" in cell.what for cell in cells) else "cells"
            rows.append(_Row(f"{len(cells)} single {things}{what}", cells=cells))
    claim = sheet.broken(CLAIMS[verdict.finding.key], sheet.small, across)
    return _Panel(verdict, f"{verdict.finding.key}: {verdict.decision}\n{claim}", tuple(rows), tuple(units))


def _decides(verdict: Verdict, part: Part) -> str:
    """The p-value that the verdict rests on: of the part, or against it where the hypothesis fails."""
    return f"p against {p_text(part.p_against)}" if verdict.decision == "fails" else f"p {p_text(part.p)}"


def _commonest(context: Sequence[Part]) -> list[str]:
    """The unit with most rows, which stands for a hypothesis that was not tested."""
    units = [part.unit for part in context]
    return [max(dict.fromkeys(units), key=units.count)] if units else []


def _shortened(sheet: Sheet, text: str, across: float) -> str:
    first, *rest = sheet.broken(text, sheet.small, across).split("\n")
    if not rest:
        return first
    return f"{first}\n{rest[0]}{'…' if len(rest) > 1 else ''}"


def _height(stack: Sequence[_Panel]) -> float:
    return sum(panel.height for panel in stack)


def _balanced(heights: Sequence[float]) -> int:
    """How many panels stand in the first of two columns, so that the taller one is as low as can be."""
    return min(range(1, len(heights)), key=lambda n: max(sum(heights[:n]), sum(heights[n:])))


def _draw(axes: Axes, panel: _Panel, delta: float | None, sheet: Sheet) -> None:
    axes.axvline(0, color=INK, lw=0.8, zorder=1)
    if delta is not None and set(panel.units) <= set(_ON_ERRORS):
        axes.axvline(delta, **TOLERANCE, label=tolerance_name(delta))
    at = 0.0
    for row in panel.rows:
        style = {"fontsize": sheet.small, "va": "top", "color": INK if row.part else MUTED, "zorder": 6}
        style |= {"transform": axes.get_yaxis_transform(), "bbox": _OPAQUE}
        axes.text(0, at + 0.02, row.text, **style)
        if row.p:
            axes.text(1, at + 0.02, row.p, ha="right", **style)
        middle = at + row.height - _ROW / 2
        if row.part is not None:
            _draw_part(axes, row.part, middle, panel.colour)
        _draw_cells(axes, row.cells, middle)
        at += row.height
    axes.set(ylim=(panel.rows_height, 0), xlabel=" · ".join(panel.units))
    axes.set_yticks([])
    axes.margins(x=0.04)
    axes.locator_params(axis="x", nbins=6)
    axes.tick_params(axis="x", labelsize=sheet.small)
    axes.xaxis.label.set_fontsize(sheet.small)
    axes.grid(axis="x", color=FAINT, lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_title(panel.heading, loc="left", fontsize=sheet.small, color=panel.colour)


def _draw_part(axes: Axes, part: Part, at: float, colour: str) -> None:
    if np.isfinite([part.low, part.high]).all():
        axes.plot([part.low, part.high], [at, at], color=colour, lw=2.0, solid_capstyle="butt", zorder=4)
    if np.isfinite(part.estimate):
        axes.plot(part.estimate, at, "o", ms=5, color=colour, mec="white", mew=0.6, zorder=5)


def _draw_cells(axes: Axes, cells: Sequence[Part], at: float) -> None:
    """Points one beside another where they would hide each other: in turn on three levels."""
    for place, cell in enumerate(sorted(cells, key=lambda part: part.estimate)):
        face = "white" if cell.what.startswith(_OUTSIDE) else LIGHT_GREY
        y = at + _ROW * 0.28 * (place % 3 - 1)
        axes.plot(cell.estimate, y, "o", ms=3.2, mfc=face, mec=MUTED, mew=0.5, zorder=3)
