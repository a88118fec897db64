"""Many Bs on one run's samples: calibration error against how well the classes of each B are predicted.

Knows a table with one row per B; draws on bare Figures, without pyplot's state.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from probes.plots.style import tidy
from semcal.calibration.plots.palette import INK, MUTED, TOLERANCE, lines_of, tolerance_name
from semcal.calibration.plots.sheet import Sheet
from semcal.semantics.collapsing.coarser import MEANING

_FIGURES = ("gap", "gap_low", "gap_high", "excess", "excess_low", "excess_high")
_NAMES = {MEANING: "the run's own B"}


def semantics_scatter(
    frame: pd.DataFrame,
    *,
    title: str = "",
    corner: str = "",
    small_gap: float,
    delta: float,
    width: float | None = None,
) -> Figure:
    """Excess calibration error against the KL gap, one marker per B; colour and marker show its kind. Shaded is where
    the theory allows no B: a small gap with an error above delta.

    Args:
        frame: columns b, kind; gap, gap_low, gap_high, in nats; excess, excess_low, excess_high.
        title: above the figure.
        corner: above its right end, such as a rank correlation.
        small_gap: nats.
        delta: the smallest calibration error that counts.
        width: of the figure, inches; None for its own.

    Raises:
        ValueError: no B.
    """
    if frame.empty:
        raise ValueError("there is no B to draw")
    sheet = Sheet.of(width, 6.4)
    figure = sheet.figure(0.62 * sheet.width + 0.7)
    axes = figure.add_subplot()
    axes.axhline(0, color=INK, lw=0.8)
    left = min(0.0, *frame["gap"].to_numpy(float))
    top = max(delta, *frame["excess"].to_numpy(float))
    axes.fill_between([left, small_gap], delta, 1.1 * top, color="#F0E442", alpha=0.35, lw=0, zorder=0)
    axes.axhline(delta, **TOLERANCE, label=tolerance_name(delta))
    lines = lines_of([str(kind) for kind in frame["kind"] if kind != MEANING])
    for kind, own in frame.groupby("kind", sort=False):
        x, low, high, y, bottom, above = own[[*_FIGURES]].to_numpy(float).T
        across, up = np.abs([low - x, high - x]), np.abs([bottom - y, above - y])
        if kind == MEANING:
            style = {"marker": "*", "color": INK, "ms": 13 * sheet.scale, "mec": "white"}
        else:
            colour, _, marker = lines[str(kind)]
            style = {"marker": marker, "color": colour, "ms": 6.5 * sheet.scale, "mec": "white"}
        axes.errorbar(*(x, y, up, across), fmt="none", ecolor=style["color"], elinewidth=0.7, alpha=0.3, zorder=2)
        axes.plot(x, y, ls="none", mew=0.6, label=_NAMES.get(str(kind), str(kind)), zorder=3, **style)
    axes.set_title(corner, loc="right", fontsize=sheet.small, color=MUTED)
    axes.set(xlabel="KL gap of a probe before the answer, nats", ylabel="smECE minus the mean of its null")
    tidy(axes)
    sheet.entitle(figure, title)
    sheet.legend(figure, [axes], 4)
    return sheet.letter(figure)
