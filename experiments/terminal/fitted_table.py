"""A table that fits the terminal: where it is too wide, intervals give way first, then columns in a fixed order, and a
line below says what was left out. Names never vanish: they are folded.

Knows text alone; imports nothing slow. rich's own table drops the end of what does not fit, and takes a second for a
thousand rows.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from rich.cells import cell_len, chop_cells
from rich.console import Console, ConsoleOptions, RenderResult
from rich.text import Text

INTERVAL = re.compile(r" \[[^\]]*\]| ± [\d.]+")
NAME = 16  # columns of the terminal that a name keeps, if it is that long, where figures could be left out instead
NARROWEST = 4  # to which names are folded where nothing else can give way


@dataclass(frozen=True)
class _Row:
    cells: tuple[str, ...]
    style: str = ""
    colours: Mapping[int, str] = field(default_factory=dict)  # by index of the cell
    ends_section: bool = False


@dataclass(frozen=True)
class _Choice:
    """What is shown: whether intervals are, and the columns by index."""

    intervals: bool
    columns: tuple[int, ...]


class FittedTable:
    """A table to be printed by rich.

    Args:
        titles: Of the columns.
        left: How many columns, from the first, hold names: aligned left, folded where they are long, never left out.
        right: How many, from the last, hold sentences: the same.
        first_out: Titles in the order in which columns of figures are left out; further ones follow from the right, and
            the first of those stays.
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
        named = [at for title in first_out for at in self._figures if self.titles[at] == title]
        others = [at for at in self._figures if at not in named]
        self._order = [*named, *reversed(others[1:])]

    def add_row(self, *cells: str, style: str | None = None, colours: Mapping[int, str] | None = None) -> None:
        padded = (*map(str, cells), *[""] * (len(self.titles) - len(cells)))
        self._rows.append(_Row(padded, style or "", colours or {}))

    def add_section(self) -> None:
        """Let a line follow the last row."""
        if self._rows:
            self._rows[-1] = replace(self._rows[-1], ends_section=True)

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        choices = self._choices()
        chosen = next((c for c in choices if self._least(c) <= options.max_width), choices[-1])
        yield self._lines(chosen, options.max_width)
        if self.caption:
            yield Text(self.caption, style="italic dim")
        without = [] if chosen == choices[0] or chosen.intervals else ["intervals"]
        without += [title for at, title in enumerate(self.titles) if at not in chosen.columns]
        if without:
            yield Text(f"left out at this width: {', '.join(without)}; a wider terminal or --json shows all")

    # ---- what fits ---------------------------------------------------------------------------------------------------

    def _choices(self) -> list[_Choice]:
        """From everything to the least, in the order in which things give way."""
        whole = tuple(range(len(self.titles)))
        cells = [cell for row in self._rows for cell in row.cells[self._figures.start : self._figures.stop]]
        found = [_Choice(True, whole)]
        if any(map(INTERVAL.search, cells)):
            found.append(_Choice(False, whole))
        for n in range(1, len(self._order) + 1):
            found.append(_Choice(False, tuple(at for at in whole if at not in self._order[:n])))
        return found

    def _least(self, choice: _Choice) -> int:
        """The width at which this can be shown with names of `NAME` and titles of figures folded between words."""
        widths = {at: self._width(at, choice) for at in choice.columns}
        return sum(w if at in self._figures else min(NAME, w) for at, w in widths.items()) + 2 * len(widths)

    def _width(self, at: int, choice: _Choice) -> int:
        title = max(self.titles[at].split() or [""], key=len) if at in self._figures else self.titles[at]
        return max(map(cell_len, (title, *self._cells(at, choice))))

    def _cells(self, at: int, choice: _Choice) -> Iterator[str]:
        cut = at in self._figures and not choice.intervals
        for row in self._rows:
            yield INTERVAL.sub("", row.cells[at]) if cut else row.cells[at]

    def _widths(self, choice: _Choice, most: int) -> dict[int, int]:
        """Of each column: titles of figures are whole where there is room, and long names share what is left."""
        widths = {at: self._width(at, choice) for at in choice.columns}
        whole = {at: max(w, cell_len(self.titles[at])) for at, w in widths.items()}
        room = most - 2 * len(widths)
        if sum(whole.values()) <= room:
            return whole
        names = [at for at in widths if at not in self._figures]
        while names and sum(widths.values()) > room:
            widest = max(names, key=lambda at: widths[at])
            if widths[widest] <= NARROWEST:
                break
            widths[widest] -= 1
        return widths

    # ---- as lines ----------------------------------------------------------------------------------------------------

    def _lines(self, choice: _Choice, most: int) -> Text:
        widths = self._widths(choice, most)
        rule = f" {'─' * (sum(widths.values()) + 2 * len(widths) - 2)}\n"
        head = self._line(_Row((), "bold"), [self.titles[at] for at in widths], widths)
        found = Text("\n", end="", no_wrap=True).append_text(head).append(rule)
        columns = [list(self._cells(at, choice)) for at in choice.columns]
        for row, *cells in zip(self._rows, *columns, strict=True):
            found.append_text(self._line(row, cells, widths))
            if row.ends_section:
                found.append(rule)
        return found.append("\n")

    def _line(self, row: _Row, cells: Sequence[str], widths: Mapping[int, int]) -> Text:
        """A row, of as many lines as its longest cell is folded to."""
        folded = [_folded(cell, width) for cell, width in zip(cells, widths.values(), strict=True)]
        found = Text(style=row.style)
        for i in range(max(map(len, folded))):
            for parts, (at, width) in zip(folded, widths.items(), strict=True):
                part = parts[i] if i < len(parts) else ""
                gap = " " * (width - cell_len(part))
                found.append(f" {gap}{part} " if at in self._figures else f" {part}{gap} ", row.colours.get(at))
            found.append("\n")
        return found


def _folded(text: str, width: int) -> list[str]:
    """A text in lines of at most this width, between words where that is possible."""
    if cell_len(text) <= width and "\n" not in text:
        return [text]
    lines = [""]
    for word in re.findall(r"\s*\S+", text.replace("\n", " ")):
        if cell_len(lines[-1] + word) <= width:
            lines[-1] += word
            continue
        lines += chop_cells(word.lstrip(), width)
    return lines[1:] if not lines[0] else lines
