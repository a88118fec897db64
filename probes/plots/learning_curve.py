"""The KL gap of a rung by the number of questions it learnt from.

Draws on a bare Figure, without pyplot's state.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, NullLocator

from probes.plots.measures import GAP
from probes.plots.style import PROBE, tidy
from semcal.calibration.plots.palette import INK, MUTED
from semcal.calibration.plots.sheet import Sheet


def learning_curve_figure(
    frame: pd.DataFrame, *, title: str = "", marginal: float | None = None, width: float | None = None
) -> Figure:
    """The KL gap, with its interval, over training questions on a logarithmic axis. A curve that still falls at its end
    would fall further with more questions; one that is flat far above 0 shows what this rung does not learn.

    Args:
        frame: columns rung, questions, held_out, gap, gap_low, gap_high; one row per number of questions, of one rung.
        title: above the figure.
        marginal: the gap of the same prediction for all questions; None: it is not known.
        width: of the figure, inches; None for its own.

    Raises:
        ValueError: no row, or several rungs.
    """
    if (rungs := len(set(frame["rung"]))) != 1:
        raise ValueError(f"the frame has {len(frame)} rows of {rungs} rungs; expected rows of one")
    rows = frame.sort_values("questions")
    x, (gap, low, high) = rows["questions"].to_numpy(float), rows[GAP.columns].to_numpy(float).T
    sheet = Sheet.of(width, 6.4)
    figure = sheet.figure(0.45 * sheet.width + 0.8)
    axes = figure.add_subplot()
    label = f"{rows['rung'].iloc[0]} rung, {rows['held_out'].iloc[0]} held-out questions"
    style = {
        "color": PROBE,
        "lw": 2.0 * sheet.scale,
        "marker": "o",
        "ms": 6 * sheet.scale,
        "capsize": 3,
        "elinewidth": 1.4,
    }
    axes.errorbar(x, gap, np.abs(np.stack([low, high]) - gap), label=label, **style)
    top = max(0.02, float(np.nanmax([gap, high])))
    if marginal is not None and np.isfinite(marginal):
        top = max(top, marginal)
        label = "marginal, the same for all questions"
        axes.axhline(marginal, color=MUTED, lw=1.4, ls=(0, (5, 3)), label=label)
    axes.axhline(0, color=INK, lw=0.8)
    axes.set_ylim(min(0.0, float(np.nanmin([gap, low]))) - 0.03 * top, 1.06 * top)
    axes.set_xscale("log")
    axes.set_xlim(x[0] / 1.25, x[-1] * 1.25)
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xticks(x, [f"{n:g}" for n in x])
    axes.set(xlabel="training questions", ylabel=GAP.label)
    tidy(axes)
    sheet.entitle(figure, title)
    sheet.legend(figure, [axes], 2)
    return sheet.letter(figure)
