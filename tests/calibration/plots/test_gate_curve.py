"""The figure of `semcal gate` shows the coverage of each confidence at each risk."""

from __future__ import annotations

import io

import pandas as pd
import pytest

from semcal.calibration.plots.gate_curve import gate_curve
from semcal.calibration.plots.sheet import COLUMN

FRAME = pd.DataFrame(
    [
        {"source": source, "risk": risk, "coverage": lead + risk, "marked": risk == 0.1}
        for source, lead in (("B-confidence", 0.1), ("class probe", 0.3))
        for risk in (0.2, 0.1, 0.05)
    ]
)


@pytest.mark.parametrize("width", [None, COLUMN])
def test_every_confidence_has_a_line_marked_at_the_risks_asked_for(width):
    figure = gate_curve(FRAME, wrong=0.4, guarantee="of the answers", title="t", width=width)
    (axes,) = figure.axes
    first, second, wrong = axes.lines
    assert first.get_xdata().tolist() == [0.05, 0.1, 0.2]
    assert second.get_ydata().tolist() == pytest.approx([0.35, 0.4, 0.5])
    assert first.get_markevery() == [1]
    assert set(wrong.get_xdata()) == {0.4}
    assert "of the answers" in axes.get_xlabel()
    figure.savefig(io.BytesIO())


def test_nothing_to_draw_is_refused():
    with pytest.raises(ValueError, match="no threshold to draw"):
        gate_curve(FRAME[:0], wrong=0.4, guarantee="of the answers")
