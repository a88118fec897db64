"""Heat maps: the KL gap by layer × position of one run, and by runs × runs.

Draws on a bare Figure, without pyplot's state. Lightness alone carries the value, so that it reads in grey; what is
worse than knowing nothing of the question is hatched, and every cell holds its number.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import Colormap, LinearSegmentedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from probes.plots.measures import GAP, measure_of
from probes.plots.style import PROBE, in_percent, position_name, short_names
from probes.transfer.across_runs import TransferCell
from semcal.calibration.plots.palette import INK, MUTED
from semcal.calibration.plots.sheet import Sheet, inches
from semcal.positions import layer_place

# White to Okabe & Ito's blue and on to a dark one: falls evenly in lightness.
_SHADES = LinearSegmentedColormap.from_list("shares", ["#FFFFFF", "#9CC9E6", PROBE, "#00304F"])
_SHADES = _SHADES.with_extremes(bad="#F2F2F2")
_DARK = 0.47  # luminance below which text is white
_MOST_NUMBERS = 240  # cells; more would not be read
_UNSEEN = 0.005  # below which a number is written as 0


@dataclass(frozen=True)
class _Shades:
    """How a value becomes a colour, and what hatching says, if there is any."""

    colours: Colormap
    scale: Normalize
    hatching: str = ""


_SHARES = _Shades(_SHADES, Normalize(0, 1, clip=True), "below 0")


def _gaps(white: float, hatching: str = "") -> _Shades:
    """Dark where a gap is small."""
    return _Shades(_SHADES.reversed(), Normalize(0, max(white, 0.02), clip=True), hatching)


def transfer_matrix(
    cells: Sequence[TransferCell], *, title: str = "", without: str, width: float | None = None
) -> Figure:
    """KL gap of every run's probe (rows) on every run (columns), dark where it is small, with its interval and what
    activations add; hatched where they mislead.

    The diagonal, outlined, is cross-validated. Below each column is the gap of the run's own probe without activations.

    Args:
        cells: as `transfer` gives them, row by row.
        title: above the figure.
        without: what is left of the probe without activations, in words.
        width: of the figure, inches; None for its own.

    Raises:
        ValueError: cells that do not make a square.
    """
    names = list(dict.fromkeys(cell.trained_on for cell in cells))
    size = len(names)
    if len(cells) != size**2 or [c.tested_on for c in cells[:size]] != names:
        raise ValueError(f"{len(cells)} cells of {size} runs; expected one per pair, row by row")
    values, added = (np.reshape([getattr(cell, name) for cell in cells], (size, size)) for name in ("gap", "added"))
    alone = [cells[i * (size + 1)].alone for i in range(size)]
    sheet = Sheet.of(width, 2.4 + 1.45 * size + 0.05 * max(map(len, names)))
    text = [_written(c, sheet) for c in cells]
    figure = sheet.figure((2.3 if sheet.narrow else 1.9) + 0.85 * size * sheet.scale)
    axes = figure.add_subplot()
    shades = _gaps(float(np.nanmax([*alone, 0.0])), "activations mislead")
    _draw(axes, values, np.reshape(np.array(text, dtype=object), (size, size)), shades, added < -_UNSEEN, sheet.small)
    for at in range(size):
        axes.add_patch(Rectangle((at - 0.5, at - 0.5), 1, 1, fill=False, ec=INK, lw=1.8, zorder=4))
    named = [sheet.broken(name, sheet.small, 0.23 * sheet.width) if sheet.narrow else _broken(name) for name in names]
    between = "\n" if sheet.narrow else " "
    below = [f"{name}\n({without}:{between}{_nats(own)})" for name, own in zip(named, alone, strict=True)]
    axes.set_xticks(range(size), below)
    axes.set_yticks(range(size), named)
    axes.set(xlabel="tested on", ylabel="trained on")
    sheet.entitle(figure, title)
    _colour_bar(figure, axes, GAP.label, shades, beside=not sheet.narrow)
    return sheet.letter(figure)


def layer_position_map(
    frame: pd.DataFrame, *, title: str = "", marginal: float | None = None, width: float | None = None
) -> Figure:
    """The KL gap by layer (upwards, as the network goes) and position (in the order given), dark where it is small;
    missing ones empty. Where no gap is known, the share explained, dark where it is large.

    Args:
        frame: columns layer, position; gap, or explained and measure; one row per pair.
        title: above the figure.
        marginal: the gap of the marginal, which is white; None: the largest gap is.
        width: of the figure, inches; None for its own.

    Raises:
        ValueError: no rows, or a duplicated pair, as in a frame of several targets.
    """
    layers, positions = (list(dict.fromkeys(frame[column])) for column in ("layer", "position"))
    if frame.empty or frame.duplicated(["layer", "position"]).any():
        raise ValueError(f"the frame has {len(frame)} rows; expected one per layer and position, of a single target")
    measure = measure_of(frame)
    layers = sorted(layers, key=layer_place)
    grid = frame.pivot(index="layer", columns="position", values=measure.value).loc[layers, positions].to_numpy(float)
    shades = _SHARES
    if measure == GAP:
        most = float(np.nanmax(grid)) if marginal is None or np.isnan(marginal) else marginal
        shades = _gaps(most)
    sheet = Sheet.of(width, max(4.8, 2.6 + 0.72 * len(positions)))
    shown = min(len(layers), 40)
    figure = sheet.figure(max(3.4 * sheet.scale, 1.6 + 0.3 * sheet.scale * shown))
    axes = figure.add_subplot()
    write = _nats if measure == GAP else _number
    numbers = [[write(value) for value in row] for row in grid]
    widest = max(inches(number, sheet.small) for row in numbers for number in row)
    numbered = grid.size <= _MOST_NUMBERS and (widest + 0.05) * len(positions) < 0.68 * sheet.width
    hatched = grid < -_UNSEEN if shades.hatching else np.zeros(grid.shape, dtype=bool)
    _draw(axes, grid, np.array(numbers, dtype=object) if numbered else None, shades, hatched, sheet.small)
    axes.invert_yaxis()
    every = -(-len(layers) // 40)
    axes.set_yticks(range(0, len(layers), every), short_names(layers)[::every])
    axes.set_xticks(range(len(positions)), [position_name(p) for p in positions])
    axes.tick_params(axis="x", rotation=35)
    for label in axes.get_xticklabels():
        label.set(ha="right", rotation_mode="anchor")
    axes.set(xlabel="position", ylabel="layer")
    sheet.entitle(figure, title)
    label = f"{measure.label}, %" if numbered and measure != GAP else measure.label
    _colour_bar(figure, axes, label, shades)
    return sheet.letter(figure)


def _draw(
    axes: Axes, values: np.ndarray, text: np.ndarray | None, shades: _Shades, hatched: np.ndarray, size: float
) -> None:
    """Cells [row, column] in shades, some hatched, with their text."""
    axes.imshow(values, cmap=shades.colours, norm=shades.scale, aspect="auto")
    rows, columns = values.shape
    for row, column in np.ndindex(rows, columns):
        value = values[row, column]
        if hatched[row, column]:
            style = {"fill": False, "ec": "#BDBDBD", "lw": 0, "hatch": "////"}
            axes.add_patch(Rectangle((column - 0.5, row - 0.5), 1, 1, **style))
        if text is None:
            continue
        dark = bool(np.isfinite(value) and _luminance(np.array(shades.colours(shades.scale(value)))) < _DARK)
        style = {"ha": "center", "va": "center", "fontsize": size, "color": "white" if dark else INK}
        said = axes.text(column, row, str(text[row, column]), **style)
        if hatched[row, column]:
            said.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 1.0})
    axes.set_xticks(np.arange(columns + 1) - 0.5, minor=True)
    axes.set_yticks(np.arange(rows + 1) - 0.5, minor=True)
    axes.grid(which="minor", color="white", lw=1.2)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_color("#BDBDBD")


def _luminance(colour: np.ndarray) -> float:
    return float(np.dot(colour[:3], (0.2126, 0.7152, 0.0722)))


def _colour_bar(figure: Figure, axes: Axes, label: str, shades: _Shades, *, beside: bool = True) -> None:
    place = {"location": "right", "pad": 0.02} if beside else {"location": "bottom", "pad": 0.03, "aspect": 30}
    bar = figure.colorbar(axes.images[0], ax=axes, fraction=0.05, **place)
    if shades == _SHARES:
        in_percent(bar.ax.yaxis)
    bar.set_label(f"{label}\n(hatched: {shades.hatching})" if shades.hatching else label, color=MUTED)
    bar.outline.set_visible(False)  # pyright: ignore[reportCallIssue]


def _number(value: float) -> str:
    """A share in per cent, without a sign where it is 0; far below 0, only that it is."""
    if not np.isfinite(value):
        return "—"
    return "< −999" if value < -9.99 else f"{round(100 * value)}".replace("-", "−")


def _nats(value: float) -> str:
    """Nats with two digits, without a sign where it is 0."""
    if not np.isfinite(value):
        return "—"
    return f"{round(value, 2) + 0.0:.2f}".replace("-", "−")


def _written(cell: TransferCell, sheet: Sheet) -> str:
    between = "\n" if sheet.narrow else " "
    return f"{_nats(cell.gap)}{between}[{_nats(cell.low)}, {_nats(cell.high)}]\nadds {_nats(cell.added)}"


def _broken(name: str) -> str:
    """The parts of a label one below the other."""
    return name.replace(" · ", "\n")
