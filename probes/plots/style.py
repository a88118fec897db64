"""What the figures of probes share: colours, frames, legends, and names of layers and positions."""

import re
from collections.abc import Iterable, Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

# Okabe & Ito's blue and vermilion, distinguishable in every common colour blindness; they differ in lightness too, and
# line style and marker say the same again in grey.
PROBE, CONTROL, INK, MUTED = "#0072B2", "#D55E00", "#222222", "#6B6B6B"
CEILING = {"color": INK, "lw": 1.2, "ls": (0, (5, 3)), "label": "noise ceiling (finite M, approximate)"}


def tidy(axes: Axes, grid: Literal["both", "x", "y"] = "both") -> None:
    axes.grid(axis=grid, color="#E6E6E6", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def in_percent(*axis: Axis) -> None:
    for one in axis:
        one.set_major_formatter(PercentFormatter(xmax=1, decimals=0))


def entitle(of: Figure | Axes, title: str) -> None:
    if isinstance(of, Figure):
        of.suptitle(title, x=0.01, ha="left", fontsize=11, color=INK)
    else:
        of.set_title(title, loc="left", fontsize=11, color=INK)


def legend_below(figure: Figure, axes: Iterable[Axes], columns: int) -> None:
    """One legend for all panels, each label once."""
    entries = {label: h for one in axes for h, label in zip(*one.get_legend_handles_labels(), strict=True)}
    style = {"frameon": False, "fontsize": 8.5, "labelcolor": MUTED}
    figure.legend(entries.values(), entries.keys(), loc="outside lower center", ncols=columns, **style)


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
