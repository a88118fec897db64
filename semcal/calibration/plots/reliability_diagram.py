"""The reliability diagram: accuracy against confidence, with what noise alone would show drawn behind it."""

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.figure import Figure
from numpy.typing import ArrayLike, NDArray

from semcal.arrays import FloatArray, checked_pairs
from semcal.calibration.inference.bootstrap import groups, multiplicities
from semcal.calibration.measures.kernel import Convention
from semcal.calibration.measures.smece import ReliabilityCurve, smece_batch, smooth_curve
from semcal.calibration.nulls.null import Band, pointwise_range
from semcal.seeds import keyed_generator

# Blue of Okabe & Ito's palette: distinguishable from grey with every kind of colour vision, and darker than the greys.
BLUE, GREY, LIGHT_GREY = "#0072B2", "#6E6E6E", "#D9D9D9"
BAND_RESAMPLES = 300
RUG_TICKS = 1000
HISTOGRAM_BINS = 40
MOST_ATOMS = 101


def reliability_diagram(
    confidence: ArrayLike,
    correct: ArrayLike,
    *,
    title: str,
    null_band: Band | None = None,
    group: ArrayLike | None = None,
    level: float = 0.95,
    convention: Convention = "relplot",
    seed: int,
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
        convention: of the smECE printed in the corner and of the bandwidth, as in `smece`.
        seed: of bootstrap, jitter and choice of ticks.

    Returns:
        A figure that belongs to no window and no pyplot state; save it with `figure.savefig`.

    Raises:
        ValueError: as `smece`.
    """
    pairs = checked_pairs(confidence, correct)
    if pairs.confidence.ndim != 1:
        raise ValueError(f"a diagram shows one run, got shape {pairs.confidence.shape}")
    values, widths = smece_batch(pairs.confidence, pairs.correct, convention=convention)
    error, bandwidth = float(values[0]), float(widths[0])
    curve = smooth_curve(pairs.confidence, pairs.correct, bandwidth)
    n = len(pairs.confidence)
    weight = multiplicities(groups(group, n), BAND_RESAMPLES, keyed_generator(seed, "diagram", "bootstrap"))
    resampled = smooth_curve(pairs.confidence, pairs.correct, bandwidth, weight=weight)
    low, high = pointwise_range(resampled.accuracy, level)

    # Nothing is drawn beyond the confidences that occur: there the kernel would only repeat the outermost ones.
    leeway = 1.01 * curve.grid[1]  # slightly over one step, so that a single confidence is visible
    seen = (curve.grid >= pairs.confidence.min() - leeway) & (curve.grid <= pairs.confidence.max() + leeway)

    figure = Figure(figsize=(5.0, 6.4), layout="compressed")
    figure.suptitle(title, fontsize=11)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(5, 1))
    if null_band is not None:
        label = "calibrated model, same n and M"
        shown = np.interp(null_band.grid, curve.grid, seen) > 0
        upper.fill_between(
            null_band.grid, null_band.low, null_band.high, where=list(shown), color=LIGHT_GREY, lw=0, label=label
        )
    upper.plot([0, 1], [0, 1], color=GREY, lw=1, ls=(0, (4, 3)), label="accuracy = confidence")
    label = f"{level:.0%} bootstrap band"
    upper.fill_between(curve.grid, low, high, where=list(seen), color=BLUE, alpha=0.2, lw=0, label=label)
    upper.plot(
        [], [], color=BLUE, lw=3, label="accuracy (thick: many questions)"
    )  # legend entry for the collection below
    _draw_curve(upper, curve, seen)
    _draw_rug(upper, pairs.confidence, pairs.correct, keyed_generator(seed, "diagram", "rug"))
    overconfident = bool(pairs.confidence.mean() > pairs.correct.mean())
    upper.text(
        0.05 if overconfident else 0.95,  # the corner away from the curve
        0.92 if overconfident else 0.08,
        f"smECE = {error:.3f}\nn = {n:,}",
        transform=upper.transAxes,
        ha="left" if overconfident else "right",
        va="top" if overconfident else "bottom",
    )
    upper.set(xlim=(0, 1), ylim=(0, 1), box_aspect=1, ylabel="accuracy")
    draw_histogram(lower, pairs.confidence)
    lower.set(box_aspect=0.2, xlabel="confidence", ylabel="questions")
    for axes in (upper, lower):
        axes.spines[["top", "right"]].set_visible(False)
    handles, labels = upper.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False, fontsize=8)
    return figure


def _draw_curve(axes: Axes, curve: ReliabilityCurve, seen: NDArray[np.bool_]) -> None:
    """The accuracy curve as short segments whose width and opacity grow with the density of questions."""
    points = np.column_stack([curve.grid, curve.accuracy])
    segments = np.stack([points[:-1], points[1:]], axis=1)  # [G - 1, 2 ends, (x, y)]
    strength = np.sqrt(
        (curve.density[:-1] + curve.density[1:]) / 2 / curve.density.max()
    )  # root: sparse parts stay visible
    drawn = np.isfinite(segments).all(axis=(1, 2)) & seen[:-1] & seen[1:]
    line = LineCollection(
        list(segments[drawn]),
        linewidths=0.8 + 3.2 * strength[drawn],
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
