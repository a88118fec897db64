"""The headline figures of the runs that a command made or analysed again, on the screen and as data."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from experiments.terminal.output import output

if TYPE_CHECKING:
    from experiments.config.study import Cell
    from semcal.runs.run import Run


def print_summary(rows: Sequence[tuple[Cell, Run]]) -> None:
    """A row for each run, then remarks that a reader needs."""
    from experiments.report.summary_table import LEAVE_FIRST, legend, remarks, summary_rows, text_table

    titles, cells = summary_rows(rows)
    caption = "" if output().quiet else legend(titles, short=True)
    output().show(text_table(titles, cells, first_out=LEAVE_FIRST, caption=caption))
    for (name, *_), (cell, found) in zip(cells, rows, strict=True):
        for remark in remarks(cell, found):
            output().remark(remark, of=name)


def run_records(rows: Sequence[tuple[Cell, Run]]) -> list[dict[str, Any]]:
    """The same as data: where each run is, what it is of, its headline figures and remarks."""
    from experiments.report.summary_table import headline, remarks

    return [
        {
            "folder": run.folder,
            "model": cell.model.name,
            "dataset": cell.dataset.name,
            "style": cell.style,
            "semantics": cell.semantics.label,
            **headline(run),
            "remarks": remarks(cell, run),
        }
        for cell, run in rows
    ]
