"""The verdict fits on a page however many cells are behind it, a panel a hypothesis."""

from __future__ import annotations

import numpy as np
import pytest

from experiments.report.figures.verdict_figure import forest
from experiments.verdict.rules import Finding, Part, Verdict, decide
from tests.readable import complaints

NAN = float("nan")
WORST = "9 of 28 cells with a gap < 0.1, worst gemma-3-270m-instruct · lre-person_plays_pro_sport · concise · mention"


def part(what: str, unit: str, estimate: float, shown: str = "> 0") -> Part:
    return Part(what, unit, estimate, estimate - 0.01, estimate + 0.01, shown, 0.003, 0.7, 0.02)


def cells(unit: str, n: int, between: str = "·") -> tuple[Part, ...]:
    at = np.linspace(-0.05, 0.15, n)
    return tuple(Part(f"model-{i} {between} data", unit, x, x - 0.02, x + 0.02) for i, x in enumerate(at))


def verdicts(n: int) -> list[Verdict]:
    raised = [part("preference tuned − base", unit, 0.08) for unit in ("excess smECE", "signed gap")]
    raised += [part("preference tuned − SFT", "excess smECE", 0.07), part("SFT − base", "excess smECE", 0.01, "< 0.05")]
    both = (*cells("excess smECE", n, "−"), *cells("signed gap", n, "−"))
    small = part(WORST, "excess smECE", 0.04, "mean < 0.05, none above")
    slope = part("slope on the KL gap (bilinear), 28 cells of 7 lineages", "smECE per nat", 0.05)
    mean = part(f"mean of {n} cells of 7 models", "excess smECE", 0.021, "smECE error < 0.05")
    share = Part("20 of 28 cells within 0.05, 3 certainly above", "share of cells", 0.7, NAN, NAN)
    found = [
        Finding("H1", (mean,), (share, *cells("excess smECE", n))),
        Finding("H2", tuple(raised), both),
        Finding("H2 same prompt", tuple(raised), both),
        Finding("H3", (part("cot − short, mean", "excess smECE", 0.04),), both),
        Finding("H4", (small, slope), (*cells("KL gap (bilinear), nats", n), *cells("excess smECE", n))),
        Finding("H5", reason="no base model of arm direct"),
        Finding("H6", (part("base, mean of 14 cells", "nats", 0.005, "< 0.012"),), cells("nats", n)),
    ]
    return decide(found, 0.05)


def drawn_panels(figure) -> list:
    return [axes for place in figure.subfigs for axes in place.axes if axes.axison]


@pytest.mark.parametrize("n", [4, 28, 180])
def test_a_panel_a_hypothesis_on_one_page(n):
    figure = forest(verdicts(n), title="real: the evidence for each hypothesis", delta=0.05)
    width, height = figure.get_size_inches()
    assert width <= 7
    assert height <= 9
    heads = [axes.get_title(loc="left").split(":")[0] for axes in drawn_panels(figure)]
    assert heads == ["H1", "H2", "H2 same prompt", "H3", "H4", "H6"]  # H5 has nothing to show


@pytest.mark.parametrize("width", [None, 3.25])
def test_every_text_can_be_read(width):
    assert complaints(forest(verdicts(28), title="real: the evidence", delta=0.05, width=width)) == []


def test_means_lie_in_front_of_the_cells_and_cells_that_say_something_else_are_left_out():
    (axes, *_) = drawn_panels(forest(verdicts(28), delta=0.05))
    marks = [line for line in axes.lines if line.get_marker() == "o"]
    mean = [line for line in marks if line.get_xdata()[0] == 0.021]
    assert len(mean) == 1
    assert len(marks) == 1 + 28  # the share of cells has no place on this axis
    assert all(line.get_zorder() < mean[0].get_zorder() for line in marks if line is not mean[0])


def test_the_tolerance_is_a_line_where_errors_are_shown_and_nowhere_else():
    panels = drawn_panels(forest(verdicts(8), delta=0.05))
    lined = {
        axes.get_title(loc="left").split(":")[0]
        for axes in panels
        if any(str(line.get_label()).startswith("δ") and line.get_xdata()[0] == 0.05 for line in axes.lines)
    }
    assert lined == {"H1", "H2", "H2 same prompt", "H3", "H4"}  # H6 is in nats


def test_where_nothing_was_tested_the_page_says_so():
    figure = forest(decide([Finding("H5", reason="no base model")], 0.05), title="t")
    assert [text.get_text() for text in figure.texts if text.get_text() != "t"] == ["no hypothesis was tested"]
