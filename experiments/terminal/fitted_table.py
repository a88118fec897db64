"""A table that fits the terminal: where it is too wide, intervals give way first, then columns in a fixed order, and a
line below says what was left out. Names never vanish.

Knows text alone; imports nothing slow.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich import box
from rich.cells import cell_len
from rich.console import Console, ConsoleOptions, RenderResult
from rich.table import Table
from rich.text import Text

INTERVAL = re.compile(r" \[[^\]]*\]| ± [\d.]+")
NAME = 16  # columns of the terminal that a name keeps, if it is that long


@dataclass(frozen=True)
class _Row:
    cells: tuple[str, ...]
    style: str | None
    colours: dict[int, str]  # by index of the cell
    ends_section: bool = False


class FittedTable:
    """A table to be printed by rich.

    Args:
        titles: Of the columns.
        left: How many columns, from the first, hold names: aligned left, folded where they are long, never left out.
        right: How many, from the last, hold sentences: the same.
        first_out: Titles in the order in which columns are left out; further ones follow from the right, and the first
            column of figures stays.
        caption: Text below.
    """

    def __init__(
        self,
        titles: Sequence[str],
        *,
        left: int = 1,
        right: int = 0,
        first_out: Sequence[str] = (),
        caption: str = "",
    ) -> None:
        self.titles, self.caption = tuple(titles), caption
        self._rows: list[_Row] = []
        self._figures = range(left, len(self.titles) - right)
        figures = self._figures[1:]
        named = [at for title in first_out for at in figures if self.titles[at] == title]
        self._order = [*named, *(at for at in reversed(figures) if at not in named)]

    def add_row(self, *cells: str, style: str | None = None, colours: dict[int, str] | None = None) -> None:
        self._rows.append(_Row(tuple(map(str, cells)), style, colours or {}))

    def add_section(self) -> None:
        """Let a line follow the last row."""
        if self._rows:
            last = self._rows[-1]
            self._rows[-1] = _Row(last.cells, last.style, last.colours, ends_section=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        intervals, shown = self._fitting(options.max_width)
        yield self._table(intervals, shown, options.max_width)
        without = [] if intervals else ["intervals"]
        without += [self.titles[at] for at in range(len(self.titles)) if at not in shown]
        if self.caption:
            yield Text(self.caption, style="italic dim")
        if without:
            yield Text(f"left out at this width: {', '.join(without)}; all of it: a wider terminal, or --json")

    def _fitting(self, width: int) -> tuple[bool, list[int]]:
        """Whether intervals are shown, and which columns."""
        candidates = self._candidates()
        return next((c for c in candidates if self._least_width(*c) <= width), candidates[-1])

    def _candidates(self) -> list[tuple[bool, list[int]]]:
        whole = list(range(len(self.titles)))
        has_intervals = any(INTERVAL.search(cell) for row in self._rows for cell in self._figures_of(row))
        found = [(True, whole), (False, whole)] if has_intervals else [(True, whole)]
        for n in range(1, len(self._order) + 1):
            gone = self._order[:n]
            found.append((not has_intervals, [at for at in whole if at not in gone]))
        return found

    def _least_width(self, intervals: bool, shown: list[int]) -> int:
        """Columns of the terminal that a choice needs: 2 between columns, 1 at either edge."""
        widths = [self._width(at, intervals) for at in shown]
        least = [w if at in self._figures else min(NAME, w) for at, w in zip(shown, widths, strict=True)]
        return sum(least) + 2 * len(shown)

    def _width(self, at: int, intervals: bool) -> int:
        words = self.titles[at].split() if at in self._figures else [self.titles[at]]
        title = max(words or [""], key=len)  # titles of figures fold between words
        return max(cell_len(text) for text in (title, *self._column(at, intervals)))

    def _column(self, at: int, intervals: bool) -> Iterator[str]:
        for row in self._rows:
            cell = row.cells[at] if at < len(row.cells) else ""
            yield cell if intervals or at not in self._figures else INTERVAL.sub("", cell)

    def _figures_of(self, row: _Row) -> tuple[str, ...]:
        return row.cells[self._figures.start : self._figures.stop]

    def _table(self, intervals: bool, shown: list[int], width: int) -> Table:
        table = Table(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
        fits = self._least_width(intervals, shown) <= width
        for at in shown:
            figure, longest = at in self._figures, self._width(at, intervals)
            least = (longest if figure else min(NAME, longest)) if fits else None
            table.add_column(
                Text(self.titles[at]), overflow="fold", justify="right" if figure else "left", min_width=least
            )
        columns = [list(self._column(at, intervals)) for at in shown]
        for i, row in enumerate(self._rows):
            cells = [Text(column[i], style=row.colours.get(at, "")) for at, column in zip(shown, columns, strict=True)]
            table.add_row(*cells, style=row.style, end_section=row.ends_section)
        return table
