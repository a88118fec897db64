"""Shares explained in one run: by layer, and by rung of the ladder next to the baselines.

Draws on bare Figures, without pyplot's state.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from probes.evaluation.result import BASELINE
from probes.plots.style import (
    CEILING,
    CONTROL,
    INK,
    MUTED,
    PROBE,
    entitle,
    in_percent,
    legend_below,
    position_name,
    short_names,
    tidy,
)

_MEASURES = {"kl_explained": "share of KL explained", "r2": "r²"}
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


def layer_curve(frame: pd.DataFrame, *, title: str) -> Figure:
    """Share explained by layer, with its interval, the null, the control task and the noise ceiling.

    Args:
        frame: rows of `evaluate_all` for one target, in the order of the layers.
        title: of the figure.

    Raises:
        ValueError: the frame is empty or has more than one target.
    """
    kinds = sorted(set(zip(frame["target"], frame["measure"], strict=True)))
    if len(kinds) != 1:
        raise ValueError(f"the frame has {len(kinds)} targets; expected the rows of exactly one")
    measure = str(kinds[0][1])
    x = np.arange(len(frame))
    figure = Figure(figsize=(6.4, 4.0))
    figure.set_layout_engine("constrained", w_pad=0.15)
    axes = figure.add_subplot()
    name = "linear probe, with its interval"
    axes.plot(x, frame["explained"], color=PROBE, lw=2.2, marker="o", ms=5, zorder=2.1, label=name)
    null = float(frame["null_q95"].iloc[0])
    if np.isfinite(null):
        band = {"facecolor": "#DEDEDE", "edgecolor": "#9A9A9A", "lw": 0.8}
        axes.axhspan(min(0.0, null), max(0.0, null), **band, label="95 % of the null's maximum over layers")
    axes.axhline(0, color=INK, lw=0.8)
    ceiling = float(frame["ceiling"].iloc[0])
    if np.isfinite(ceiling):
        axes.axhline(ceiling, **CEILING)
    axes.fill_between(x, frame["low"], frame["high"], color=PROBE, alpha=0.22, lw=0)
    axes.plot(x, frame["control"], color=CONTROL, lw=1.0, ls="-.", marker="s", ms=3, zorder=2.2, label="control task")

    lowest = float(np.nanmin([0.0, *frame["low"], *frame["control"]]))
    axes.set_ylim(lowest - 0.04, max(1.02, float(np.nanmax([0.0, *frame["high"]])) + 0.02))
    axes.set_xlim(-0.4, len(frame) - 0.6)
    in_percent(axes.yaxis)
    axes.set_ylabel(_MEASURES.get(measure, measure))
    names = short_names(frame["layer"].tolist())
    every = -(-len(names) // 16)  # at most 16 labels
    axes.set_xticks(x[::every], names[::every])
    if max(map(len, names)) > 8:
        axes.tick_params(axis="x", rotation=30)
    axes.set_xlabel("layer")
    tidy(axes, "y")
    entitle(axes, title)
    legend_below(figure, [axes], 2)
    return figure


def rungs_figure(frame: pd.DataFrame, *, title: str, measure: str = "share of KL explained") -> Figure:
    """Share explained by rung, with its interval and the noise ceiling; below a line, hollow, the baselines.

    Args:
        frame: columns position, rung, explained, low, high, ceiling; one row per position and rung, of a single target
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
    in_percent(first.xaxis)
    entitle(figure, title)
    legend_below(figure, grid.flat, 3)
    return figure


def _panel(axes: Axes, fitted: pd.DataFrame, rungs: list[str]) -> None:
    """One position, with one row per rung fitted there."""
    axes.axvline(0, color=INK, lw=0.8)
    ceiling = float(fitted["ceiling"].to_numpy(float).max())
    if np.isfinite(ceiling):
        axes.axvline(ceiling, **CEILING)
    for at, rung in enumerate(rungs):
        if rung not in fitted.index:
            continue
        value, low, high = fitted.loc[rung, ["explained", "low", "high"]].to_numpy(float)
        if value < _LOWEST:
            axes.plot([_LOWEST], [at], "<", color=MUTED, ms=5)
            share = f"{100 * value:.0f} %".replace("-", "−")
            axes.annotate(share, (_LOWEST, at), (6, -3), textcoords="offset points", fontsize=8, color=MUTED)
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
    tidy(axes, "x")
    axes.tick_params(axis="y", length=0)
    axes.tick_params(labelsize=8.5)


def _in_order(rungs: list[str]) -> list[str]:
    """Up the ladder, then rungs that it does not know, then baselines."""
    ladder = list(_LADDER)
    return sorted(rungs, key=lambda r: (r.startswith(BASELINE), ladder.index(r) if r in ladder else len(ladder)))


def _name(rung: str) -> str:
    bare = rung.removeprefix(BASELINE)
    return _BASELINES.get(bare, bare.replace("-", " ")) if rung != bare else _LADDER.get(rung, rung.replace("-", " "))
