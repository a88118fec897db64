"""The checks made on a run, as rows for a page and as a table for a terminal."""

from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.markup import escape
from rich.table import Table

TITLES = ("check", "outcome", "figure", "at most", "what was compared")
_COLOURS = {"passed": "green", "failed": "bold red", "not made": "yellow"}


def check_rows(checks: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """One row per check, as the manifest of a run holds it, with a dash for a figure that it does not have."""
    return [
        [check["name"], check["outcome"], *(_figure(check[key]) for key in ("figure", "limit")), check["why"]]
        for check in checks
    ]


def checks_table(checks: Sequence[Mapping[str, Any]]) -> Table:
    """The rows for a terminal."""
    table = Table(box=box.SIMPLE_HEAD, padding=(0, 1), pad_edge=False)
    for title in TITLES:
        figure = title in TITLES[2:4]
        table.add_column(title, justify="right" if figure else "left", no_wrap=title != TITLES[-1], overflow="fold")
    for name, outcome, *figures, why in check_rows(checks):
        colour = _COLOURS[outcome]
        table.add_row(name, f"[{colour}]{outcome}[/{colour}]", *figures, escape(why))
    return table


def _figure(value: float | None) -> str:
    return "—" if value is None else f"{value:.2g}"
