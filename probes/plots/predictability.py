"""Predictability and calibration error: over runs, the paper's claim in one picture, and along training.

Knows tables with one row per run; draws on bare Figures, without pyplot's state.
"""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter

from probes.plots.measures import GAP
from probes.plots.style import tidy
from semcal.calibration.inference.errors_in_variables import slope
from semcal.calibration.plots.palette import INK, MUTED, TOLERANCE, lines_of, styles_in_order, tolerance_name
from semcal.calibration.plots.sheet import Sheet, inches

_FEWEST = 4  # runs; a line through three says too little
_NUMBERED = 48  # runs at most that are numbered and named
_NORMAL = 1.96  # half the length of an interval of 95 %, in standard errors
_EXCESS = ("excess", "excess_low", "excess_high")
_FIGURES = (*GAP.columns, *_EXCESS)


def predictability_scatter(
    frame: pd.DataFrame,
    *,
    title: str = "",
    probe: str,
    delta: float | None = None,
    small_gap: float | None = None,
    width: float | None = None,
) -> Figure:
    """Excess calibration error against the KL gap, one marker per run, numbered where there are at most 48; marker and
    colour show the style, and hollow markers are models that were not trained by a proper loss to the end.

    The line, with its slope in the corner, is fitted with errors in both directions (`errors_in_variables.slope`) to
    the `fitted` runs, of which there have to be 4: those of models trained by a proper loss, about which the mechanism
    is a claim; pooling others with them reverses signs. The interval of the slope, of 95 %, is by places, which every
    training seed repeats, and by kin, such as training seeds, where there are three or more of these; fewer than three
    places have no interval.

    Args:
        frame: columns label, style, kin, place; proper (a bool: base or SFT model), fitted (a bool); gap, gap_low,
            gap_high, in nats; excess, excess_low, excess_high (smECE minus the mean of its null), intervals of 95 %.
            Rows without gap or error are left out.
        title: above the figure.
        probe: whose gap it is, in words.
        delta, small_gap: the smallest calibration error that counts, and the KL gap (nats) below which a distribution
            is easy to predict, drawn as lines; None: not known.
        width: of the figure, inches; None for its own.

    Raises:
        ValueError: no run has both.
    """
    there = np.isfinite(frame[[GAP.value, "excess"]].to_numpy(float)).all(1)
    shown = frame.loc[there, :]
    if shown.empty:
        raise ValueError("no run has both a KL gap and a calibration error; run probes and score first")
    figures, proper = shown[[*_FIGURES]].to_numpy(float).T, shown["proper"].to_numpy(bool)  # [figure, run], [run]
    sheet = Sheet.of(width, 6.4)
    named = shown["label"] if len(shown) <= _NUMBERED else []
    key = [f"{i}  {label}" for i, label in enumerate(named, start=1)]
    wide = 2 * max((inches(line, sheet.small) for line in key), default=0.0) + 0.4
    columns = 2 if not sheet.narrow and wide < sheet.width else 1
    rows = -(-len(key) // columns)
    figure = sheet.figure(0.55 * sheet.width + 0.8)
    axes = figure.add_subplot()
    axes.axhline(0, color=INK, lw=0.8)
    axes.axvline(0, color=INK, lw=0.8)
    _tolerances(axes, delta, small_gap)
    lines = lines_of(shown["style"].tolist())
    for style in styles_in_order(shown["style"].tolist()):
        colour, _, marker = lines[style]
        for of_proper in (True, False):
            own = (shown["style"] == style).to_numpy() & (proper == of_proper)
            x, low, high, y, bottom, top = figures[:, own]
            across, up = np.abs([low - x, high - x]), np.abs([bottom - y, top - y])
            axes.errorbar(x, y, yerr=up, xerr=across, fmt="none", ecolor=colour, elinewidth=1.0, alpha=0.6, zorder=2)
            edge = {"mec": "white", "mew": 0.6} if of_proper else {"mec": colour, "mew": 1.4, "mfc": "white"}
            axes.plot(x, y, marker, ls="none", color=colour, ms=8 * sheet.scale, **edge, zorder=3)
        axes.plot([], [], marker, ls="none", color=colour, ms=8 * sheet.scale, mec="white", mew=0.6, label=style)
    if not proper.all():
        axes.plot(
            [], [], "o", ls="none", ms=8 * sheet.scale, mfc="white", mec=MUTED, mew=1.4, label="hollow: not base or SFT"
        )
    for index, place in zip(range(1, len(key) + 1), figures[[0, 3]].T, strict=False):
        axes.annotate(str(index), place, (5, 4), textcoords="offset points", fontsize=sheet.small, color=INK)
    fitted = shown["fitted"].to_numpy(bool)
    if slope_said := _fitted(
        axes, figures[:, fitted], *(shown.loc[fitted, name].tolist() for name in ("place", "kin"))
    ):
        said = slope_said if fitted.all() else f"base and SFT: {slope_said}"
        axes.set_title(
            sheet.broken(said, sheet.small, sheet.width - 1.2), loc="right", fontsize=sheet.small, color=MUTED
        )
    sheet.entitle(figure, title)
    axes.set(xlabel=f"KL gap of the {probe}, nats", ylabel="smECE minus the mean of its null")
    tidy(axes)
    marks, names = axes.get_legend_handles_labels() if sheet.narrow else ([], [])  # inside, it would cover the runs
    if not sheet.narrow:
        axes.legend(loc="best", frameon=False, fontsize=sheet.small)
    style = {"frameon": False, "fontsize": sheet.small, "labelcolor": INK}
    style |= {"handletextpad": 0.4} if sheet.narrow else {"handlelength": 0, "handletextpad": 0}
    blank = [Line2D([], [], ls="none") for _ in key]
    key = [sheet.broken(line, sheet.small, sheet.width - 0.5) if sheet.narrow else line for line in key]
    rows += sum(line.count("\n") for line in key)
    figure.legend([*marks, *blank], [*names, *key], loc="outside lower left", ncols=columns, **style)
    figure.set_figheight(figure.get_figheight() + sheet.lines(rows + len(names)))
    return sheet.letter(figure)


def _tolerances(axes: Axes, delta: float | None, small_gap: float | None) -> None:
    """Lines at what counts: an error from delta on, and a gap from small_gap on."""
    if delta is not None:
        axes.axhline(delta, **TOLERANCE, label=tolerance_name(delta))
    if small_gap is not None:
        style: dict[str, Any] = TOLERANCE | {"color": MUTED}
        axes.axvline(small_gap, **style, label=f"{small_gap:g} nats: easy to predict below")


def _fitted(axes: Axes, figures: np.ndarray, places: list[str], kin: list[str]) -> str:
    """Draw the line of excess on gap and say its slope; "" where an error is not known, or gaps do not differ.

    Args:
        figures: [figure, run] in the order of `_FIGURES`.
        places, kin: [run].
    """
    known = np.isfinite(figures).all(axis=0).reshape(-1)
    x, x_low, x_high, y, y_low, y_high = figures[:, known]
    if known.sum() < _FEWEST or np.ptp(x) == 0:
        return ""
    x_error, y_error = (x_high - x_low) / (2 * _NORMAL), (y_high - y_low) / (2 * _NORMAL)
    place, of = ([labels[i] for i in known.nonzero()[0]] for labels in (places, kin))
    line = slope(x, y, x_error, y_error, clusters=[place, of] if len(set(of)) >= 3 else [place])
    weight = 1 / (y_error**2 + (line.estimate * x_error) ** 2 + 1e-8)
    middle = np.average(x, weights=weight), np.average(y, weights=weight)
    ends = np.array([x.min(), x.max()])
    axes.plot(ends, middle[1] + line.estimate * (ends - middle[0]), color=MUTED, lw=1.2, zorder=1)
    low, high = line.interval(0.95)
    between = f" [{low:+.3f}, {high:+.3f}]" if np.isfinite(low) else ""
    by = f"{len(set(place))} places, {len(set(of))} lineage{'' if len(set(of)) == 1 else 's'}"
    return f"slope {line.estimate:+.3f}{between} a nat, {len(x)} runs, {by}".replace("-", "−")


def emergence_curve(
    frame: pd.DataFrame,
    *,
    title: str = "",
    probe: str,
    delta: float | None = None,
    small_gap: float | None = None,
    width: float | None = None,
) -> Figure:
    """Above, what a probe misses of a model's class distribution after so many training steps; below, how far the model
    is from calibrated. One line per dataset, style and lineage, lineages alike; step 0 is left of a logarithmic axis.

    Args:
        frame: columns line (its name), lineage, step; gap, gap_low, gap_high; excess, excess_low, excess_high, as
            `predictability_scatter` has them. NaN leaves a gap.
        title: above the figure.
        probe: whose KL gap it is, in words.
        delta, small_gap: as `predictability_scatter` has them.
        width: of the figure, inches; None for its own.

    Raises:
        ValueError: fewer than two steps.
    """
    steps = np.unique(frame["step"])
    if len(steps) < 2:
        raise ValueError(f"{len(steps)} training step; a curve needs at least two")
    sheet = Sheet.of(width, 6.4)
    figure = sheet.figure(0.7 * sheet.width + 0.9)
    panels = figure.subplots(2, 1, sharex=True)
    shown = ((*GAP.columns, f"KL gap of the\n{probe}, nats"), (*_EXCESS, "smECE minus the\nmean of its null"))
    lines, limits = lines_of(frame["line"].tolist()), (small_gap, delta)
    names = (f"{small_gap or 0:g} nats: easy to predict below", tolerance_name(delta or 0.0))
    for axes, (value, low, high, label), limit, what in zip(panels, shown, limits, names, strict=True):
        axes.axhline(0, color=INK, lw=0.8)
        if limit is not None:
            axes.axhline(limit, **TOLERANCE | {"color": MUTED if axes is panels[0] else TOLERANCE["color"]}, label=what)
        for name, of_line in frame.groupby("line", sort=False):
            colour, dash, marker = lines[str(name)]
            style = {"color": colour, "ls": dash, "marker": marker, "elinewidth": 0.9}
            size = {"ms": 4.5 * sheet.scale, "lw": 1.6 * sheet.scale}
            for number, (_, rows) in enumerate(of_line.groupby("lineage", sort=False)):
                own = rows.sort_values("step")
                x, y = own["step"].to_numpy(float), own[value].to_numpy(float)
                spread = np.abs(own[[low, high]].to_numpy(float).T - y)
                axes.errorbar(x, y, yerr=spread, label=None if number else str(name), **style, **size)
        axes.set_ylabel(label)
        tidy(axes)
    positive = steps[steps > 0]
    panels[1].set_xscale("symlog", linthresh=float(positive[0]) if len(positive) else 1.0)
    panels[1].set_xticks(steps)
    panels[1].xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    panels[1].tick_params(axis="x", labelrotation=45)
    panels[1].set_xlabel("training steps")
    panels[1].minorticks_off()
    sheet.entitle(figure, title)
    sheet.legend(figure, panels, 3)
    return sheet.letter(figure)
