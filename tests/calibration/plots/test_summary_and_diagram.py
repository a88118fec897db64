"""The record of a run agrees with its parts, and the diagram shows what it says."""

from __future__ import annotations

import io
import json
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.patches import Rectangle

from semcal.calibration.measures.smece import smece, smece_batch
from semcal.calibration.nulls.null import null_band
from semcal.calibration.plots.reliability_diagram import reliability_diagram
from semcal.calibration.resampling import Resampling
from semcal.calibration.summary import calibrate
from semcal.semantics.class_table import ClassTable
from semcal.semantics.confidence import confidences


def overconfident(n: int = 300, m: int = 20, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    pi = rng.dirichlet([2.0, 0.5, 0.3, 0.2], n)
    flat = 0.5 * pi + 0.5 / 4
    return rng.multinomial(m, pi), (flat.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)


@pytest.fixture(scope="module")
def record():
    counts, gold = overconfident()
    unparsed = np.full(300, -1)
    unparsed[:30] = 3
    return calibrate(
        ClassTable.of_arrays(counts, gold, unparsed),
        truncated_share=0.02,
        resampling=Resampling(bootstrap=200, null_draws=100, seed=1),
    )


def test_record_agrees_with_its_parts(record):
    counts, gold = overconfident()
    found = confidences(counts, gold, np.repeat([3, -1], [30, 270]))
    assert (record.n, record.m) == (300, 20)
    assert record.accuracy == pytest.approx(found.correct.mean())
    assert record.confidence == pytest.approx(found.plug_in.mean())
    assert record.signed_gap == pytest.approx(record.confidence - record.accuracy)
    assert record.smece == pytest.approx(smece(found.plug_in, found.correct))
    assert record.excess == pytest.approx(record.smece - record.null_mean)
    assert record.unparsed_share == pytest.approx(counts[:30, 3].sum() / counts.sum())
    assert record.tie_rate == pytest.approx(found.tied.mean())
    assert record.truncated_share == 0.02


def test_overconfidence_shows_in_every_figure(record):
    assert record.p_value == pytest.approx(1 / 101)
    assert record.signed_gap_low > 0
    assert record.split_half_gap > 0.05
    assert record.split_half_gap < record.signed_gap + 0.05
    for name in ("accuracy", "confidence", "smece", "signed_gap", "brier", "auroc"):
        low, value, high = (getattr(record, name + end) for end in ("_low", "", "_high"))
        assert low < value < high, name


def test_record_is_plain_numbers(record):
    plain = record.to_dict() | {"seen_mass": 0.5}  # unknown where there are only counts
    assert json.loads(json.dumps(plain)) == plain
    assert {type(value) for value in record.to_dict().values()} == {int, float}


def test_record_is_reproducible_and_widened_by_groups():
    counts, gold = overconfident(120)
    quick = partial(calibrate, resampling=Resampling(bootstrap=100, null_draws=30, seed=2))
    table = replace(ClassTable.of_arrays(counts, gold), seen_mass=np.full(120, 0.5))
    assert quick(table, truncated_share=0.0) == quick(table, truncated_share=0.0)
    counts, gold = np.repeat(counts, 5, axis=0), np.repeat(gold, 5)
    alone = quick(ClassTable.of_arrays(counts, gold))
    together = quick(ClassTable.of_arrays(counts, gold, groups=np.repeat(np.arange(120), 5)))
    assert together.accuracy_high - together.accuracy_low > 1.6 * (alone.accuracy_high - alone.accuracy_low)


def test_one_sample_has_no_halves():
    record = calibrate(
        ClassTable.of_arrays([[1, 0], [0, 1]], [0, 0]), resampling=Resampling(bootstrap=10, null_draws=10)
    )
    assert record.m == 1
    assert np.isnan(record.split_half_gap)


def test_impossible_shares_are_refused():
    with pytest.raises(ValueError, match=r"truncated_share is 1\.5"):
        calibrate(ClassTable.of_arrays([[1, 1]], [0]), truncated_share=1.5)


def questions_in(axes: Axes) -> float:
    return sum(bar.get_height() for bar in axes.patches if isinstance(bar, Rectangle))


def test_diagram_has_its_parts():
    counts, gold = overconfident()
    found = confidences(counts, gold)
    width = smece_batch(found.plug_in[None], found.correct[None]).bandwidths[0]
    band = null_band(counts, bandwidth=width, null_draws=20, seed=0)
    figure = reliability_diagram(found.plug_in, found.correct, title="facts · concise", null_band=band, seed=0)
    upper, lower = figure.axes
    assert figure.get_suptitle() == "facts · concise"
    assert upper.texts[0].get_text() == f"smECE = {smece(found.plug_in, found.correct):.3f}\nn = 300"
    lines = [c for c in upper.collections if isinstance(c, LineCollection)]
    assert (
        len({float(w) for w in np.atleast_1d(lines[0].get_linewidth())}) > 10
    )  # the curve's width follows the density
    assert sum(len(c.get_segments()) for c in lines[1:]) == 300  # a tick for each question
    assert questions_in(lower) == 300
    labels = [text.get_text() for text in figure.legends[0].get_texts()]
    assert "calibrated model, same n and M" in labels
    assert "95 % bootstrap band" in labels
    figure.savefig(io.BytesIO(), format="png", dpi=40)


@pytest.mark.parametrize("confidence", [[0.7] * 5, [1.0] * 5, [0.0, 1.0, 0.0, 1.0, 1.0], [0.4]])
def test_diagram_of_few_confidences_draws(confidence):
    correct = np.resize([1.0, 0.0], len(confidence))
    reliability_diagram(confidence, correct, title="few", seed=0).savefig(io.BytesIO(), format="png", dpi=40)


def test_diagram_of_continuous_confidences_bins_them_and_leaves_pyplot_alone():
    import matplotlib.pyplot as plt

    rng = np.random.default_rng(0)
    confidence = rng.random(500)
    figure = reliability_diagram(confidence, rng.random(500) < confidence, title="many", seed=0)
    assert questions_in(figure.axes[1]) == 500
    assert plt.get_fignums() == []


def test_diagram_refuses_many_rows():
    with pytest.raises(ValueError, match=r"one run, got shape \(2, 3\)"):
        reliability_diagram(np.zeros((2, 3)), np.zeros((2, 3)), title="", seed=0)
