"""How predictable a target is by each rung of the ladder of probes, next to the baselines.

Draws on bare Figures, without pyplot's state.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from probes.evaluation.result import BASELINE
from probes.plots.measures import GAP, Measure, measure_of
from probes.plots.style import CEILING, PROBE, in_percent, position_name, tidy
from semcal.calibration.plots.palette import INK, MUTED
from semcal.calibration.plots.sheet import Sheet

MARGINAL = f"{BASELINE}marginal"
_LADDER = {
    "linear": "linear",
    "bilinear": "bilinear",
    "ridge-logit": "ridge on logits",
    "low-rank": "low-rank",
    "density": "density",
    "attention": "attention",
    "mlp": "MLP",
    "lora": "LoRA, head",
    "generative": "LoRA, generative",
    "lens": "logit lens",
}
_BASELINES = {
    "tfidf": "TF-IDF and length",
    "embedding": "input embeddings",
    "candidate-only": "candidates alone",
    "random-init": "random weights",
    "step-0": "weights at step 0",
}
_LOWEST = -0.5  # share; what lies below is written at the edge
_HIGHEST = 1.5  # times the gap of the marginal, likewise
_COLUMNS = 3


@dataclass(frozen=True)
class _Range:
    """What is shown of a measure; rows beyond it are written at the edge."""

    measure: Measure
    low: float
    high: float

    @classmethod
    def of(cls, shown: pd.DataFrame) -> "_Range":
        measure = measure_of(shown)
        values = shown[measure.columns].to_numpy(float)
        if measure != GAP:
            lowest = float(np.nanmin([0.0, *values[:, 0], *values[:, 1]]))
            return cls(measure, max(_LOWEST, lowest) - 0.05, 1.05)
        known = shown.loc[shown["rung"] == MARGINAL, measure.value]
        reference = float(known.max()) if len(known) else np.nan
        highest = max(float(np.nanmax(values)), 0.02)
        if reference > 0:
            highest = min(highest, _HIGHEST * reference)
        return cls(measure, min(0.0, float(np.nanmin(values))) - 0.04 * highest, 1.06 * highest)

    def text(self, value: float) -> str:
        text = f"{value:.2f}" if self.measure == GAP else f"{100 * value:.0f} %"
        return text.replace("-", "−")


def rungs_figure(frame: pd.DataFrame, *, title: str = "", width: float | None = None) -> Figure:
    """The KL gap by rung, with its interval and what a perfect predictor would be measured to have; below a line,
    hollow, the baselines. Where no gap is known, the share explained with the noise ceiling.

    Args:
        frame: columns position, rung; gap, gap_low, gap_high, gap_floor; explained, low, high, ceiling; one row per
            position and rung, of a single target and layer, as `at_layer` leaves them. A baseline's rung begins with
            "baseline:".
        title: above the figure.
        width: of the figure, inches; None for its own.

    Raises:
        ValueError: no row, or a duplicated position and rung.
    """
    if frame.duplicated(["position", "rung"]).any():
        raise ValueError(f"the frame has {len(frame)} rows; expected one per position and rung, of a single target")
    measure = measure_of(frame)
    # The marginal explains nothing by definition, and has a gap.
    shown = frame if measure == GAP else frame.loc[frame["rung"] != MARGINAL, :]
    shown = shown.dropna(subset=[measure.value])
    if shown.empty:
        raise ValueError("the frame has no rung to show")
    span, rungs = _Range.of(shown), in_order(list(dict.fromkeys(shown["rung"])))
    positions = list(dict.fromkeys(shown["position"]))
    columns = min(_COLUMNS, len(positions))
    sheet = Sheet.of(width, max(6.4, 1.8 + 2.6 * columns))  # a single panel is as wide as the other figures
    columns = min(columns, max(1, int((sheet.width - 1.2) / 1.7)))
    rows = -(-len(positions) // columns)
    figure = sheet.figure(0.9 + rows * (0.5 + 0.26 * sheet.scale * len(rungs)))
    grid = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False)
    for axes, position in zip(grid.flat, positions, strict=False):
        _panel(axes, shown.loc[shown["position"] == position, :].set_index("rung"), rungs, span, sheet)
        axes.set_title(position_name(position), loc="left", fontsize=sheet.label, color=INK)
    for axes in grid.flat[len(positions) :]:
        axes.set_visible(False)
    for below, axes in enumerate(grid.flat[: len(positions)], start=columns):
        if below >= len(positions):  # the lowest of its column
            axes.tick_params(labelbottom=True)
            axes.set_xlabel(measure.label)
    first = grid.flat[0]
    first.set_yticks(range(len(rungs)), [_name(rung) for rung in rungs])
    first.set_ylim(len(rungs) - 0.4, -0.6)
    first.set_xlim(span.low, span.high)
    first.xaxis.set_major_locator(MaxNLocator(5, steps=[1, 2, 2.5, 5, 10]))
    if measure != GAP:
        in_percent(first.xaxis)
    sheet.entitle(figure, title)
    sheet.legend(figure, grid.flat, 3)
    return sheet.letter(figure)


def _panel(axes: Axes, fitted: pd.DataFrame, rungs: list[str], span: _Range, sheet: Sheet) -> None:
    """One position, with one row per rung fitted there."""
    axes.axvline(0, color=INK, lw=0.8)
    if span.measure == GAP:
        floor = float(np.nanmax([0.0, *fitted["gap_floor"]]))
        if np.isfinite(floor) and floor > 0:
            label = "95 % of what a perfect predictor would show"
            axes.axvspan(0, floor, facecolor="#DEDEDE", edgecolor="#9A9A9A", lw=0.8, label=label)
    elif np.isfinite(ceiling := float(fitted["ceiling"].to_numpy(float).max())):
        axes.axvline(ceiling, **CEILING)
    for at, rung in enumerate(rungs):
        if rung not in fitted.index:
            continue
        value, low, high = fitted.loc[rung, span.measure.columns].to_numpy(float)
        if not span.low <= value <= span.high:
            edge, mark, shift, side = (span.low, "<", 6, "left") if value < span.low else (span.high, ">", -6, "right")
            axes.plot([edge], [at], mark, color=MUTED, ms=5, clip_on=False)
            style = {"fontsize": sheet.small, "color": MUTED, "ha": side}
            axes.annotate(span.text(value), (edge, at), (shift, -3), textcoords="offset points", **style)  # pyright: ignore[reportArgumentType]
            continue
        baseline = rung.startswith(BASELINE)
        axes.errorbar(
            [value],
            [at],
            xerr=np.abs([[low - value], [high - value]]),
            color=MUTED if baseline else PROBE,
            marker="s" if baseline else "o",
            mfc="white" if baseline else PROBE,
            ms=(5 if baseline else 6) * sheet.scale,
            elinewidth=1.6,
            lw=0,
            label="baseline" if baseline else "probe, with its interval",
            zorder=3,
        )
    probes = sum(not rung.startswith(BASELINE) for rung in rungs)
    if 0 < probes < len(rungs):
        axes.axhline(probes - 0.5, color="#BDBDBD", lw=0.8)
    tidy(axes, "x")
    axes.tick_params(axis="y", length=0)


def in_order(rungs: list[str]) -> list[str]:
    """Up the ladder, then rungs that it does not know, then baselines, the marginal last."""
    place = {rung: at for at, rung in enumerate(_LADDER)}
    return sorted(rungs, key=lambda rung: (rung.startswith(BASELINE), rung == MARGINAL, place.get(rung, len(place))))


def _name(rung: str) -> str:
    bare = rung.removeprefix(BASELINE)
    return _BASELINES.get(bare, bare.replace("-", " ")) if rung != bare else _LADDER.get(rung, rung.replace("-", " "))
