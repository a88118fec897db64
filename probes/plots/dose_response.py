"""How far answers follow an intervention: dose and response, with random interventions of the same strength behind.

Knows the columns of `probes.interventions.effects`; draws on a bare Figure, without pyplot's state.
"""

from itertools import pairwise
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from probes.plots.style import PROBE, tidy
from semcal.calibration.plots.palette import INK
from semcal.calibration.plots.sheet import Sheet

_PANELS = (
    ("tv", "total variation"),
    ("d_confidence", "Δ B-confidence"),
    ("d_accuracy", "Δ accuracy"),
)
_CLOUD = {"isotropic": ("#BDBDBD", "o"), "matched": ("#6B6B6B", "x"), "donors": ("#6B6B6B", "x")}
_DOSES = {"ablate": ("rank", "rank of the ablated subspace"), "steer": ("size", "size (standard deviations)")}


def dose_response(frame: pd.DataFrame, *, title: str = "", width: float | None = None) -> Figure:
    """Change of the class distribution, of B-confidence and of accuracy against rank or size; patches side by side.

    Every random control is a grey mark; the floor of total variation is what re-sampling with another seed gives.

    Args:
        frame: Rows of one kind of intervention at one hook, and those of the model left alone (kind "none"), if any.
        title: Of the figure.
        width: Of the figure, inches; None for its own.

    Raises:
        ValueError: no intervention, or several kinds or hooks.
    """
    made = frame.query("kind != 'none'")
    sorts = sorted(set(zip(made["kind"], made["hook"], strict=True)))
    if len(sorts) != 1:
        raise ValueError(
            f"the frame has {len(sorts)} kinds and hooks of intervention; expected the rows of exactly one"
        )
    kind = str(sorts[0][0])
    dose, label = _DOSES.get(kind, ("name", "donors into patched, by confidence"))
    doses = sorted(set(made[dose]))
    # Ranks are doubled rather than counted, and patches have no order: places, not values. Sizes are values.
    at = {d: float(d) if kind == "steer" else float(i) for i, d in enumerate(doses)}
    places = sorted(at.values())
    step = min((b - a for a, b in pairwise(places)), default=1.0)
    sheet = Sheet.of(width, 9.6)
    columns = sheet.across(len(_PANELS), 2.1)
    figure = sheet.figure(3.3 if columns > 1 else 5.0)
    panels = figure.subplots(len(_PANELS) // columns, columns, sharex=columns == 1).ravel()
    for axes, (column, name) in zip(panels, _PANELS, strict=True):
        _panel(axes, made, column, dose, at, step)
        axes.set(ylabel=name, xlim=(places[0] - step / 2, places[-1] + step / 2))
        axes.set_xlabel(label if columns > 1 or axes is panels[-1] else "")
        axes.set_xticks(list(at.values()), [f"{d:g}" if isinstance(d, int | float) else str(d) for d in at])
    floor = frame.query("kind == 'none' and name == 'another seed'")["tv"].tolist()
    if floor:
        panels[0].axhline(floor[0], color=INK, lw=1.2, ls=(0, (5, 3)), label="left alone, another seed")
    sheet.legend(figure, panels[:1], 4)
    sheet.entitle(figure, title)
    return sheet.letter(figure)


def _panel(axes: Axes, made: pd.DataFrame, column: str, dose: str, at: dict[Any, float], step: float) -> None:
    controls = [c for c in dict.fromkeys(made["control"]) if c]
    for which, control in enumerate(controls):
        random = made.query("control == @control")
        colour, marker = _CLOUD[control]
        shift = step * 0.12 * (which + 1)
        x = [at[d] + shift for d in random[dose]]
        axes.scatter(x, random[column], color=colour, marker=marker, s=14, lw=0.8, label=f"random, {control}")
    own = made.query("control == ''").sort_values(dose)
    x = [at[d] for d in own[dose]]
    error = [own[column] - own[f"{column}_low"], own[f"{column}_high"] - own[column]]
    line, label = (0, "chosen donors") if dose == "name" else (2.0, "probe")
    axes.errorbar(x, own[column], error, color=PROBE, lw=line, elinewidth=1.4, marker="o", ms=5, label=label)
    axes.axhline(0, color=INK, lw=0.8)
    tidy(axes, "y")
