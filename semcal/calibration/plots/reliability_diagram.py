"""The reliability diagram: accuracy against confidence, with what noise alone would show drawn behind it."""

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from semcal.arrays import FloatArray, checked_pairs
from semcal.calibration.inference.bootstrap import groups, multiplicities
from semcal.calibration.measures.smece import ReliabilityCurve, smece_batch, smooth_curve
from semcal.calibration.nulls.null import Band, pointwise_range
from semcal.calibration.plots.palette import BLUE, GREY, LIGHT_GREY
from semcal.calibration.plots.sheet import Sheet
from semcal.seeds import keyed_generator

BAND_RESAMPLES = 300
RUG_TICKS = 1000
HISTOGRAM_BINS = 40
MOST_ATOMS = 101


@dataclass(frozen=True)
class Smoothed:
    """One run, smoothed as its smECE sees it.

    Attributes:
        confidence, correct: `[n]`.
        error: smECE.
        curve: accuracy over confidence, at the bandwidth of smECE.
        low, high: `[grid]`, ends of its pointwise bootstrap band.
        null_band: where the curve of a calibrated model would lie at this n and M; None: not drawn.
        level: coverage of the bootstrap band.
    """

    confidence: FloatArray
    correct: FloatArray
    error: float
    curve: ReliabilityCurve
    low: FloatArray
    high: FloatArray
    null_band: Band | None
    level: float


def smoothed(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    null_band: Band | None = None,
    group: ArrayLike | None = None,
    level: float = 0.95,
    seed: int = 0,
) -> Smoothed:
    """What a reliability diagram shows of a run; arguments and errors as in `reliability_diagram`."""
    pairs = checked_pairs(confidence, correct)
    if pairs.confidence.ndim != 1:
        raise ValueError(f"a diagram shows one run, got shape {pairs.confidence.shape}")
    values, widths = smece_batch(pairs.confidence, pairs.correct)
    bandwidth = float(widths[0])
    n = len(pairs.confidence)
    weight = multiplicities(groups(group, n), BAND_RESAMPLES, keyed_generator(seed, "diagram", "bootstrap"))
    resampled = smooth_curve(pairs.confidence, pairs.correct, bandwidth, weight=weight)
    low, high = pointwise_range(resampled.accuracy, level)
    curve = smooth_curve(pairs.confidence, pairs.correct, bandwidth)
    return Smoothed(pairs.confidence, pairs.correct, float(values[0]), curve, low, high, null_band, level)


def reliability_diagram(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    title: str = "",
    null_band: Band | None = None,
    group: ArrayLike | None = None,
    level: float = 0.95,
    seed: int = 0,
    width: float | None = None,
) -> Figure:
    """Draw one run in the manner of Błasiok & Nakkiran 2023 (arXiv 2309.12236), at the bandwidth of its smECE.

    The curve is `smooth_curve`, thick and opaque where questions are dense; the band around it is the pointwise
    bootstrap over questions. Ticks along the upper and lower edge are the confidences of right and wrong answers (at
    most 1,000, jittered by half a percent, because shares k/M would hide one another). The lower panel is their
    histogram.

    Args:
        confidence: `[n]` in [0, 1].
        correct: `[n]` in [0, 1].
        title: above the figure.
        null_band: from `null_band`, drawn in grey: where the curve of a calibrated model would lie at this n and M.
        group: `[n]` labels of dependent questions for the bootstrap; None for independent ones.
        level: coverage of the bootstrap band.
        seed: of bootstrap, jitter and choice of ticks.
        width: of the figure, inches; None for its own.

    Returns:
        A figure that belongs to no window and no pyplot state; save it with `figure.savefig`.

    Raises:
        ValueError: as `smece`.
    """
    sheet = Sheet.of(width, 5.0)
    shown = smoothed(confidence, correct, null_band=null_band, group=group, level=level, seed=seed)
    figure = sheet.figure(1.18 * sheet.width + 0.1)
    figure.set_layout_engine("compressed")
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
    _draw(upper, lower, shown, sheet, seed)
    upper.set_ylabel("accuracy")
    lower.set(xlabel="confidence", ylabel="questions")
    sheet.entitle(figure, title)
    sheet.legend(figure, [upper], 2)
    return sheet.letter(figure)


def reliability_grid(
    shown: Mapping[tuple[str, str], Smoothed], *, title: str = "", seed: int = 0, width: float | None = None
) -> Figure:
    """Reliability diagrams by (row, column), with the names of columns above and those of rows to the left; places
    without a run stay empty.

    Args:
        shown: at least one; rows and columns in the order in which they first occur.
        title: above the figure.
        seed: of jitter and choice of ticks.
        width: of the figure, inches; None for one that gives every diagram 2.7 inches.

    Raises:
        ValueError: there is none.
    """
    if not shown:
        raise ValueError("no runs to draw; expected at least one")
    rows, columns = (list(dict.fromkeys(place[i] for place in shown)) for i in (0, 1))
    sheet = Sheet.dense(width, 0.5 + 2.7 * len(columns))
    side = (sheet.width - 0.5) / len(columns)
    figure = sheet.figure(0.4 + 1.2 * side * len(rows))
    figure.set_layout_engine("compressed")
    ratios = [5, 1] * len(rows)
    places = figure.subplots(2 * len(rows), len(columns), squeeze=False, sharex=True, height_ratios=ratios)
    for (at, row), (across, column) in product(enumerate(rows), enumerate(columns)):
        upper, lower = places[2 * at : 2 * at + 2, across]
        if (row, column) not in shown:
            upper.set_axis_off()
            lower.set_axis_off()
            continue
        _draw(upper, lower, shown[row, column], sheet, seed)
        first = not across or (row, columns[0]) not in shown
        upper.set_ylabel(f"{sheet.broken(row, sheet.label, 0.8 * side)}\naccuracy" if first else "")
        if at == 0 or (rows[0], column) not in shown:
            upper.set_title(sheet.broken(column, sheet.label, side - 0.3), fontsize=sheet.label)
        if row == [name for name, under in shown if under == column][-1]:  # the lowest of its column
            lower.set_xlabel("confidence")
            lower.tick_params(labelbottom=True)
    sheet.entitle(figure, title)
    sheet.legend(figure, places[::2].flat, 2)
    return sheet.letter(figure)


def _draw(upper: Axes, lower: Axes, shown: Smoothed, sheet: Sheet, seed: int) -> None:
    """One run on two axes that share confidence: the curve on a square, and the histogram below it."""
    confidence, curve, band = shown.confidence, shown.curve, shown.null_band
    # Nothing is drawn beyond the confidences that occur: there the kernel would only repeat the outermost ones.
    leeway = 1.01 * curve.grid[1]  # slightly over one step, so that a single confidence is visible
    seen = (curve.grid >= confidence.min() - leeway) & (curve.grid <= confidence.max() + leeway)
    if band is not None:
        label = "calibrated model, same n and M"
        there = np.interp(band.grid, curve.grid, seen) > 0
        upper.fill_between(band.grid, band.low, band.high, where=list(there), color=LIGHT_GREY, lw=0, label=label)
    upper.plot([0, 1], [0, 1], color=GREY, lw=1, ls=(0, (4, 3)), label="accuracy = confidence")
    label = f"{100 * shown.level:g} % bootstrap band"
    upper.fill_between(curve.grid, shown.low, shown.high, where=list(seen), color=BLUE, alpha=0.2, lw=0, label=label)
    upper.plot([], [], color=BLUE, lw=3 * sheet.scale, label="accuracy (thick: many questions)")  # for the collection
    _draw_curve(upper, curve, seen, sheet.scale)
    _draw_rug(upper, confidence, shown.correct, keyed_generator(seed, "diagram", "rug"))
    overconfident = bool(confidence.mean() > shown.correct.mean())
    upper.text(
        0.05 if overconfident else 0.95,  # the corner away from the curve
        0.92 if overconfident else 0.08,
        f"smECE = {shown.error:.3f}\nn = {len(confidence):,}",
        transform=upper.transAxes,
        ha="left" if overconfident else "right",
        va="top" if overconfident else "bottom",
        fontsize=sheet.label,
    )
    draw_histogram(lower, confidence)
    ticks, names = (0, 0.25, 0.5, 0.75, 1), ("0", "0.25", "0.5", "0.75", "1")  # short: neighbours share an edge
    upper.set(xlim=(0, 1), ylim=(0, 1), box_aspect=1)
    upper.set_yticks(ticks, names)
    lower.set_xticks(ticks, names)
    lower.set(box_aspect=0.2)
    lower.locator_params(axis="y", nbins=2)
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    upper.tick_params(labelbottom=False)


def _draw_curve(axes: Axes, curve: ReliabilityCurve, seen: NDArray[np.bool_], scale: float) -> None:
    """The accuracy curve as short segments whose width and opacity grow with the density of questions."""
    points = np.column_stack([curve.grid, curve.accuracy])
    segments = np.stack([points[:-1], points[1:]], axis=1)  # [G - 1, 2 ends, (x, y)]
    strength = np.sqrt(
        (curve.density[:-1] + curve.density[1:]) / 2 / curve.density.max()
    )  # root: sparse parts stay visible
    drawn = np.isfinite(segments).all(axis=(1, 2)) & seen[:-1] & seen[1:]
    line = LineCollection(
        list(segments[drawn]),
        linewidths=scale * (0.8 + 3.2 * strength[drawn]),
        alpha=0.15 + 0.85 * strength[drawn],
        colors=BLUE,
        capstyle="butt",
        zorder=3,
    )
    axes.add_collection(line)


def _draw_rug(axes: Axes, confidence: FloatArray, correct: FloatArray, rng: np.random.Generator) -> None:
    """Ticks at the confidences: right answers on the upper edge, wrong ones on the lower."""
    shown = rng.permutation(len(confidence))[:RUG_TICKS]
    at = np.clip(confidence[shown] + rng.uniform(-0.005, 0.005, len(shown)), 0, 1)
    right = correct[shown] >= 0.5
    for ticks, (start, end) in ((at[right], (0.975, 1.0)), (at[~right], (0.0, 0.025))):
        axes.vlines(ticks, start, end, color="black", lw=0.5, alpha=0.35)


def draw_histogram(axes: Axes, confidence: FloatArray) -> None:
    """A bar for each share k/M, so that no bin edge splits one; bins where there are many distinct confidences."""
    atoms, times = np.unique(np.round(confidence, 9), return_counts=True)
    if len(atoms) > MOST_ATOMS:
        axes.hist(confidence, bins=HISTOGRAM_BINS, range=(0, 1), color=GREY)
        return
    spacing = float(np.diff(atoms).min()) if len(atoms) > 1 else 0.02
    axes.bar(atoms, times, width=float(np.clip(0.7 * spacing, 0.005, 0.02)), color=GREY, clip_on=False)
