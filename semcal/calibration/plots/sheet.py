"""How large a figure and its text are: at the figure's own width, or at that of a column of a paper.

Knows points and inches; knows nothing of what is drawn.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from dataclasses import dataclass, replace

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path

from semcal.calibration.plots.palette import INK, MUTED

COLUMN = 3.25  # inches: of a column of most conference papers
NARROW = 4.8  # inches: below it, the smaller letters, and panels below one another
LEAST, MOST = 2.5, 20.0  # inches


@dataclass(frozen=True)
class Sheet:
    """The paper of one figure.

    Attributes:
        width: of the figure, inches.
        title, label, small: sizes of letters, points: of the title; of axes' names; of everything else (ticks, legends,
            notes). At least 6.5 at every width, so that a figure at column width is read without a glass.
        scale: of markers and other sizes in points, relative to those at the figure's own width.
    """

    width: float
    title: float = 11.0
    label: float = 10.0
    small: float = 8.5
    scale: float = 1.0

    @classmethod
    def of(cls, width: float | None, own: float) -> Sheet:
        """
        Args:
            width: inches; None for the figure's own.
            own: the width that the figure has where nobody asks for another, inches.

        Raises:
            ValueError: a width on which nothing can be read.
        """
        if width is None:
            return cls(own)
        if not LEAST <= width <= MOST:
            raise ValueError(f"width {width:g}; expected {LEAST:g} to {MOST:g} inches")
        return cls(width, 8.0, 7.5, 6.5, 0.75) if width < NARROW else cls(width)

    @classmethod
    def dense(cls, width: float | None, own: float) -> Sheet:
        """As `of`, for a figure of many small panels: the letters are those of a column at every width."""
        return replace(cls.of(COLUMN, own), width=cls.of(width, own).width)

    @property
    def narrow(self) -> bool:
        return self.width < NARROW

    def figure(self, height: float) -> Figure:
        """An empty figure of this width, which belongs to no window and no pyplot state; `height` in inches."""
        figure = Figure(figsize=(self.width, height), layout="constrained")
        if self.narrow:
            figure.get_layout_engine().set(w_pad=0.02, h_pad=0.035)  # pyright: ignore[reportOptionalMemberAccess, reportCallIssue]
        return figure

    def across(self, panels: int, least: float) -> int:
        """How many panels of at least so many inches stand side by side: all of them, or else one below the other."""
        return panels if self.width >= panels * least else 1

    def entitle(self, figure: Figure, title: str) -> None:
        """A title in the upper left corner, broken where a part of it would be cut."""
        if title:
            lines = self.broken(title, self.title, self.width - 0.1)
            figure.suptitle(lines, x=0.01, ha="left", fontsize=self.title, color=INK)

    def legend(self, figure: Figure, axes: Iterable[Axes], columns: int) -> None:
        """One legend for all panels below them, each label once, in as many columns as fit; the figure grows by it."""
        entries = {label: h for one in axes for h, label in zip(*one.get_legend_handles_labels(), strict=True)}
        if not entries:
            return
        beside = 4.4 * self.small / 72  # inches of a handle and the space between columns
        labels = [self.broken(label, self.small, self.width - beside - 0.1) for label in entries]
        wide = [max(inches(line, self.small) for line in label.split("\n")) + beside for label in labels]
        fit = next(
            n
            for n in range(min(columns, len(labels)), 0, -1)
            if n == 1 or sum(max(some) for some in np.array_split(wide, n)) < self.width - 0.1
        )
        style = {"frameon": False, "fontsize": self.small, "labelcolor": MUTED, "borderpad": 0.2}
        figure.legend(entries.values(), labels, loc="outside lower center", ncols=fit, columnspacing=1.4, **style)
        rows = max(sum(label.count("\n") + 1 for label in some) for some in np.array_split(labels, fit))
        figure.set_figheight(figure.get_figheight() + self.lines(rows))

    def lines(self, rows: int) -> float:
        """The height of so many lines of a legend, inches."""
        return 1.72 * self.small / 72 * rows + 0.08

    def letter(self, figure: Figure) -> Figure:
        """The figure, with the names and ticks of all its axes in letters of this sheet."""
        for axes in figure.axes:
            axes.tick_params(which="both", labelsize=self.small)
            for axis in (axes.xaxis, axes.yaxis):
                axis.label.set_fontsize(self.label)
                axis.offsetText.set_fontsize(self.small)
        return figure

    def broken(self, text: str, size: float, width: float) -> str:
        """Text in lines that are at most so many inches wide: broken between parts joined by " · ", then at spaces,
        and within a word where it alone is too long."""
        lines: list[str] = []
        for line in text.split("\n"):
            here = ""
            for part in line.split(" · "):
                joined = f"{here} · {part}" if here else part
                if inches(joined, size) <= width:
                    here = joined
                    continue
                lines += [here] if here else []
                letters = max(8, int(len(part) * width / inches(part, size)))
                *before, here = [part] if inches(part, size) <= width else textwrap.wrap(part, letters)
                lines += before
            lines.append(here)
        return "\n".join(lines)


def inches(text: str, size: float) -> float:
    """The width of a line in letters of a size in points."""
    width, _, _ = text_to_path.get_text_width_height_descent(text, FontProperties(size=size), ismath=False)
    return width / 72
