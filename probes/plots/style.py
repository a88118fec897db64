"""What the figures of probes share: colours, frames, and names of layers and positions."""

import re
from collections.abc import Sequence
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.ticker import PercentFormatter

from semcal.calibration.plots.palette import BLUE, FAINT, INK

# Okabe & Ito's blue and vermilion, distinguishable in every common colour blindness; they differ in lightness too, and
# line style and marker say the same again in grey.
PROBE, CONTROL = BLUE, "#D55E00"
CEILING = {"color": INK, "lw": 1.2, "ls": (0, (5, 3)), "label": "noise ceiling (finite M, approximate)"}
_EMBEDDED = "blocks.0.hook_resid_pre"


def tidy(axes: Axes, grid: Literal["both", "x", "y"] = "both") -> None:
    axes.grid(axis=grid, color=FAINT, lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def in_percent(*axis: Axis) -> None:
    for one in axis:
        one.set_major_formatter(PercentFormatter(xmax=1, decimals=0, symbol=" %"))


def short_names(layers: Sequence[str]) -> list[str]:
    """TransformerLens names cut to what tells layers apart: "blocks.3.hook_resid_post" is "3" if all hooks agree, and
    "blocks.0.hook_resid_pre" before such layers is "embed": what the first block reads."""
    parts = [re.fullmatch(r"blocks\.(\d+)\.(?:hook_)?(.+)", name) for name in layers]
    hooks = {part[2] for part, name in zip(parts, layers, strict=True) if part and name != _EMBEDDED}
    alike = len(hooks) <= 1 and hooks != {"resid_pre"}
    short = []
    for name, part in zip(layers, parts, strict=True):
        if part is None:
            short.append(name.removeprefix("hook_"))
        elif alike and name == _EMBEDDED:
            short.append("embed")
        else:
            short.append(part[1] if len(hooks) <= 1 else f"{part[1]} {part[2]}")
    return short


def position_name(position: str) -> str:
    """A position in words: "chain_25" is "chain, 25 %"."""
    chain = re.fullmatch(r"chain_(\d+)", position)
    return f"chain, {chain[1]} %" if chain else position.replace("_", " ")
