"""smECE against its definition, against the reference implementation, and against what must leave it unchanged."""

from __future__ import annotations

import time
from importlib import import_module

import numpy as np
import pytest
import relplot
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import trapezoid

from semcal.calibration.measures.scores import signed_gap
from semcal.calibration.measures.smece import smece, smece_batch, smooth_curve


@st.composite
def confidence_and_correct(draw):
    """Lengths 2 to 2,000; confidences anywhere, on grids k/M, piled up at 0 and 1; correctness 0/1 or fractional."""
    n = draw(st.integers(2, 12) | st.integers(13, 2000))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    kind = draw(st.sampled_from(["uniform", "grid", "ends", "peaked", "typed"]))
    if kind == "typed":
        confidence = np.resize(draw(st.lists(st.floats(0, 1), min_size=1, max_size=12)), n)
    else:
        confidence = {
            "uniform": rng.random(n),
            "grid": rng.integers(0, (m := draw(st.integers(1, 60))) + 1, n) / m,
            "ends": rng.choice([0.0, 1.0, rng.random()], n),
            "peaked": rng.beta(5, 0.3, n),
        }[kind]
    chance = {
        "calibrated": confidence,
        "over": confidence**3,
        "under": confidence**0.3,
        "reversed": 1 - confidence,
    }[draw(st.sampled_from(["calibrated", "over", "under", "reversed"]))]
    fractional = draw(st.booleans())
    return confidence, chance * rng.random(n) if fractional else (rng.random(n) < chance).astype(float)


def example(n: int, seed: int, m: int | None = None, power: float = 2.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    confidence = rng.random(n) if m is None else rng.integers(0, m + 1, n) / m
    return confidence, (rng.random(n) < confidence**power).astype(float)


@settings(max_examples=60, deadline=None)
@given(confidence_and_correct())
def test_equals_relplot_within_a_thousandth(pairs):
    confidence, correct = pairs
    assert smece(confidence, correct) == pytest.approx(relplot.smECE(confidence, correct), abs=1e-3)


def test_equals_relplot_on_shares_of_fifty_samples():
    for seed in range(12):
        confidence, correct = example(1000, seed, m=50, power=1 + seed % 3)
        value, width = relplot.smECE(confidence, correct, return_width=True)
        batch = smece_batch(confidence[None], correct[None])
        assert batch.values[0] == pytest.approx(value, abs=1e-5)
        assert batch.bandwidths[0] == width


def integral_of_the_definition(confidence: np.ndarray, correct: np.ndarray, sigma: float) -> float:
    """The integral in smECE's definition with the kernel's mirror images summed one by one."""
    t = np.linspace(0, 1, 4001)[:, None]
    images = [2 * j + sign * confidence for j in range(-3, 4) for sign in (1, -1)]
    kernel = sum(np.exp(-0.5 * ((t - image) / sigma) ** 2) for image in images) / (sigma * np.sqrt(2 * np.pi))
    return float(trapezoid(np.abs((kernel * (confidence - correct)).mean(axis=1)), t[:, 0]))


@pytest.mark.parametrize("seed", range(6))
def test_exact_convention_is_the_definition(seed):
    confidence, correct = example(150, seed, m=[None, 5, 50][seed % 3], power=[0.2, 1, 4][seed % 3])
    values, bandwidths = smece_batch(confidence[None], correct[None], convention="exact")
    assert values[0] == pytest.approx(integral_of_the_definition(confidence, correct, bandwidths[0]), abs=2e-4)
    # ... read off at the fixed point: bisection stops within 2^-10 above it.
    just_below = bandwidths[0] - 2**-10
    assert values[0] <= bandwidths[0]
    assert integral_of_the_definition(confidence, correct, just_below) > just_below - 2e-4


def test_relplot_halves_the_weight_of_unanimous_questions_and_exact_does_not():
    # 60 % of the questions are unanimous and 40 points too confident, the rest sit at 0.5 and 20 points too confident.
    confidence = np.repeat([1.0, 0.5], [600, 400])
    correct = np.repeat([0.6, 0.3], [600, 400])
    weighted = (0.3 * 0.4 + 0.4 * 0.2) / 0.7
    assert relplot.smECE(confidence, correct) == pytest.approx(weighted, abs=0.01)
    assert smece(confidence, correct) == pytest.approx(weighted, abs=0.01)
    assert smece(confidence, correct, convention="exact") == pytest.approx(0.6 * 0.4 + 0.4 * 0.2, abs=1e-3)


@pytest.mark.parametrize("convention", ["relplot", "exact"])
class TestInvariances:
    def test_order_does_not_matter(self, convention):
        confidence, correct = example(300, 0)
        order = np.random.default_rng(1).permutation(300)
        moved = smece(confidence[order], correct[order], convention=convention)
        assert moved == pytest.approx(smece(confidence, correct, convention=convention), abs=1e-12)

    def test_duplicated_data_measure_the_same(self, convention):
        confidence, correct = example(120, 2, m=20)
        twice = smece(np.tile(confidence, 2), np.tile(correct, 2), convention=convention)
        assert twice == pytest.approx(smece(confidence, correct, convention=convention), abs=1e-12)

    def test_weights_are_repeats(self, convention):
        confidence, correct = example(80, 3, m=10)
        weight = np.random.default_rng(4).integers(0, 4, (3, 80))
        batch = smece_batch(confidence, correct, weight=weight, convention=convention)
        for row, times in enumerate(weight):
            repeated = smece(np.repeat(confidence, times), np.repeat(correct, times), convention=convention)
            assert batch.values[row] == pytest.approx(repeated, abs=1e-12)

    def test_a_batch_equals_its_rows(self, convention):
        rng = np.random.default_rng(5)
        confidence = rng.random((40, 60))
        correct = (rng.random((40, 60)) < confidence ** rng.uniform(0.2, 5, (40, 1))).astype(float)
        batch = smece_batch(confidence, correct, convention=convention).values
        rows = [smece(c, a, convention=convention) for c, a in zip(confidence, correct, strict=True)]
        np.testing.assert_allclose(batch, rows, atol=1e-12)

    def test_fractions_equal_to_the_confidence_measure_zero(self, convention):
        confidence = np.linspace(0, 1, 101)
        assert smece(confidence, confidence, convention=convention) == pytest.approx(0, abs=1e-12)

    @pytest.mark.parametrize(("confidence", "accuracy"), [(0.9, 0.6), (0.3, 0.8), (1.0, 0.0), (0.0, 0.5)])
    def test_one_confidence_for_all_measures_the_gap(self, convention, confidence, accuracy):
        correct = np.repeat([1.0, 0.0], [round(100 * accuracy), round(100 * (1 - accuracy))])
        assert smece(np.full(100, confidence), correct, convention=convention) == pytest.approx(
            abs(confidence - accuracy), abs=1e-9
        )


def test_rows_are_split_into_batches_without_a_seam(monkeypatch):
    confidence, correct = example(700, 6)
    weight = np.random.default_rng(7).integers(0, 3, (9, 700))
    whole = smece_batch(confidence, correct, weight=weight)
    monkeypatch.setattr(import_module("semcal.calibration.measures.smece"), "BATCH_ELEMENTS", 2500)
    np.testing.assert_allclose(smece_batch(confidence, correct, weight=weight).values, whole.values, atol=1e-12)


def test_a_million_questions_take_well_under_a_second_each():
    confidence, correct = example(10**6, 8)
    start = time.process_time()
    smece(confidence, correct)
    assert time.process_time() - start < 2  # measured 0.05 s; a quadratic method would need hours


@pytest.mark.parametrize(
    ("confidence", "correct", "message"),
    [
        ([0.5, 0.5], [1.0], r"\(2,\) but correct has shape \(1,\)"),
        ([0.5] * 3, [1.0], r"\(3,\) but correct has shape \(1,\)"),
        ([], [], r"at least one question.*\(0,\)"),
        ([0.5, float("nan")], [1, 0], r"confidence\[1\] is nan"),
        ([0.5, 1.2], [1, 0], r"confidence\[1\] is 1\.2"),
        ([0.5, 0.2], [1, -1], r"correct\[1\] is -1\.0"),
        (0.5, 1.0, "at least one question"),
    ],
)
def test_bad_input_is_named(confidence, correct, message):
    with pytest.raises(ValueError, match=message):
        smece(confidence, correct)


def test_shapes_that_smece_cannot_take_are_named():
    with pytest.raises(ValueError, match="use smece_batch for many"):
        smece(np.zeros((2, 3)), np.zeros((2, 3)))
    with pytest.raises(ValueError, match=r"expects \[R, n\]"):
        smece_batch(np.zeros((2, 2, 3)), np.zeros((2, 2, 3)))
    with pytest.raises(ValueError, match="do not broadcast"):
        smece_batch(np.zeros((2, 3)), np.zeros((4, 3)))
    with pytest.raises(ValueError, match=r"weight has shape \(2,\)"):
        smece_batch(np.zeros((1, 3)), np.zeros((1, 3)), weight=[1, 1])
    with pytest.raises(ValueError, match=r"not negative, got -1"):
        smece_batch(np.zeros((1, 2)), np.zeros((1, 2)), weight=[1, -1])
    with pytest.raises(ValueError, match="sums to zero"):
        smece_batch(np.zeros((1, 2)), np.zeros((1, 2)), weight=[0, 0])


class TestCurve:
    def test_follows_the_accuracy(self):
        confidence, correct = example(100_000, 9)
        curve = smooth_curve(confidence, correct, 0.02)
        inner = (curve.grid > 0.1) & (curve.grid < 0.9)
        np.testing.assert_allclose(curve.accuracy[inner], curve.grid[inner] ** 2, atol=0.03)
        np.testing.assert_allclose(curve.density[inner], 1, atol=0.1)
        assert trapezoid(curve.density, curve.grid) == pytest.approx(1, abs=1e-3)

    def test_is_the_kernel_average(self):
        confidence, correct = example(50, 10, m=10)
        curve = smooth_curve(confidence, correct, 0.1, grid=[0.0, 0.33, 1.0])
        images = np.concatenate([2 * j + s * confidence for j in (-1, 0, 1) for s in (1, -1)])
        for t, accuracy in zip(curve.grid, curve.accuracy, strict=True):
            kernel = np.exp(-0.5 * ((t - images) / 0.1) ** 2)
            assert accuracy == pytest.approx(np.average(np.tile(correct, 6), weights=kernel), abs=1e-3)

    @pytest.mark.parametrize("power", [0.3, 1.0, 3.0])
    def test_the_residual_integrates_to_smece_and_to_the_signed_gap(self, power):
        confidence, correct = example(800, 13, m=50, power=power)
        values, widths = smece_batch(confidence, correct, convention="exact")
        curve = smooth_curve(confidence, correct, float(widths[0]), grid=np.linspace(0, 1, 1001))
        assert trapezoid(np.abs(curve.residual), curve.grid) == pytest.approx(values[0], abs=1e-3)
        gap = float(signed_gap(confidence, correct))
        assert trapezoid(curve.residual, curve.grid) == pytest.approx(gap, abs=1e-9)

    def test_the_residual_is_positive_where_the_model_is_overconfident(self):
        confidence = np.repeat([0.2, 0.8], 100)
        correct = np.repeat([1.0, 0.0, 1.0, 0.0], [40, 60, 50, 50])  # accuracy 0.4 and 0.5
        curve = smooth_curve(confidence, correct, 0.05)
        assert curve.residual[40] < 0 < curve.residual[160]

    def test_takes_the_bandwidth_of_smece_and_is_unknown_far_from_data(self):
        confidence, correct = np.full(400, 0.2), np.repeat([1.0, 0.0], [84, 316])
        curve = smooth_curve(confidence, correct)
        assert curve.bandwidth == smece_batch(confidence[None], correct[None]).bandwidths[0]
        assert curve.accuracy[40] == pytest.approx(0.21)
        assert np.isnan(curve.accuracy[-1])

    def test_rows_share_a_bandwidth(self):
        confidence, correct = example(60, 11)
        weight = np.random.default_rng(12).integers(0, 3, (4, 60))
        rows = smooth_curve(confidence, correct, 0.1, weight=weight)
        assert rows.accuracy.shape == (4, 201)
        alone = smooth_curve(np.repeat(confidence, weight[2]), np.repeat(correct, weight[2]), 0.1)
        np.testing.assert_allclose(rows.accuracy[2], alone.accuracy, atol=1e-9)

    def test_bad_input_is_named(self):
        with pytest.raises(ValueError, match="give a bandwidth"):
            smooth_curve(np.zeros((2, 3)), np.zeros((2, 3)))
        with pytest.raises(ValueError, match=r"at least 0\.001, got 0"):
            smooth_curve([0.5], [1], 0.0)
        with pytest.raises(ValueError, match=r"points in \[0, 1\]"):
            smooth_curve([0.5], [1], 0.1, grid=[0, 2])
