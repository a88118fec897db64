"""Predictability against calibration error over runs: the paper's claim in one picture.

Knows a table with one row per run; draws on a bare Figure, without pyplot's state.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import PercentFormatter
from scipy.stats import permutation_test, rankdata

from semcal.calibration.plots.curves import LINES
from semcal.seeds import keyed_generator

_INK, _MUTED = "#222222", "#6B6B6B"
_FEWEST = 4  # runs; of three, even a perfect order happens by chance once in three
_PERMUTATIONS = 9999
_FIGURES = ("explained", "low", "high", "excess", "excess_low", "excess_high")


def predictability_scatter(
    frame: pd.DataFrame, *, title: str, measure: str = "share of KL explained", seed: int
) -> Figure:
    """Excess calibration error against predictability, one numbered marker per run; styles differ in marker and colour.

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
    axes.axhline(0, color=_INK, lw=0.8)
    styles = list(dict.fromkeys(shown["style"]))
    for style, (colour, _, marker) in zip(styles, LINES * len(styles), strict=False):
        x, low, high, y, bottom, top = figures[:, (shown["style"] == style).to_numpy()]
        across, up = np.abs([low - x, high - x]), np.abs([bottom - y, top - y])
        axes.errorbar(x, y, yerr=up, xerr=across, fmt="none", ecolor=colour, elinewidth=1.0, alpha=0.6, zorder=2)
        axes.plot(x, y, marker, color=colour, ms=8, mec="white", mew=0.6, label=style, zorder=3)
    for index, place in enumerate(figures[[0, 3]].T, start=1):
        axes.annotate(str(index), place, (5, 4), textcoords="offset points", fontsize=8.5, color=_INK)
    if len(shown) >= _FEWEST:
        corner = _rank_correlation(figures[0], figures[3], seed)
        axes.set_title(corner, loc="right", fontsize=9, color=_MUTED)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=_INK)
    axes.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.set(xlabel=measure, ylabel="smECE minus the mean of its null")
    axes.grid(color="#E6E6E6", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="best", frameon=False, fontsize=8.5)
    _key(figure, [f"{i}  {label}" for i, label in enumerate(shown["label"], start=1)])
    return figure


def _rank_correlation(x: np.ndarray, y: np.ndarray, seed: int) -> str:
    if np.ptp(x) == 0 or np.ptp(y) == 0:
        return f"n = {len(x)}"

    first, second = (_standardised(rankdata(values)) for values in (x, y))

    def rho(ranks: np.ndarray, axis: int = -1) -> np.ndarray:
        return (ranks * second).mean(axis)

    rng = keyed_generator(seed, "predictability", "permutations")
    test = permutation_test(
        (first,), rho, permutation_type="pairings", vectorized=True, n_resamples=_PERMUTATIONS, rng=rng
    )
    return f"Spearman ρ = {test.statistic:.2f}, p = {test.pvalue:.2g}, n = {len(x)}".replace("-", "−", 1)


def _standardised(values: np.ndarray) -> np.ndarray:
    return (values - values.mean()) / values.std()


def _key(figure: Figure, lines: list[str]) -> None:
    """Which number is which run, in two columns below."""
    handles = [Line2D([], [], ls="none") for _ in lines]
    figure.legend(
        handles,
        lines,
        loc="outside lower left",
        ncols=2,
        frameon=False,
        fontsize=8,
        handlelength=0,
        handletextpad=0,
        labelcolor=_INK,
    )
