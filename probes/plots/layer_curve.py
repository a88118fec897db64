"""Figures of predictability. Knows the columns of `probes.evaluation.layerwise`."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

# Okabe & Ito's blue and vermilion, distinguishable in every common colour blindness; they differ in lightness too, and
# line style and marker say the same again in grey.
PROBE, CONTROL, INK, MUTED = "#0072B2", "#D55E00", "#222222", "#6B6B6B"
_MEASURES = {"kl_explained": "share of KL explained", "r2": "r²"}


def layer_curve(frame: pd.DataFrame, *, title: str) -> Figure:
    """Share explained by layer, with its interval, the null, the control task and the noise ceiling.

    Args:
        frame: rows of `evaluate` or `evaluate_scalar` for one target, in the order of the layers.
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

    null = float(frame["null_q95"].iloc[0])
    if np.isfinite(null):
        band = {"facecolor": "#DEDEDE", "edgecolor": "#9A9A9A", "lw": 0.8}
        axes.axhspan(min(0.0, null), max(0.0, null), **band, label="95 % of the null's maximum over layers")
    axes.axhline(0, color=INK, lw=0.8)
    ceiling = float(frame["ceiling"].iloc[0])
    if np.isfinite(ceiling):
        axes.axhline(ceiling, color=INK, lw=1.2, ls=(0, (5, 3)), label="noise ceiling (finite M, approximate)")
    axes.fill_between(x, frame["low"], frame["high"], color=PROBE, alpha=0.22, lw=0)
    axes.plot(x, frame["explained"], color=PROBE, lw=2.2, marker="o", ms=5, label="linear probe, with its interval")
    axes.plot(x, frame["control"], color=CONTROL, lw=1.0, ls="-.", marker="s", ms=3, label="control task")

    lowest = float(np.nanmin([0.0, *frame["low"], *frame["control"]]))
    axes.set_ylim(lowest - 0.04, max(1.02, float(np.nanmax([0.0, *frame["high"]])) + 0.02))
    axes.set_xlim(-0.4, len(frame) - 0.6)
    axes.yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    axes.set_ylabel(_MEASURES.get(measure, measure))
    names = short_names(frame["layer"].tolist())
    every = -(-len(names) // 16)  # at most 16 labels
    axes.set_xticks(x[::every], names[::every])
    if max(map(len, names)) > 8:
        axes.tick_params(axis="x", rotation=30)
    axes.set_xlabel("layer")
    axes.grid(axis="y", color="#E6E6E6", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.set_title(title, loc="left", fontsize=11, color=INK)
    handles, labels = axes.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda index: not labels[index].startswith("linear"))
    figure.legend(
        [handles[i] for i in order],
        [labels[i] for i in order],
        loc="outside lower center",
        ncols=2,
        frameon=False,
        fontsize=8.5,
        labelcolor=MUTED,
    )
    return figure


def short_names(layers: Sequence[str]) -> list[str]:
    """TransformerLens names cut to what tells layers apart: "blocks.3.hook_resid_post" is "3" if all hooks agree."""
    parts = [re.fullmatch(r"blocks\.(\d+)\.(?:hook_)?(.+)", name) for name in layers]
    hooks = {part[2] for part in parts if part}
    short = []
    for name, part in zip(layers, parts, strict=True):
        if part is None:
            short.append(name.removeprefix("hook_"))
        else:
            short.append(part[1] if len(hooks) == 1 else f"{part[1]} {part[2]}")
    return short


def position_name(position: str) -> str:
    """A position in words: "chain_25" is "chain, 25 %"."""
    chain = re.fullmatch(r"chain_(\d+)", position)
    return f"chain, {chain[1]} %" if chain else position.replace("_", " ")
