"""When the answer is decided, and when it can be read: along the tokens of an answer, or along a chain of thought.

Knows two tables; draws on a bare Figure, without pyplot's state.
"""

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from probes.plots.measures import GAP, measure_of
from probes.plots.style import CONTROL, PROBE, in_percent, tidy
from semcal.calibration.plots.palette import INK
from semcal.calibration.plots.sheet import Sheet

_AXES = {"token": "tokens generated", "share": "share of the answer generated"}
_GRID = np.linspace(0, 1, 51)


def commitment_curve(
    intermediate: pd.DataFrame, probed: pd.DataFrame, *, title: str = "", width: float | None = None
) -> Figure:
    """Above, how decided the semantic answer is; below, what a probe still misses of its class distribution by then:
    the KL gap, or where none is known the share explained.

    The upper line is the mean over questions of the expected largest class probability after i tokens, a question that
    has ended staying at 1; the band holds the middle half of the questions. Where the gap is small while the upper line
    is low, the activations hold what the text has not said yet.

    Args:
        intermediate: question_id, token, expected_confidence, as `Run.intermediate` has it.
        probed: gap, gap_low, gap_high, or explained, low, high at each position, and where it lies: column "token",
            tokens generated before it, or column "share", the share of the answer. The latter brings every question to
            its own length (of its longest answer). In any order.
        title: above the figure.
        width: of the figure, inches; None for its own.

    Raises:
        ValueError: a table without rows, or `probed` with neither or both of those columns.
    """
    places = [name for name in _AXES if name in probed]
    if len(places) != 1 or probed.empty or intermediate.empty:
        raise ValueError(
            f"{len(intermediate)} rows of intermediate confidence and {len(probed)} of probes with columns "
            f"{', '.join(map(str, probed.columns))}; expected some of each, and either token or share"
        )
    (place,) = places
    at, curves = _by_token(intermediate) if place == "token" else _by_share(intermediate)
    rows, measure = probed.sort_values(place), measure_of(probed)
    named = rows["name"].ne("").to_numpy() if "name" in rows else np.zeros(len(rows), dtype=bool)
    x, y = rows[place].to_numpy(float), rows[measure.value].to_numpy(float)

    sheet = Sheet.of(width, 5.4)
    figure = sheet.figure(0.78 * sheet.width + 0.75)
    upper, lower = figure.subplots(2, 1, sharex=True)
    low, high = np.quantile(curves, [0.25, 0.75], axis=0)
    upper.fill_between(at, low, high, color=PROBE, alpha=0.18, lw=0, label="middle half of the questions")
    upper.plot(at, curves.mean(0), color=PROBE, lw=2.2 * sheet.scale, label="mean over questions")
    upper.set(ylim=(0, 1.03), ylabel="expected largest\nclass probability")
    spread = np.abs(rows[[measure.low, measure.high]].to_numpy(float).T - y)
    lower.axhline(0, color=INK, lw=0.8)
    joined = {"lw": 1.6, "ls": "--", "marker": "s", "ms": 5 * sheet.scale}
    apart = {"ls": "none", "marker": "D", "ms": 6 * sheet.scale, "mfc": "white"}
    for rows_of, style in ((~named, joined), (named, apart)):
        if rows_of.any():
            bars = style | {"color": CONTROL, "capsize": 3, "elinewidth": 1.2}
            lower.errorbar(x[rows_of], y[rows_of], yerr=spread[:, rows_of], **bars)
    for at in np.flatnonzero(named):
        name = str(rows["name"].iloc[at])
        lower.annotate(name, (x[at], y[at]), (-7, 5), textcoords="offset points", ha="right", fontsize=sheet.small)
    lowest = float(np.nanmin([0.0, *y, *rows[measure.low]]))
    if measure == GAP:
        highest = max(float(np.nanmax([*y, *rows[measure.high]])), 0.02)
        lower.set(ylim=(lowest - 0.04 * highest, 1.06 * highest), ylabel="KL gap of\nthe probe, nats")
    else:
        lower.set(ylim=(lowest - 0.04, 1.03), ylabel="share of KL that\nthe probe explains")
        in_percent(lower.yaxis)
    lower.set_xlabel(_AXES[place])
    if place == "share":
        in_percent(lower.xaxis)
    tidy(upper)
    tidy(lower)
    sheet.entitle(figure, title)
    sheet.legend(figure, [upper], 2)
    return sheet.letter(figure)


def _by_token(intermediate: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """Places [i] and curves [question, i]."""
    curves = intermediate.pivot(index="question_id", columns="token", values="expected_confidence").ffill(axis=1)
    return curves.columns.to_numpy(float), curves.to_numpy(float)


def _by_share(intermediate: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
    """The same on shares of each question's own length."""
    curves = []
    for _, rows in intermediate.sort_values("token").groupby("question_id"):
        token = rows["token"].to_numpy(float)
        curves.append(np.interp(_GRID, token / max(1.0, token[-1]), rows["expected_confidence"].to_numpy(float)))
    return _GRID, np.array(curves)
