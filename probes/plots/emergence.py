"""Predictability and calibration error along training: which comes first.

Knows a table with one row per run; draws on a bare Figure, without pyplot's state.
"""

from __future__ import annotations

from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, PercentFormatter

from semcal.calibration.plots.curves import LINES

_INK = "#222222"
_PANELS = (
    ("explained", "low", "high", "share of the noise ceiling\nthat a linear probe explains"),
    ("excess", "excess_low", "excess_high", "smECE minus the\nmean of its null"),
)


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
        axes.axhline(0, color=_INK, lw=0.8)
        for (name, its), (colour, dash, marker) in zip(frame.groupby("line", sort=False), cycle(LINES), strict=False):
            own = its.sort_values("step")
            x, y = own["step"].to_numpy(float), own[value].to_numpy(float)
            spread = np.abs(own[[low, high]].to_numpy(float).T - y)
            axes.errorbar(x, y, yerr=spread, color=colour, ls=dash, marker=marker, ms=4.5, lw=1.6, elinewidth=0.9,
                          label=str(name))  # fmt: skip
        axes.set_ylabel(label)
        _tidy(axes)
    panels[0].yaxis.set_major_formatter(PercentFormatter(xmax=1, decimals=0))
    positive = steps[steps > 0]
    panels[1].set_xscale("symlog", linthresh=float(positive[0]) if len(positive) else 1.0)
    panels[1].set_xticks(steps)
    panels[1].xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:,.0f}"))
    panels[1].tick_params(axis="x", labelrotation=45)
    panels[1].set_xlabel("training steps")
    panels[1].minorticks_off()
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=_INK)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8.5)
    return figure


def _tidy(axes: Axes) -> None:
    axes.grid(color="#E6E6E6", lw=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
