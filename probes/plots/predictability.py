"""Predictability and calibration error: over runs, the paper's claim in one picture, and along training.

Knows tables with one row per run; draws on bare Figures, without pyplot's state.
"""

from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter
from scipy.stats import permutation_test, rankdata

from probes.plots.style import INK, MUTED, entitle, in_percent, legend_below, tidy
from semcal.calibration.plots.curves import LINES
from semcal.seeds import keyed_generator

_FEWEST = 4  # runs; of three, even a perfect order happens by chance once in three
_PERMUTATIONS = 9999
_FIGURES = ("explained", "low", "high", "excess", "excess_low", "excess_high")
_PANELS = (
    ("explained", "low", "high", "share of the noise ceiling\nthat a linear probe explains"),
    ("excess", "excess_low", "excess_high", "smECE minus the\nmean of its null"),
)


def predictability_scatter(
    frame: pd.DataFrame, *, title: str, measure: str = "share of KL explained", seed: int
) -> Figure:
    """Excess calibration error against predictability, one numbered marker per run; marker and colour show the style.

    In the corner is Spearman's rho with its two-sided permutation p-value, exact for few runs, where there are at
    least 4. It takes runs as exchangeable, which runs of one model or one dataset are not quite: read p as a guide.

    Args:
        frame: columns label, style; explained, low, high; excess, excess_low, excess_high (smECE minus the mean of its
            null). Rows without predictability or error are left out.
        title: above the figure.
        measure: of the horizontal axis, in words, e.g. a share of the noise ceiling.
        seed: of the permutations.

    Raises:
        ValueError: no run has both.
    """
    there = np.isfinite(frame[["explained", "excess"]].to_numpy(float)).all(1)
    shown = frame.loc[there, :]
    if shown.empty:
        raise ValueError("no run has both a predictability and a calibration error; run probes and score first")
    figures = shown[[*_FIGURES]].to_numpy(float).T  # [figure, run]
    rows = -(-len(shown) // 2)
    figure = Figure(figsize=(6.4, 4.3 + 0.17 * rows), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(0, color=INK, lw=0.8)
    styles = list(dict.fromkeys(shown["style"]))
    for style, (colour, _, marker) in zip(styles, LINES * len(styles), strict=False):
        x, low, high, y, bottom, top = figures[:, (shown["style"] == style).to_numpy()]
        across, up = np.abs([low - x, high - x]), np.abs([bottom - y, top - y])
        axes.errorbar(x, y, yerr=up, xerr=across, fmt="none", ecolor=colour, elinewidth=1.0, alpha=0.6, zorder=2)
        axes.plot(x, y, marker, color=colour, ms=8, mec="white", mew=0.6, label=style, zorder=3)
    for index, place in enumerate(figures[[0, 3]].T, start=1):
        axes.annotate(str(index), place, (5, 4), textcoords="offset points", fontsize=8.5, color=INK)
    if len(shown) >= _FEWEST:
        corner = _rank_correlation(figures[0], figures[3], seed)
        axes.set_title(corner, loc="right", fontsize=9, color=MUTED)
    entitle(figure, title)
    in_percent(axes.xaxis)
    axes.set(xlabel=measure, ylabel="smECE minus the mean of its null")
    tidy(axes)
    axes.legend(loc="best", frameon=False, fontsize=8.5)
    key = [f"{i}  {label}" for i, label in enumerate(shown["label"], start=1)]
    style = {"frameon": False, "fontsize": 8, "handlelength": 0, "handletextpad": 0, "labelcolor": INK}
    figure.legend([Line2D([], [], ls="none") for _ in key], key, loc="outside lower left", ncols=2, **style)
    return figure


def _rank_correlation(x: np.ndarray, y: np.ndarray, seed: int) -> str:
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return f"n = {len(x)}"

    first, second = ((ranks - ranks.mean()) / ranks.std() for ranks in (rankdata(x), rankdata(y)))

    def rho(ranks: np.ndarray, axis: int = -1) -> np.ndarray:
        return (ranks * second).mean(axis)

    rng = keyed_generator(seed, "predictability", "permutations")
    settings = {"permutation_type": "pairings", "vectorized": True, "n_resamples": _PERMUTATIONS}
    test = permutation_test((first,), rho, **settings, rng=rng)
    return f"Spearman ρ = {test.statistic:.2f}, p = {test.pvalue:.2g}, n = {len(x)}".replace("-", "−", 1)


def emergence_curve(frame: pd.DataFrame, *, title: str) -> Figure:
    """Above, how predictable a model's class distribution is after so many training steps; below, how far it is from
    calibrated. One line per dataset and style; step 0 is left of a logarithmic axis.

    Args:
        frame: columns line (its name), step; explained, low, high; excess, excess_low, excess_high, as
            `probes.plots.predictability` has them. NaN leaves a gap.
        title: above the figure.

    Raises:
        ValueError: fewer than two steps.
    """
    steps = np.unique(frame["step"])
    if len(steps) < 2:
        raise ValueError(f"{len(steps)} training step; a curve needs at least two")
    figure = Figure(figsize=(6.4, 6.2), layout="constrained")
    panels = figure.subplots(2, 1, sharex=True)
    for axes, (value, low, high, label) in zip(panels, _PANELS, strict=True):
        axes.axhline(0, color=INK, lw=0.8)
        for (name, rows), (colour, dash, marker) in zip(frame.groupby("line", sort=False), cycle(LINES), strict=False):
            own = rows.sort_values("step")
            x, y = own["step"].to_numpy(float), own[value].to_numpy(float)
            spread = np.abs(own[[low, high]].to_numpy(float).T - y)
            axes.errorbar(x, y, yerr=spread, color=colour, ls=dash, marker=marker, ms=4.5, lw=1.6, elinewidth=0.9,
                          label=str(name))  # fmt: skip
        axes.set_ylabel(label)
        tidy(axes)
    in_percent(panels[0].yaxis)
    positive = steps[steps > 0]
    panels[1].set_xscale("symlog", linthresh=float(positive[0]) if len(positive) else 1.0)
    panels[1].set_xticks(steps)
    panels[1].xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    panels[1].tick_params(axis="x", labelrotation=45)
    panels[1].set_xlabel("training steps")
    panels[1].minorticks_off()
    entitle(figure, title)
    legend_below(figure, panels[:1], 3)
    return figure
