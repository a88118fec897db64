"""How predictable a target is from each layer: the KL gap in nats, and the share explained.

Draws on bare Figures, without pyplot's state.
"""

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probes.evaluation.result import BASELINE, CANDIDATES, LINEAR, MARGINAL
from probes.plots.measures import GAP, SHARE, share_of
from probes.plots.style import CEILING, CONTROL, PROBE, in_percent, short_names, tidy
from semcal.calibration.plots.palette import INK, MUTED
from semcal.calibration.plots.sheet import Sheet, inches
from semcal.positions import layer_place

_PROBE = "probe, with its interval"
_TEXT = {"color": CONTROL, "lw": 1.2, "ls": "-.", "label": "TF-IDF and length"}
_REFERENCES = {  # the first that is there stands for "the same for all questions"
    CANDIDATES: "candidates alone, no activations",
    MARGINAL: "marginal, the same for all questions",
}


def layer_curve(
    frame: pd.DataFrame, baselines: pd.DataFrame | None = None, *, title: str = "", width: float | None = None
) -> Figure:
    """Above, the KL gap by layer, with its interval, between two baselines and what a perfect predictor would be
    measured to have; below, the share explained, with the null, the control task and the noise ceiling. A panel for
    which the frame has no figure is left out.

    Args:
        frame: rows of `evaluate_all` for one target, drawn in the order of the layers, whatever theirs is.
        baselines: rows of the same target and position that read no layer; those of the candidate-only model (or the
            marginal) and of TF-IDF are shown.
        title: of the figure.
        width: of the figure, inches; None for its own.

    Raises:
        ValueError: the frame is empty, has more than one target, or no figure.
    """
    kinds = sorted(set(zip(frame["target"], frame["measure"], strict=True)))
    if len(kinds) != 1:
        raise ValueError(f"the frame has {len(kinds)} targets; expected the rows of exactly one")
    panels = [draw for measure, draw in ((GAP, _gap), (SHARE, _share)) if measure.known(frame)]
    if not panels:
        raise ValueError("the frame has neither a KL gap nor a share explained")
    frame = frame.sort_values("layer", key=lambda names: names.map(layer_place), kind="stable")
    sheet = Sheet.of(width, 6.4)
    figure = sheet.figure(0.5 + (0.38 * sheet.width + 0.8) * len(panels))
    grid = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axes, draw in zip(grid, panels, strict=True):
        draw(axes, frame, frame.iloc[:0] if baselines is None else baselines, sheet)
        tidy(axes, "y")
    _name_layers(grid[-1], frame["layer"].tolist(), sheet)
    sheet.entitle(figure, title)
    sheet.legend(figure, grid, 2)
    return sheet.letter(figure)


def _gap(axes: Axes, frame: pd.DataFrame, baselines: pd.DataFrame, sheet: Sheet) -> None:
    x, gap = np.arange(len(frame)), frame[GAP.columns].to_numpy(float)
    axes.plot(x, gap[:, 0], color=PROBE, lw=2.2 * sheet.scale, marker="o", ms=5 * sheet.scale, zorder=2.1, label=_PROBE)
    axes.fill_between(x, gap[:, 1], gap[:, 2], color=PROBE, alpha=0.22, lw=0)
    known = baselines.dropna(subset=[GAP.value]) if len(baselines) else baselines
    here = {str(rung).removeprefix(BASELINE): float(nats) for rung, nats in known[["rung", GAP.value]].to_numpy()}
    shown = [0.02, float(np.nanmax(gap))]
    if set(frame["rung"]) == {LINEAR}:  # which knows no candidates
        here.pop(CANDIDATES, None)
    name = next((name for name in _REFERENCES if name in here), None)
    if name is not None:
        axes.axhline(here[name], color=MUTED, lw=1.4, ls=(0, (5, 3)), label=_REFERENCES[name])
        shown.append(here[name])
    if "tfidf" in here:
        axes.axhline(here["tfidf"], **_TEXT)
        shown.append(here["tfidf"])
    floor = float(np.nanmax([0.0, *frame["gap_floor"]]))
    if np.isfinite(floor) and floor > 0:
        label = "95 % of what a perfect predictor would show"
        axes.axhspan(0, floor, facecolor="#DEDEDE", edgecolor="#9A9A9A", lw=0.8, label=label)
    axes.axhline(0, color=INK, lw=0.8)
    top = max(shown)
    axes.set_ylim(min(0.0, float(np.nanmin(gap))) - 0.03 * top, 1.06 * top)
    axes.set_ylabel(GAP.label)


def _share(axes: Axes, frame: pd.DataFrame, _: pd.DataFrame, sheet: Sheet) -> None:
    x = np.arange(len(frame))
    axes.plot(
        x,
        frame["explained"],
        color=PROBE,
        lw=2.2 * sheet.scale,
        marker="o",
        ms=5 * sheet.scale,
        zorder=2.1,
        label=_PROBE,
    )
    null = float(frame["null_q95"].iloc[0])
    if np.isfinite(null):
        band = {"facecolor": "#EFE3D2", "edgecolor": "#9A9A9A", "lw": 0.8}
        axes.axhspan(min(0.0, null), max(0.0, null), **band, label="95 % of the null's maximum over layers")
    axes.axhline(0, color=INK, lw=0.8)
    ceiling = float(frame["ceiling"].iloc[0])
    if np.isfinite(ceiling):
        axes.axhline(ceiling, **CEILING)
    axes.fill_between(x, frame["low"], frame["high"], color=PROBE, alpha=0.22, lw=0)
    if np.isfinite(frame["control"].to_numpy(float)).any():
        style = {"color": CONTROL, "lw": 1.0, "ls": ":", "marker": "s", "ms": 3 * sheet.scale}
        axes.plot(x, frame["control"], zorder=2.2, label="control task", **style)
    lowest = float(np.nanmin([0.0, *frame["low"], *frame["control"]]))
    axes.set_ylim(lowest - 0.04, max(1.02, float(np.nanmax([0.0, *frame["high"]])) + 0.02))
    in_percent(axes.yaxis)
    axes.set_ylabel(share_of(frame).label)


def _name_layers(axes: Axes, layers: list[str], sheet: Sheet) -> None:
    names = short_names(layers)
    room = int(0.8 * sheet.width / (inches(max(names, key=len), sheet.small) + 0.08))
    every = -(-len(names) // max(2, min(16, room)))
    axes.set_xlim(-0.4, len(names) - 0.6)
    axes.set_xticks(range(0, len(names), every), names[::every])
    if max(map(len, names)) > 8:
        axes.tick_params(axis="x", rotation=30)
    axes.set_xlabel("layer")
