"""The figure of a profile shows every row's numbers where it says."""

from __future__ import annotations

import io
from dataclasses import replace

import numpy as np
import pytest
from matplotlib.axes import Axes

from semcal.calibration.plots.profile import ProfileRow, calibration_profile
from semcal.calibration.resampling import Resampling
from semcal.calibration.summary import calibrate
from semcal.semantics.class_table import ClassTable


@pytest.fixture(scope="module")
def row() -> ProfileRow:
    rng = np.random.default_rng(0)
    pi = rng.dirichlet([2.0, 1.0, 0.5], 80)
    found = calibrate(
        ClassTable.of_arrays(rng.multinomial(10, pi), rng.integers(3, size=80)),
        resampling=Resampling(bootstrap=50, null_draws=50),
    )
    return ProfileRow.of("meaning", 2.5, found)


def test_a_row_is_the_calibration_under_its_b(row):
    assert (row.name, row.classes, row.n) == ("meaning", 2.5, 80)
    assert row.signed_gap == pytest.approx(row.confidence - row.accuracy)
    assert row.excess == pytest.approx(row.smece - row.null_mean)
    assert row.smece_low < row.smece < row.smece_high


def test_figure_has_a_place_for_every_row_the_first_on_top(row):
    rows = [replace(row, name="first token", smece=0.01, accuracy=0.9, confidence=0.4), row]
    figure = calibration_profile(rows, title="a model")
    left, right = figure.axes
    assert isinstance(left, Axes)
    assert [t.get_text().split("\n")[0] for t in left.get_yticklabels()] == ["first token", "meaning"]
    assert left.get_ylim()[0] > left.get_ylim()[1]
    dots = [np.asarray(line.get_xdata()) for line in left.lines]
    np.testing.assert_allclose(dots[0], [0.01, row.smece])
    np.testing.assert_allclose([bar.get_width() for bar in left.patches], row.null_q95)  # pyright: ignore[reportAttributeAccessIssue]
    accuracy, confidence = (np.asarray(line.get_xdata()) for line in right.lines)
    np.testing.assert_allclose(accuracy, [0.9, row.accuracy])
    np.testing.assert_allclose(confidence, [0.4, row.confidence])
    figure.savefig(io.BytesIO(), format="png")


def test_a_row_without_an_interval_is_drawn_all_the_same(row):
    nan = float("nan")
    calibration_profile([replace(row, smece_low=nan, smece_high=nan)], title="").savefig(io.BytesIO())


def test_no_rows_are_refused():
    with pytest.raises(ValueError, match="at least one"):
        calibration_profile([], title="")
