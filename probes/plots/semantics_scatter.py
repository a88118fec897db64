"""Many Bs on one run's samples: calibration error against how well the classes of each B are predicted.

Knows a table with one row per B; draws on bare Figures, without pyplot's state.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from probes.plots.style import INK, MUTED, entitle, legend_below, tidy
from semcal.calibration.plots.curves import LINES

_NAMED = 4  # Bs that are named in the picture: those of the largest gap and excess


def semantics_scatter(frame: pd.DataFrame, *, title: str, corner: str, small_gap: float, delta: float) -> Figure:
    """Excess calibration error against the KL gap, one marker per B; colour and marker show its kind. Shaded is where
    the theory allows no B: a small gap with an error above delta.

    Args:
        frame: columns b, kind; gap, gap_low, gap_high, in nats; excess, excess_low, excess_high.
        title: above the figure.
        corner: above its right end, such as a rank correlation.
        small_gap: nats.
        delta: the smallest calibration error that counts.

    Raises:
        ValueError: no B.
    """
    if frame.empty:
        raise ValueError("there is no B to draw")
    figure = Figure(figsize=(6.4, 5.2), layout="constrained")
    axes = figure.add_subplot()
    axes.axhline(0, color=INK, lw=0.8)
    left, top = min(0.0, float(frame["gap"].min())), max(delta, float(frame["excess"].max()))
    axes.fill_between([left, small_gap], delta, 1.1 * top, color="#F0E442", alpha=0.35, lw=0, zorder=0)
    kinds = frame.groupby("kind", sort=False)
    for (kind, own), (colour, _, marker) in zip(kinds, LINES * len(kinds), strict=False):
        x, low, high, y, bottom, above = own[
            ["gap", "gap_low", "gap_high", "excess", "excess_low", "excess_high"]
        ].to_numpy(float).T  # fmt: skip
        across, up = np.abs([low - x, high - x]), np.abs([bottom - y, above - y])
        axes.errorbar(x, y, yerr=up, xerr=across, fmt="none", ecolor=colour, elinewidth=0.7, alpha=0.3, zorder=2)
        axes.plot(x, y, marker, ls="none", color=colour, ms=6.5, mec="white", mew=0.6, label=str(kind), zorder=3)
    order = (frame["gap"].rank() + frame["excess"].rank()).sort_values().index
    for index in (*order[:1], *order[-_NAMED:]):
        b, x, y = frame.loc[index, ["b", "gap", "excess"]]
        axes.annotate(str(b), (float(x), float(y)), (5, 4), textcoords="offset points", fontsize=8, color=INK)
    axes.set_title(corner, loc="right", fontsize=9, color=MUTED)
    entitle(figure, title)
    axes.set(xlabel="KL gap of a probe of the activations before the answer, nats")
    axes.set_ylabel("smECE minus the mean of its null")
    tidy(axes)
    legend_below(figure, [axes], 4)
    return figure
