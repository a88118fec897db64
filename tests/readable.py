"""Whether a figure can be read: measured on the rendered texts, not on what was asked for."""

from __future__ import annotations

from itertools import pairwise

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text
from matplotlib.transforms import Bbox

SMALLEST = 6.0  # points
LEEWAY = 2.0  # pixels


def complaints(figure: Figure) -> list[str]:
    """What a reader would complain of: letters that are too small, texts that are cut at the edge, labels of ticks that
    overlap, a legend over a panel. Empty if there is nothing."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    page, found = figure.bbox, []
    every = [axes for axes in figure.findobj(Axes) if axes.axison]
    off = [label for axes in figure.findobj(Axes) for label in _unlabelled(axes)]
    texts = [
        text for text in figure.findobj(Text) if text.get_visible() and text.get_text().strip() and text not in off
    ]
    shown = [(text, text.get_window_extent()) for text in texts]
    for text, box in shown:
        said = text.get_text().replace("\n", " / ")
        if float(text.get_fontsize()) < SMALLEST:
            found.append(f"{said!r} has {text.get_fontsize():.1f} points")
        cut = max(page.x0 - box.x0, box.x1 - page.x1, page.y0 - box.y0, box.y1 - page.y1)
        if cut > LEEWAY:
            found.append(f"{said!r} is cut by {cut:.0f} pixels")
    for axes in every:
        for ticks, ends in ((axes.get_xticklabels(), ("x0", "x1")), (axes.get_yticklabels(), ("y0", "y1"))):
            boxes = [(t.get_text(), t.get_window_extent()) for t in ticks if t in texts and not t.get_rotation()]
            boxes.sort(key=lambda each: getattr(each[1], ends[0]))
            for (one, first), (other, second) in pairwise(boxes):
                if getattr(second, ends[0]) < getattr(first, ends[1]):
                    found.append(f"{one!r} and {other!r} overlap")
    panels = [axes.get_window_extent() for axes in every]
    for legend in figure.legends:
        if any(_overlap(legend.get_window_extent(), panel) for panel in panels):
            found.append("the legend lies over a panel")
    return found


def _unlabelled(axes: Axes) -> list[Text]:
    """Labels of ticks that are switched off, lie outside of the limits, or are left from an earlier layout."""
    off = []
    for axis, (low, high) in ((axes.xaxis, sorted(axes.get_xlim())), (axes.yaxis, sorted(axes.get_ylim()))):
        drawn = [*axis.get_major_ticks(), *axis.get_minor_ticks()]
        for tick in [*axis.majorTicks, *axis.minorTicks]:
            inside = axes.axison and tick in drawn and low - 1e-9 <= tick.get_loc() <= high + 1e-9
            off += [label for label in (tick.label1, tick.label2) if not (label.get_visible() and inside)]
    return off


def _overlap(one: Bbox, other: Bbox) -> bool:
    both = Bbox.intersection(one, other)
    return both is not None and min(both.width, both.height) > LEEWAY
