"""The figure of `semcal gate`: how many questions may be answered at which risk."""

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from semcal.calibration.plots.curves import tidy
from semcal.calibration.plots.palette import GREY, lines_of
from semcal.calibration.plots.sheet import Sheet


def gate_curve(
    frame: pd.DataFrame,
    *,
    wrong: float,
    guarantee: str,
    title: str = "",
    width: float | None = None,
) -> Figure:
    """The share of questions that are answered where a threshold on a confidence keeps a risk, against that risk.

    Args:
        frame: columns source (name of a confidence), risk, coverage (0 where no threshold keeps it) and marked, whether
            the risk was asked for.
        wrong: share of all questions answered wrongly, the risk of answering every one of these.
        guarantee: what the risk is a share of, for the label of its axis.
        title: above the figure.
        width: of the figure, inches; None for its own.

    Raises:
        ValueError: no rows.
    """
    if frame.empty:
        raise ValueError("no threshold to draw; expected at least one risk of one confidence")
    sheet = Sheet.of(width, 4.8)
    figure = sheet.figure(0.72 * sheet.width)
    axes = figure.add_subplot()
    lines = lines_of(list(dict.fromkeys(frame["source"])))
    for name, (colour, dashes, marker) in lines.items():
        own = frame.loc[frame["source"] == name].sort_values("risk")
        x, y = own["risk"].to_numpy(float), own["coverage"].to_numpy(float)
        marked = np.flatnonzero(own["marked"].to_numpy(bool))
        size: dict[str, Any] = {"lw": 1.6 * sheet.scale, "ms": 5 * sheet.scale}
        axes.plot(x, y, color=colour, ls=dashes, marker=marker, markevery=marked.tolist(), label=name, **size)
    axes.axvline(wrong, color=GREY, lw=1.0, ls=(0, (6, 3)), label=f"wrong of all questions: {wrong:.1%}")
    axes.set(xlabel=f"risk: share {guarantee} that may be wrong", ylabel="answered: share of the questions")
    axes.set(xlim=(0, None), ylim=(-0.02, 1.02))
    for axis in (axes.xaxis, axes.yaxis):
        axis.set_major_formatter(PercentFormatter(1.0, decimals=0))
    tidy(axes)
    sheet.entitle(figure, title)
    sheet.legend(figure, [axes], 2)
    return sheet.letter(figure)
