"""Tables fit the terminal: names stay, intervals go first, then columns in the order that was said."""

from __future__ import annotations

import io

import pytest
from rich.cells import cell_len
from rich.console import Console

from experiments.terminal.fitted_table import FittedTable

TITLES = ("run", "smECE", "null", "p", "accuracy")
ROWS = [
    ("gemma-3-270m · triviaqa · concise", "0.123 [0.101, 0.145]", "0.050", "0.010", "0.500"),
    ("smollm2-135m-instruct · popqa · a-style-of-its-own", "0.456 [0.401, 0.545]", "0.060", "0.020", "0.250"),
]


def printed(width: int, **how) -> str:
    table = FittedTable(TITLES, **how)
    for row in ROWS:
        table.add_row(*row)
    stream = io.StringIO()
    Console(file=stream, width=width).print(table)
    return stream.getvalue()


def together(text: str) -> str:
    """What is printed, without where it was folded."""
    return "".join(text.split())


@pytest.mark.parametrize("width", [24, 40, 60, 80, 100, 140])
def test_every_line_fits_and_no_name_is_cut(width):
    found = printed(width)
    assert max(map(cell_len, found.splitlines())) <= width
    names = "".join(line[1:].split("  ")[0].strip() for line in found.splitlines() if not line.startswith(" ─"))
    for name, *_ in ROWS:
        assert together(name) in together(names)


def test_all_is_shown_where_there_is_room():
    found = printed(140)
    assert "left out" not in found
    assert all(cell in found for row in ROWS for cell in row)


def test_intervals_give_way_before_any_column():
    found = printed(60)
    assert "[0.101" not in found
    assert all(title in found for title in TITLES)
    assert "left out at this width: intervals;" in " ".join(found.split())


def test_columns_give_way_in_the_order_that_was_said_and_one_stays():
    assert "left out at this width: intervals, null;" in " ".join(printed(44, first_out=("null", "p")).split())
    narrow = " ".join(printed(20, first_out=("null", "p")).split())
    assert "left out at this width: intervals, null, p, accuracy;" in narrow
    assert "0.123" in narrow


def test_what_looks_like_markup_is_text():
    table = FittedTable(("run", "n"))
    table.add_row("[bold]a[/bold]", "1", colours={0: "red"})
    stream = io.StringIO()
    Console(file=stream, width=80).print(table)
    assert "[bold]a[/bold]" in stream.getvalue()


def test_wide_characters_count_twice():
    table = FittedTable(("run", "n"))
    table.add_row("東京" * 20, "1")
    stream = io.StringIO()
    Console(file=stream, width=40).print(table)
    assert max(map(cell_len, stream.getvalue().splitlines())) <= 40
    assert stream.getvalue().count("東") == 20


def test_sentences_on_the_right_are_folded_between_words():
    table = FittedTable(("check", "figure", "why"), right=1)
    table.add_row("a check", "0.1", "one two three four five six seven eight nine ten eleven twelve")
    stream = io.StringIO()
    Console(file=stream, width=40).print(table)
    words = stream.getvalue().split()
    assert {"one", "six", "eleven", "twelve", "0.1"} <= {*words}
