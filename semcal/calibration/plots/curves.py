"""Figures other than the reliability diagram: selective answering, growing M, models compared, and the knowing curve.

Each function returns a Figure that belongs to no window and no pyplot state; save it with `figure.savefig`.
"""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import ArrayLike

from semcal.arrays import FloatArray, IntArray, checked_pairs
from semcal.calibration.estimators.finite_m import MCurve
from semcal.calibration.inference.bootstrap import Interval, groups, multiplicities
from semcal.calibration.measures.scores import aurc, risk_coverage
from semcal.calibration.nulls.null import pointwise_range
from semcal.calibration.plots.palette import (
    FAINT,
    GREY,
    INK,
    LINES,
    TOLERANCE,
    Line,
    lines_of,
    styles_in_order,
    tolerance_name,
)
from semcal.calibration.plots.reliability_diagram import BAND_RESAMPLES
from semcal.calibration.plots.sheet import Sheet
from semcal.seeds import keyed_generator

BAND_POINTS = 200
MARKERS = 8  # on a line of many points


def risk_coverage_curve(
    runs: Mapping[str, tuple[ArrayLike, ArrayLike]],
    *,
    title: str = "",
    group: ArrayLike | None = None,
    level: float = 0.95,
    seed: int = 0,
    width: float | None = None,
) -> Figure:
    """Error rate among the answered questions against the share answered, the surest first, for one run or more.

    The band is the pointwise bootstrap over questions. A single run is drawn between the best possible order (all right
    answers first) and an uninformative confidence (the error rate).

    Args:
        runs: name -> (confidence `[n]`, correct `[n]`); the legend adds each run's AURC.
        title: above the figure.
        group: `[n]` labels of dependent questions for the bootstrap, for every run; None for independent ones.
        level: coverage of the bands.
        seed: of the bootstrap; runs of one n and grouping are drawn on the same resamples.
        width: of the figure, inches; None for its own.

    Raises:
        ValueError: no runs; inputs as in `risk_coverage`; labels that do not match.
    """
    if not runs:
        raise ValueError("no runs to draw; expected at least one")
    sheet = Sheet.of(width, 5.0)
    figure = sheet.figure(0.74 * sheet.width + 0.35)
    axes = figure.add_subplot()
    highest = 0.0
    lines = lines_of(list(runs))
    for name, (confidence, correct) in runs.items():
        colour, dashes, marker = lines[name]
        pairs = checked_pairs(confidence, correct)
        if pairs.confidence.ndim != 1:
            raise ValueError(f"{name!r} has shape {pairs.confidence.shape}; expected one row of questions")
        n = len(pairs.confidence)
        weight = multiplicities(groups(group, n), BAND_RESAMPLES, keyed_generator(seed, "risk-coverage"))
        at = np.linspace(1 / n, 1, min(n, BAND_POINTS))
        low, high = pointwise_range(_weighted_risk(pairs.confidence, pairs.correct, weight, at), level)
        found = risk_coverage(pairs.confidence, pairs.correct)
        axes.fill_between(at, low, high, color=colour, alpha=0.18, lw=0)
        label = f"{name} (AURC {aurc(pairs.confidence, pairs.correct):.3f})"
        style = {
            "color": colour,
            "ls": dashes,
            "marker": marker,
            "ms": 4 * sheet.scale,
            "markevery": max(1, n // MARKERS),
        }
        axes.plot(found.coverage, found.risk, label=label, **style)
        highest = max(highest, float(found.risk.max()), float(high.max()))
        if len(runs) == 1:
            _draw_bounds(axes, at, float(found.risk[-1]))
    axes.set(xlim=(0, 1.01), ylim=(0, 1.05 * highest or 1.0))
    axes.set(xlabel="coverage: share answered, the surest first", ylabel="risk: share of them wrong")
    tidy(axes)
    sheet.entitle(figure, title)
    sheet.legend(figure, [axes], 1)
    return sheet.letter(figure)


def _draw_bounds(axes: Axes, coverage: FloatArray, error_rate: float) -> None:
    """The best possible order, and no order."""
    right = 1 - error_rate
    turn = max(right, coverage[0])  # the risk is 0 until all right answers are given
    best = np.concatenate([[coverage[0], turn], coverage[coverage > turn]])
    style = {"color": GREY, "lw": 1.2, "zorder": 1.5}
    axes.axhline(error_rate, **style, ls=(0, (6, 3)), label="no information: the error rate")
    axes.plot(
        best, np.maximum(0.0, best - right) / best, **style, ls=(0, (1, 1.5)), label="oracle: right answers first"
    )


def _weighted_risk(confidence: FloatArray, correct: FloatArray, weight: FloatArray, coverage: FloatArray) -> FloatArray:
    """Risk `[R, C]` at each coverage of resamples `weight [R, n]`; equal confidences are answered in random order.

    In random order, errors grow linearly across a level, so that their sum is piecewise linear in coverage.
    """
    order = np.argsort(-confidence, kind="stable")
    starts = np.flatnonzero(np.diff(confidence[order], prepend=2.0))  # where a level begins
    answered, wrong = (
        np.cumsum(np.add.reduceat(each[:, order], starts, axis=1), axis=1) / weight.sum(axis=1, keepdims=True)
        for each in (weight, weight * (1 - correct))
    )
    origin = np.zeros((len(weight), 1))
    answered, wrong = np.hstack([origin, answered]), np.hstack([origin, wrong])
    return np.stack([np.interp(coverage, a, w) for a, w in zip(answered, wrong, strict=True)]) / coverage


def m_curve_figure(curve: MCurve, *, title: str = "", width: float | None = None) -> Figure:
    """What finite M does: confidence and accuracy, and smECE with its null, against samples per question.

    The axis is linear in 1/sqrt(M), the rate at which the noise of shares falls, so that infinity has a place on it:
    the extrapolations are drawn there, with intervals. `width` in inches; None for the figure's own.
    """
    sheet = Sheet.of(width, 8.4)
    columns = sheet.across(2, 2.6)
    figure = sheet.figure(4.2 if columns == 2 else 4.4)
    left, right = figure.subplots(2 // columns, columns)
    _against_m(left, curve, {"confidence": LINES[0], "accuracy": LINES[1]}, sheet)
    left.set(ylabel="mean over questions", title=_limit("signed gap", curve.limits.get("signed_gap"), "+.3f"))
    _against_m(right, curve, {"smece": LINES[0], "null_mean": (GREY, ":", "D")}, sheet)
    right.set(ylabel="smECE", title=_limit("smECE", curve.limits.get("smece"), ".3f"))
    right.set_ylim(bottom=min(0.0, right.get_ylim()[0]))
    for axes in (left, right):
        axes.title.set_fontsize(sheet.small)
        axes.set_xlabel("samples per question M (linear in 1/√M)" if columns == 2 or axes is right else "")
        tidy(axes)
        axes.legend(loc="best", frameon=False, fontsize=sheet.small)
    sheet.entitle(figure, title)
    return sheet.letter(figure)


NAMES = {"smece": "smECE", "null_mean": "calibrated model, same n and M"}


def _against_m(axes: Axes, curve: MCurve, lines: Mapping[str, Line], sheet: Sheet) -> None:
    """Lines over 1/sqrt(M), larger M to the right, and their limits."""
    x = 1 / np.sqrt(curve.m)
    both = all(name in curve.limits for name in lines)
    shift = 0.02 * float(x[0]) if both else 0.0  # side by side, because two intervals may overlap
    for place, (name, (colour, dashes, marker)) in enumerate(lines.items()):
        values = getattr(curve, name)
        axes.plot(x, values, color=colour, ls=dashes, marker=marker, ms=5 * sheet.scale, label=NAMES.get(name, name))  # pyright: ignore[reportArgumentType]
        if name not in curve.limits:
            continue
        limit, at = curve.limits[name], shift * (1 - 2 * place)
        axes.plot([x[-1], at], [values[-1], limit.estimate], color=colour, lw=0.8, ls=(0, (1, 2)))
        axes.plot([at], [limit.estimate], color=colour, marker=marker, ms=6 * sheet.scale, mfc="white", ls="none")
        axes.vlines(at, limit.low, limit.high, color=colour, lw=1.6)
        axes.plot([at, at], [limit.low, limit.high], color=colour, marker="_", ms=7, ls="none")
    axes.axvline(0, color=GREY, lw=0.6, zorder=0)
    ticks = _ticks(curve.m, 0.16 if sheet.narrow else 0.1)
    axes.set_xticks([0.0, *(1 / np.sqrt(ticks))], ["∞", *map(str, ticks)])
    axes.set_xlim(1.06 * float(x[0]), -0.06 * float(x[0]))


def _ticks(m: IntArray, share: float) -> IntArray:
    """The largest sample size, and smaller ones whose labels are at least a share of the axis apart."""
    kept = [int(m[-1])]
    room = share / np.sqrt(m[0])
    for size in m[-2::-1].tolist():
        if 1 / np.sqrt(size) - 1 / np.sqrt(kept[-1]) >= room:
            kept.append(size)
    return np.array(kept)


def _limit(name: str, limit: Interval | None, form: str) -> str:
    if limit is None:
        return ""
    said = f"{limit.estimate:{form}} [{limit.low:{form}}, {limit.high:{form}}]"
    return f"{name} at M = ∞: {said}".replace("-", "−")


def tidy(axes: Axes, grid: Literal["x", "y"] = "y") -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis=grid, color=FAINT, lw=0.7)
    axes.set_axisbelow(True)


_PANELS = (
    ("accuracy", "accuracy"),
    ("signed_gap", "signed gap: confidence\nminus accuracy"),
    ("excess", "smECE minus the\nmean of its null"),
)


def by_model(frame: pd.DataFrame, *, title: str = "", delta: float | None = None, width: float | None = None) -> Figure:
    """Accuracy, signed gap and excess calibration error with intervals: one row per model, one mark per line.

    Args:
        frame: columns model, line (a name, e.g. dataset and style); accuracy, signed_gap, excess, and each of them
            with _low and _high. NaN omits a mark or an interval.
        title: above the figure.
        delta: the smallest calibration error that counts, drawn as a line; None: not known.
        width: of the figure, inches; None for its own.

    Raises:
        ValueError: fewer than two models.
    """
    models, names = list(dict.fromkeys(frame["model"])), list(dict.fromkeys(frame["line"]))
    if len(models) < 2:
        raise ValueError(f"{len(models)} model; a comparison needs at least two")
    sheet = Sheet.of(width, 9.0)
    columns = sheet.across(len(_PANELS), 1.9)
    thick = max(0.32 * sheet.scale, (0.12 if columns > 1 else 0.09) * len(names))  # inches of a row
    figure = sheet.figure(0.4 + (0.75 + thick * len(models)) * (len(_PANELS) // columns))
    panels = figure.subplots(len(_PANELS) // columns, columns, sharey=True).ravel()
    offsets = np.linspace(-0.33, 0.33, len(names)) if len(names) > 1 else [0.0]
    lines = lines_of(names)
    for axes, (value, label) in zip(panels, _PANELS, strict=True):
        if value == "excess" and delta is not None:
            axes.axvline(delta, **TOLERANCE, label=tolerance_name(delta))
        for name, offset in zip(names, offsets, strict=True):
            colour, _, marker = lines[name]
            own = frame.loc[frame["line"] == name, :]
            at, x = own["model"].map(models.index).to_numpy(float) + offset, own[value].to_numpy(float)
            spread = np.abs(own[[f"{value}_low", f"{value}_high"]].to_numpy(float).T - x)
            style = {"fmt": marker, "color": colour, "ms": 4.5 * sheet.scale, "elinewidth": 0.9 * sheet.scale}
            axes.errorbar(x, at, xerr=spread, label=name, **style)
        axes.axvline(0, color=INK, lw=0.8)
        axes.set_xlabel(label if columns > 1 else label.replace("\n", " "))
        axes.locator_params(axis="x", nbins=5)
        tidy(axes, grid="x")
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        for edge in np.arange(len(models) - 1) + 0.5:
            axes.axhline(edge, color="#F0F0F0", lw=0.7, zorder=0)
    panels[0].set_yticks(range(len(models)), models)
    panels[0].set_ylim(len(models) - 0.5, -0.5)
    sheet.entitle(figure, title)
    sheet.legend(figure, panels, 3)
    return sheet.letter(figure)


def knowing_curve(tables: Mapping[str, pd.DataFrame], *, title: str = "", width: float | None = None) -> Figure:
    """Expected largest class probability against tokens generated: when the model decides on its answer.

    Args:
        tables: name of a line, such as a style -> question_id, token, expected_confidence (`Run.intermediate`). The
            line is the mean over questions, where answers that have ended stay at 1; the band holds the middle half of
            the questions.
        title: above the figure.
        width: of the figure, inches; None for its own.
    """
    sheet = Sheet.of(width, 4.8)
    figure = sheet.figure(0.68 * sheet.width)
    axes = figure.add_subplot()
    lines = lines_of(list(tables))
    for name in styles_in_order(list(tables)):
        (colour, dashes, _), table = lines[name], tables[name]
        curves = table.pivot(index="question_id", columns="token", values="expected_confidence").ffill(axis=1)
        tokens = curves.columns.to_numpy()
        low, high = np.quantile(curves.to_numpy(), [0.25, 0.75], axis=0)
        axes.fill_between(tokens, low, high, color=colour, alpha=0.15, linewidth=0, label="middle half of questions")
        axes.plot(tokens, curves.mean(), color=colour, ls=dashes, label=name if len(tables) > 1 else "mean")
    axes.set(xlabel="tokens generated", ylabel="expected largest\nclass probability", ylim=(0, 1.02))
    tidy(axes)
    sheet.entitle(figure, title)
    sheet.legend(figure, [axes], 3)
    return sheet.letter(figure)
