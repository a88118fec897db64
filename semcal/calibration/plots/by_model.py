"""Models side by side: what they know, and how far and in which direction their confidence departs from it.

Knows a table with one row per run; draws on a bare Figure, without pyplot's state.
"""

from __future__ import annotations

from itertools import cycle

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from semcal.calibration.plots.curves import LINES

_INK = "#222222"
_PANELS = (
    ("accuracy", "accuracy"),
    ("signed_gap", "signed gap: confidence\nminus accuracy"),
    ("excess", "smECE minus the\nmean of its null"),
)


def by_model(frame: pd.DataFrame, *, title: str) -> Figure:
    """Accuracy, signed gap and excess calibration error with intervals: one row per model, one mark per line.

    Args:
        frame: columns model, line (a name, e.g. dataset and style); accuracy, signed_gap, excess, and each of them
            with _low and _high. NaN omits a mark or an interval.
        title: above the figure.

    Raises:
        ValueError: fewer than two models.
    """
    models, lines = list(dict.fromkeys(frame["model"])), list(dict.fromkeys(frame["line"]))
    if len(models) < 2:
        raise ValueError(f"{len(models)} model; a comparison needs at least two")
    thick = max(0.32, 0.12 * len(lines))  # inches of a row
    figure = Figure(figsize=(9.0, 1.6 + thick * len(models)), layout="constrained")
    panels = figure.subplots(1, len(_PANELS), sharey=True)
    offsets = np.linspace(-0.3, 0.3, len(lines)) if len(lines) > 1 else [0.0]
    for axes, (value, label) in zip(panels, _PANELS, strict=True):
        for name, offset, (colour, _, marker) in zip(lines, offsets, cycle(LINES), strict=False):
            own = frame.loc[frame["line"] == name, :]
            at, x = own["model"].map(models.index).to_numpy(float) + offset, own[value].to_numpy(float)
            spread = np.abs(own[[f"{value}_low", f"{value}_high"]].to_numpy(float).T - x)
            axes.errorbar(x, at, xerr=spread, fmt=marker, color=colour, ms=4.5, elinewidth=0.9, label=name)
        axes.axvline(0, color=_INK, lw=0.8)
        axes.set_xlabel(label, fontsize=9)
        axes.grid(axis="x", color="#E6E6E6", lw=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
        for edge in np.arange(len(models) - 1) + 0.5:
            axes.axhline(edge, color="#F0F0F0", lw=0.7, zorder=0)
    panels[0].set_yticks(range(len(models)), models)
    panels[0].set_ylim(len(models) - 0.5, -0.5)
    figure.suptitle(title, x=0.01, ha="left", fontsize=11, color=_INK)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, frameon=False, fontsize=8.5)
    return figure
