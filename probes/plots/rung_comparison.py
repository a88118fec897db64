"""What each rung of the ladder explains, next to the baselines: one panel per position.

Knows the columns of `probes.evaluation.layerwise`; draws on a bare Figure, without pyplot's state.
"""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator, PercentFormatter

from probes.evaluation.result import BASELINE
from probes.plots.layer_curve import INK, MUTED, PROBE, position_name

_LADDER = {
    "linear": "linear",
    "ridge-logit": "ridge on logits",
    "low-rank": "low-rank",
    "attention": "attention",
    "mlp": "MLP",
    "lora": "LoRA",
    "lens": "logit lens",
}
_BASELINES = {"tfidf": "TF-IDF and length", "random-init": "random weights", "step-0": "weights at step 0"}
_LOWEST = -0.5  # share; what lies below is written at the edge
_COLUMNS = 3


def rungs_figure(frame: pd.DataFrame, *, title: str, measure: str = "share of KL explained") -> Figure:
    """Share explained by rung, with its interval and the noise ceiling; below a line, hollow, the baselines.

    Args:
        frame: columns position, rung, explained, low, high, ceiling; one row a position and rung, of a single target
            and layer, as `at_layer` leaves them. A baseline's rung begins with "baseline:"; the marginal, which
            explains nothing by definition, is left out.
        title: above the figure.
        measure: what is explained, in words.

    Raises:
        ValueError: no row, or a duplicated position and rung.
    """
    if frame.duplicated(["position", "rung"]).any():
        raise ValueError(f"the frame has {len(frame)} rows; expected one per position and rung, of a single target")
    shown = frame.loc[frame["rung"] != f"{BASELINE}marginal", :]
    if shown.empty:
        raise ValueError("the frame has no rung to show")
    rungs = _in_order(list(dict.fromkeys(shown["rung"])))
    positions = list(dict.fromkeys(shown["position"]))
    columns = min(_COLUMNS, len(positions))
    rows = -(-len(positions) // columns)
    # A single panel is as wide as the other figures.
    width, height = max(6.4, 1.8 + 2.6 * columns), 1.2 + rows * (0.5 + 0.26 * len(rungs))
    figure = Figure(figsize=(width, height), layout="constrained")
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, position in zip(grid.flat, positions, strict=False):
        _panel(axes, shown.loc[shown["position"] == position, :].set_index("rung"), rungs)
        axes.set_title(position_name(position), loc="left", fontsize=9.5, color=INK)
    for axes in grid.flat[len(positions) :]:
        axes.set_visible(False)
    for below, axes in enumerate(grid.flat[: len(positions)], start=columns):
        if below >= len(positions):  # the lowest of its column
            axes.tick_params(labelbottom=True)
            axes.set_xlabel(measure, fontsize=9)
    first = grid.flat[0]
    first.set_yticks(range(len(rungs)), [_name(rung) for rung in rungs])
    first.set_ylim(len(rungs) - 0.4, -0.6)
    lowest = float(np.nanmin([0.0, *shown["low"], *shown["explained"]]))
    first.set_xlim(max(_LOWEST, lowest) - 0.05, 1.05)
    first.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    first.xaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK)
    handles = {label: h for axes in grid.flat for h, label in zip(*axes.get_legend_handles_labels(), strict=True)}
    figure.legend(
        handles.values(),
        handles.keys(),
        loc="outside lower center",
        ncols=3,
        frameon=False,
        fontsize=8.5,
        labelcolor=MUTED,
    )
    return figure


def _panel(axes: Axes, its: pd.DataFrame, rungs: list[str]) -> None:
    """One position: `its` has one row per rung fitted there."""
    axes.axvline(0, color=INK, lw=0.8)
    ceiling = float(its["ceiling"].to_numpy(float).max())
    if np.isfinite(ceiling):
        axes.axvline(ceiling, color=INK, lw=1.2, ls=(0, (5, 3)), label="noise ceiling (finite M, approximate)")
    for at, rung in enumerate(rungs):
        if rung not in its.index:
            continue
        value, low, high = its.loc[rung, ["explained", "low", "high"]].to_numpy(float)
        if value < _LOWEST:
            axes.plot([_LOWEST], [at], "<", color=MUTED, ms=5)
            axes.annotate(f"{100 * value:.0f} %".replace("-", "−"), (_LOWEST, at), (6, -3), **_NEAR)
            continue
        baseline = rung.startswith(BASELINE)
        axes.errorbar(
            [value],
            [at],
            xerr=np.abs([[low - value], [high - value]]),
            color=MUTED if baseline else PROBE,
            marker="s" if baseline else "o",
            mfc="white" if baseline else PROBE,
            ms=5 if baseline else 6,
            elinewidth=1.6,
            lw=0,
            label="baseline" if baseline else "probe, with its interval",
            zorder=3,
        )
    probes = sum(not rung.startswith(BASELINE) for rung in rungs)
    if 0 < probes < len(rungs):
        axes.axhline(probes - 0.5, color="#BDBDBD", lw=0.8)
    axes.grid(axis="x", color="#E6E6E6", lw=0.7)
    axes.set_axisbelow(True)
    axes.tick_params(axis="y", length=0)
    axes.tick_params(labelsize=8.5)
    axes.spines[["top", "right"]].set_visible(False)


_NEAR = {"textcoords": "offset points", "fontsize": 8, "color": MUTED}


def _in_order(rungs: list[str]) -> list[str]:
    """Up the ladder, then rungs that it does not know, then baselines."""
    known = [rung for rung in _LADDER if rung in rungs]
    rest = [rung for rung in rungs if rung not in known]
    return [*known, *sorted(rest, key=lambda rung: rung.startswith(BASELINE))]


def _name(rung: str) -> str:
    bare = rung.removeprefix(BASELINE)
    return _BASELINES.get(bare, bare.replace("-", " ")) if rung != bare else _LADDER.get(rung, rung.replace("-", " "))
