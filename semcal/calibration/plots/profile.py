"""What a model is calibrated about: one set of samples under several collapsing functions, side by side.

Knows the calibration of each B by name; knows no B.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from semcal.calibration.plots.palette import BLUE, GREY, LIGHT_GREY, TOLERANCE
from semcal.calibration.plots.sheet import Sheet
from semcal.calibration.summary import Calibration


@dataclass(frozen=True)
class ProfileRow:
    """Calibration of the same samples under one collapsing function; figures as in `Calibration`.

    Attributes:
        name: of the collapsing function.
        classes: mean number of classes that the samples of a question fall into.
        n: questions whose gold answer this B can see; fewer than in the run where token ids are unknown.
    """

    name: str
    classes: float
    n: int
    confidence: float
    accuracy: float
    signed_gap: float
    smece: float
    smece_low: float
    smece_high: float
    null_mean: float
    null_q95: float
    excess: float
    p_value: float

    @classmethod
    def of(cls, name: str, classes: float, found: Calibration) -> ProfileRow:
        """The row of a B, from the calibration under it."""
        shared = [field.name for field in fields(cls) if field.name not in ("name", "classes")]
        return cls(name, classes, **{key: getattr(found, key) for key in shared})


def calibration_profile(
    rows: Sequence[ProfileRow], *, title: str = "", delta: float | None = None, width: float | None = None
) -> Figure:
    """One row per B, the first on top: smECE against chance, and confidence against accuracy.

    Left, the dot is smECE with its interval, the grey bar spans 95 % of calibrated models at this n and M from 0, and
    the tick in it is their mean; a second tick is delta above that mean. The model is miscalibrated about a B whose dot
    lies beyond its bar. Right, the filled dot is accuracy and the open one confidence: open to the right of filled is
    overconfident.

    Args:
        rows: at least one.
        title: above the figure.
        delta: the smallest calibration error that counts; None: not known.
        width: of the figure, inches; None for its own.

    Returns:
        A figure that belongs to no window and no pyplot state.

    Raises:
        ValueError: no rows.
    """
    if not rows:
        raise ValueError("a profile needs at least one collapsing function")
    sheet = Sheet.of(width, 8.0)
    columns = sheet.across(2, 2.6)
    figure = sheet.figure(0.95 + 0.45 * len(rows) if columns == 2 else 1.3 + 0.56 * len(rows))
    ratios = (3, 2) if columns == 2 else None
    left, right = figure.subplots(2 // columns, columns, sharey=True, width_ratios=ratios)
    at = np.arange(len(rows))
    _draw_errors(left, rows, at, delta, sheet)
    _draw_pairs(right, rows, at, sheet)
    left.set(ylim=(len(rows) - 0.5, -0.5))  # shared: the first row on top
    left.set_yticks(at, [f"{r.name}\n{r.classes:.1f} classes" for r in rows])
    for axes in (left, right):
        axes.spines[["top", "right", "left"]].set_visible(False)
        axes.tick_params(axis="y", length=0)
    sheet.entitle(figure, title)
    sheet.legend(figure, (left, right), 5)
    return sheet.letter(figure)


def _draw_errors(axes: Axes, rows: Sequence[ProfileRow], at: np.ndarray, delta: float | None, sheet: Sheet) -> None:
    error = np.array([r.smece for r in rows])
    ends = np.array([(r.smece_low, r.smece_high) for r in rows], dtype=float)  # None: no interval
    axes.barh(at, [r.null_q95 for r in rows], height=0.6, color=LIGHT_GREY, label="95 % of calibrated models")
    axes.vlines([r.null_mean for r in rows], at - 0.3, at + 0.3, color=GREY, lw=1.5, label="mean of calibrated models")
    if delta is not None:
        style = {name: TOLERANCE[name] for name in ("color", "lw", "zorder")}
        axes.vlines([r.null_mean + delta for r in rows], at - 0.3, at + 0.3, **style, label=f"mean + δ ({delta:g})")
    known = np.isfinite(ends).all(axis=1)  # a single group of questions has no interval
    axes.hlines(at[known], ends[known, 0], ends[known, 1], color=BLUE, lw=2)
    axes.plot(error, at, "o", color=BLUE, ms=7 * sheet.scale, label="smECE and its interval")
    far = max(np.nanmax(np.column_stack([ends, error])), max(r.null_q95 for r in rows), 0.02)
    far = max(far, *(r.null_mean + (delta or 0.0) for r in rows))
    for y, row in zip(at, rows, strict=True):
        axes.text(1.38 * far, y, f"p = {row.p_value:.2g}", ha="right", va="center", fontsize=sheet.small)
    axes.set(xlim=(0, 1.4 * far), xlabel="smECE")
    axes.locator_params(axis="x", nbins=6)


def _draw_pairs(axes: Axes, rows: Sequence[ProfileRow], at: np.ndarray, sheet: Sheet) -> None:
    sure, right = [r.confidence for r in rows], [r.accuracy for r in rows]
    axes.hlines(at, np.minimum(sure, right), np.maximum(sure, right), color=GREY, lw=1.5, zorder=1)
    axes.plot(right, at, "o", color=BLUE, ms=6 * sheet.scale, label="accuracy")
    axes.plot(
        sure,
        at,
        "o",
        ms=9 * sheet.scale,
        mfc="none",
        mec="black",
        mew=1.2 * sheet.scale,
        label="confidence",
        clip_on=False,
    )
    axes.set(xlim=(0, 1), xlabel="share of questions or samples")
