"""The figures show what they were given, can be saved in every format, and leave pyplot alone."""

from __future__ import annotations

import io
from itertools import pairwise

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from semcal.calibration.estimators.finite_m import MCurve
from semcal.calibration.inference.bootstrap import Interval
from semcal.calibration.measures.scores import aurc, risk_coverage
from semcal.calibration.plots.curves import (
    LINES,
    _weighted_risk,
    m_curve_figure,
    risk_coverage_curve,
)


def interval(estimate: float, low: float, high: float) -> Interval:
    return Interval(estimate, low, high, np.array([low, high]))


def m_curve(m: list[int]) -> MCurve:
    sizes = np.array(m)
    noise = 0.2 / np.sqrt(sizes)
    return MCurve(
        sizes,
        0.6 + noise,
        0.55 - noise / 4,
        0.05 + 1.25 * noise,
        0.04 + noise,
        0.01 + noise,
        {
            "confidence": interval(0.6, 0.57, 0.63),
            "accuracy": interval(0.55, 0.51, 0.58),
            "signed_gap": interval(0.05, 0.01, 0.09),
            "smece": interval(0.04, 0.02, 0.03),  # a bootstrap interval need not hold its estimate
        },
    )


def run(n: int = 300, seed: int = 0, m: int = 20) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    confidence = rng.integers(0, m + 1, n) / m
    return confidence, (rng.random(n) < confidence).astype(float)


def saved(figure: Figure) -> None:
    for kind in ("png", "svg", "pdf"):
        file = io.BytesIO()
        figure.savefig(file, format=kind, dpi=40)
        assert len(file.getvalue()) > 1000
    assert plt.get_fignums() == []


def line(axes, label: str):
    return next(drawn for drawn in axes.lines if str(drawn.get_label()).startswith(label))


def test_risk_coverage_of_one_run_is_drawn_between_the_oracle_and_no_information():
    confidence, correct = run()
    figure = risk_coverage_curve({"base": (confidence, correct)}, title="facts", seed=0)
    (axes,) = figure.axes
    found = risk_coverage(confidence, correct)
    drawn = line(axes, "base")
    np.testing.assert_array_equal(drawn.get_xdata(), found.coverage)
    np.testing.assert_array_equal(drawn.get_ydata(), found.risk)
    assert drawn.get_label() == f"base (AURC {aurc(confidence, correct):.3f})"
    np.testing.assert_allclose(line(axes, "no information").get_ydata(), 1 - correct.mean())
    oracle = line(axes, "oracle")
    best = risk_coverage(correct, correct)  # a confidence that knows
    np.testing.assert_allclose(oracle.get_ydata(), np.interp(oracle.get_xdata(), best.coverage, best.risk), atol=2e-3)
    assert oracle.get_ydata()[-1] == pytest.approx(1 - correct.mean())
    assert [text.get_text() for text in figure.legends[0].get_texts()] == [x.get_label() for x in axes.lines]
    saved(figure)


def band(axes, which: int = 0) -> np.ndarray:
    """Height of a band at each of its coverages."""
    corners = [c for c in axes.collections if isinstance(c, PolyCollection)][which].get_paths()[0].vertices
    return np.array([np.ptp(corners[np.isclose(corners[:, 0], x), 1]) for x in np.unique(corners[:, 0])])


def test_dependent_questions_widen_the_band():
    confidence, correct = (np.repeat(values, 5) for values in run(60))
    alone, together = (
        band(risk_coverage_curve({"base": (confidence, correct)}, title="", group=group, seed=0).axes[0])
        for group in (None, np.repeat(np.arange(60), 5))
    )
    assert together[-50:].mean() > 1.6 * alone[-50:].mean()


def test_several_runs_differ_in_colour_dashes_and_marker():
    runs = {f"run {i}": run(seed=i) for i in range(len(LINES))}
    figure = risk_coverage_curve(runs, title="all", seed=0)
    (axes,) = figure.axes
    assert len(axes.lines) == len(runs)  # neither oracle nor error rate, which differ between runs
    for unlike in (lambda x: to_hex(x.get_color()), lambda x: x.get_marker(), lambda x: str(x._dash_pattern)):
        assert len({unlike(drawn) for drawn in axes.lines}) == len(runs)
    saved(figure)


def test_weighted_risk_is_that_of_repeated_questions():
    confidence, correct = run(40, m=5)
    weight = np.random.default_rng(1).integers(0, 4, (6, 40)).astype(float)
    for row in weight:
        times = row.astype(int)
        repeated = risk_coverage(np.repeat(confidence, times), np.repeat(correct, times))
        risk = _weighted_risk(confidence, correct, row[None], repeated.coverage)[0]
        np.testing.assert_allclose(risk, repeated.risk, atol=1e-12)


@pytest.mark.parametrize("correct", [[1.0, 1.0, 1.0], [0.0, 0.0, 0.0], [1.0, 0.0, 1.0]])
@pytest.mark.parametrize("confidence", [[0.5, 0.5, 0.5], [1.0, 0.0, 0.3]])
def test_few_questions_draw(confidence, correct):
    saved(risk_coverage_curve({"few": (confidence, correct)}, title="few", seed=0))


def test_one_question_draws():
    saved(risk_coverage_curve({"one": ([0.4], [1.0])}, title="one", seed=0))


def test_m_curve_shows_its_lines_and_their_limits():
    curve = m_curve([2, 5, 10, 20, 30, 40, 50])
    figure = m_curve_figure(curve, title="facts · sentence")
    left, right = figure.axes
    x = 1 / np.sqrt(curve.m)
    for axes, label, values in (
        (left, "confidence", curve.confidence),
        (left, "accuracy", curve.accuracy),
        (right, "smECE", curve.smece),
        (right, "calibrated model", curve.null_mean),
    ):
        np.testing.assert_allclose(line(axes, label).get_xdata(), x)
        np.testing.assert_allclose(line(axes, label).get_ydata(), values)
    ends = [s.tolist() for c in left.collections if isinstance(c, LineCollection) for s in (c.get_segments()[0][:, 1],)]
    assert ends == [[0.57, 0.63], [0.51, 0.58]]
    assert left.get_title() == "signed gap at M = ∞: +0.050 [+0.010, +0.090]"
    assert right.get_title() == "smECE at M = ∞: 0.040 [0.020, 0.030]"
    assert "1/√M" in left.get_xlabel()
    assert figure.get_suptitle() == "facts · sentence"
    saved(figure)


@pytest.mark.parametrize("m", [[50], [1, 2], list(range(1, 101))])
def test_m_is_labelled_by_its_ends_and_labels_keep_apart(m):
    figure = m_curve_figure(m_curve(m), title="")
    axes = figure.axes[0]
    labels = [text.get_text() for text in axes.get_xticklabels()]
    assert labels[:2] == ["∞", str(m[-1])]
    assert axes.get_xlim()[0] > axes.get_xlim()[1]  # more samples to the right
    figure.draw_without_rendering()
    places = sorted(text.get_window_extent().extents[[0, 2]].tolist() for text in axes.get_xticklabels())
    assert all(end <= start for (_, end), (start, _) in pairwise(places))


def test_bad_input_is_named():
    with pytest.raises(ValueError, match="no runs to draw"):
        risk_coverage_curve({}, title="", seed=0)
    with pytest.raises(ValueError, match=r"'a' has shape \(2, 3\)"):
        risk_coverage_curve({"a": (np.zeros((2, 3)), np.zeros((2, 3)))}, title="", seed=0)
    with pytest.raises(ValueError, match=r"group has shape \(1,\)"):
        risk_coverage_curve({"a": ([0.1, 0.2], [0, 1])}, title="", group=["x"], seed=0)
