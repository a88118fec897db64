"""The figure of intermediate B-confidence."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

_LINES = (("#0072B2", "-"), ("#D55E00", "--"), ("#009E73", ":"), ("#CC79A7", "-."))  # colour-blind safe, and in grey


def knowing_curve(tables: Mapping[str, pd.DataFrame], *, title: str = "") -> Figure:
    """Expected largest class probability against tokens generated: when the model decides on its answer.

    Args:
        tables: name of a line -> question_id, token, expected_confidence (`Run.intermediate`). The line is the mean
            over questions, where answers that have ended stay at 1; the band holds the middle half of the questions.
    """
    figure = Figure(figsize=(4.6, 3.4))
    figure.set_layout_engine("constrained", w_pad=0.1)
    axes = figure.add_subplot()
    for (name, table), (colour, dashes) in zip(tables.items(), _LINES * len(tables), strict=False):
        curves = table.pivot(index="question_id", columns="token", values="expected_confidence").ffill(axis=1)
        tokens = curves.columns.to_numpy()
        low, high = np.quantile(curves.to_numpy(), [0.25, 0.75], axis=0)
        axes.fill_between(tokens, low, high, color=colour, alpha=0.15, linewidth=0)
        axes.plot(tokens, curves.mean(), dashes, color=colour, label=name)
    axes.set(xlabel="tokens generated", ylabel="expected largest class probability", ylim=(0, 1.02), title=title)
    axes.title.set_fontsize("medium")
    if len(tables) > 1:
        axes.legend(frameon=False)
    return figure
