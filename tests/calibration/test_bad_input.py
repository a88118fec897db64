"""Every measure refuses what it cannot measure, naming it, and gives its documented value where data are degenerate."""

from __future__ import annotations

import math
import warnings

import numpy as np
import pytest

from semcal.calibration.estimators.finite_m import split_half
from semcal.calibration.inference.bootstrap import bootstrap_interval
from semcal.calibration.measures.binned import binned, brier_parts, debiased_ece, ece, mce
from semcal.calibration.measures.scores import aurc, auroc, brier, log_loss, risk_coverage, signed_gap, weighted_mean
from semcal.calibration.measures.smece import smece, smece_batch, smooth_curve
from semcal.calibration.nulls.null import null_band, null_of_twins, simulated_null
from semcal.calibration.nulls.twins import exact_chances
from semcal.calibration.plots.reliability_diagram import reliability_diagram
from semcal.calibration.resampling import Resampling
from semcal.calibration.summary import calibrate
from semcal.semantics.class_table import ClassTable
from semcal.semantics.confidence import confidences, confidences_of_masses

NAN, INF = float("nan"), float("inf")
QUICK = {"resampling": Resampling(bootstrap=20, null_draws=10)}

# Each takes (confidence, correct) and gives a number.
MEASURES = {
    "smece": smece,
    "smece, exact": lambda c, r: smece(c, r, convention="exact"),
    "smece_batch": lambda c, r: smece_batch(c, r).values[0],
    "ece": ece,
    "ece of equal mass": lambda c, r: ece(c, r, scheme="mass"),
    "debiased_ece": debiased_ece,
    "mce": mce,
    "brier": brier,
    "reliability": lambda c, r: brier_parts(c, r).reliability,
    "log_loss": log_loss,
    "log_loss of shares": lambda c, r: log_loss(c, r, m=50),
    "auroc": auroc,
    "aurc": aurc,
    "signed_gap": signed_gap,
    "bootstrap": lambda c, r: (
        bootstrap_interval(log_loss, [c, r], resampling=Resampling(bootstrap=20, seed=0)).estimate
    ),
}
# And these give something larger.
OTHERS = {
    "binned": binned,
    "risk_coverage": risk_coverage,
    "smooth_curve": smooth_curve,
    "smooth_curve of a bandwidth": lambda c, r: smooth_curve(c, r, 0.05),
    "reliability_diagram": lambda c, r: reliability_diagram(c, r, title="", seed=0),
}
ALL = MEASURES | OTHERS

BAD = {
    "lengths that differ": ([0.1, 0.2], [1.0], r"\(2,\).*\(1,\)"),
    "one and three": ([0.1], [1, 0, 1], r"\(1,\).*\(3,\)"),
    "confidence above 1": ([0.1, 1.2], [1, 0], r"confidence\[1\] is 1\.2"),
    "confidence below 0": ([-0.2, 0.1], [1, 0], r"confidence\[0\] is -0\.2"),
    "correctness above 1": ([0.1, 0.2], [1, 2], r"correct\[1\] is 2\.0"),
    "correctness below 0": ([0.1, 0.2], [1, -1], r"correct\[1\] is -1\.0"),
    "NaN confidence": ([0.1, NAN], [1, 0], r"confidence\[1\] is nan"),
    "NaN correctness": ([0.1, 0.2], [NAN, 0], r"correct\[0\] is nan"),
    "missing confidence": ([None, 0.2], [1, 0], r"confidence\[0\] is nan"),
    "infinite confidence": ([0.1, INF], [1, 0], r"confidence\[1\] is inf"),
    "no questions": ([], [], r"\(0,\)"),
    "rows without questions": (np.zeros((2, 0)), np.zeros((2, 0)), r"\(2, 0\)"),
    "no rows": (np.zeros((0, 3)), np.zeros((0, 3)), r"\(0, 3\)"),
    "no axis": (0.5, 1.0, r"\(\)"),
    "texts": (["sure", 0.2], [1, 0], r"(confidence|arrays\[0\]) is not an array of numbers"),
    "ragged rows": ([[0.1, 0.2], [0.3]], [1, 0], r"(confidence|arrays\[0\]) is not an array of numbers"),
}


@pytest.fixture(autouse=True)
def _warnings_are_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@pytest.mark.parametrize("measure", ALL)
@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_measured_is_named(case, measure):
    confidence, correct, message = BAD[case]
    with pytest.raises(ValueError, match=message):
        ALL[measure](confidence, correct)


DEGENERATE = {
    "one question": ([0.5], [1.0]),
    "all right": ([0.2, 0.2, 0.8, 0.8], [1.0] * 4),
    "all wrong": ([0.2, 0.2, 0.8, 0.8], [0.0] * 4),
    "constant confidence": ([0.5] * 4, [1.0, 1.0, 1.0, 0.0]),
    "sure and right": ([1.0] * 3, [1.0] * 3),
    "sure and wrong": ([1.0] * 3, [0.0] * 3),
}
LOG2 = math.log(2)
UNEQUAL = -(math.log(0.2) + math.log(0.8)) / 2  # log loss of all right, or of all wrong, at 0.2 and 0.8
UNEQUAL_SHARES = -(math.log(10.5 / 51) + math.log(40.5 / 51)) / 2  # the same of shares k/50, (k + 1/2) / 51
# In the order of DEGENERATE. NaN is what the measure's documentation calls undefined there.
EXPECTED = {
    "smece": (0.5, 0.5, 0.5, 0.25, 0, 1),
    "smece, exact": (0.5, 0.5, 0.5, 0.25, 0, 1),
    "smece_batch": (0.5, 0.5, 0.5, 0.25, 0, 1),
    "ece": (0.5, 0.5, 0.5, 0.25, 0, 1),
    "ece of equal mass": (0.5, 0.5, 0.5, 0.25, 0, 1),
    "debiased_ece": (NAN, math.sqrt(0.34), math.sqrt(0.34), 0.0, 0, 1),
    "mce": (0.5, 0.8, 0.8, 0.25, 0, 1),
    "brier": (0.25, 0.34, 0.34, 0.25, 0, 1),
    "reliability": (0.25, 0.34, 0.34, 0.0625, 0, 1),
    "log_loss": (LOG2, UNEQUAL, UNEQUAL, LOG2, 0, INF),
    "log_loss of shares": (LOG2, UNEQUAL_SHARES, UNEQUAL_SHARES, LOG2, -math.log(50.5 / 51), -math.log(0.5 / 51)),
    "auroc": (NAN, NAN, NAN, 0.5, NAN, NAN),
    "aurc": (0, 0, 1, 0.25, 0, 1),
    "signed_gap": (-0.5, -0.5, 0.5, -0.25, 0, 1),
    "bootstrap": (LOG2, UNEQUAL, UNEQUAL, LOG2, 0, INF),
}


@pytest.mark.parametrize("measure", MEASURES)
@pytest.mark.parametrize("case", DEGENERATE)
def test_degenerate_data_have_a_known_value_and_no_warning(case, measure):
    expected = EXPECTED[measure][list(DEGENERATE).index(case)]
    assert float(MEASURES[measure](*DEGENERATE[case])) == pytest.approx(expected, abs=2e-3, nan_ok=True)


@pytest.mark.parametrize("measure", OTHERS)
@pytest.mark.parametrize("case", DEGENERATE)
def test_curves_and_diagrams_of_degenerate_data_are_made_without_a_warning(case, measure):
    OTHERS[measure](*DEGENERATE[case])


def test_an_infinite_replicate_leaves_no_interval_and_never_a_finite_one():
    interval = bootstrap_interval(log_loss, [[1.0, 0.5], [0.0, 1.0]], resampling=Resampling(bootstrap=50, seed=0))
    assert interval.estimate == INF
    assert np.isinf(interval.replicates).any()
    assert np.isfinite(interval.replicates).any()  # a resample without the question has no infinite loss
    assert np.isnan([interval.low, interval.high]).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ([], "at least one"),
        ([[0.5]], r"\(1, 1\)"),
        (0.5, "at least one"),
        ([0.5, NAN], r"confidence\[1\] is nan"),
        ([1.2], r"confidence\[0\] is 1\.2"),
        (["a"], "confidence is not an array of numbers"),
    ],
)
def test_twins_of_exact_confidences_refuse_invalid_confidences(values, message):
    with pytest.raises(ValueError, match=message):
        exact_chances(values)
    with pytest.raises(ValueError, match="null_draws must be positive, got 0"):
        null_of_twins(exact_chances([0.5]), null_draws=0, seed=0)


def test_options_out_of_range_are_named():
    with pytest.raises(ValueError, match="m must be positive, got 0"):
        log_loss([0.5], [1], m=0)
    for bandwidth in (0.0, NAN, INF):
        with pytest.raises(ValueError, match=f"got {bandwidth}"):
            smooth_curve([0.5], [1], bandwidth)
    with pytest.raises(ValueError, match=r"values\[1\] is nan"):
        weighted_mean([0.5, NAN])
    with pytest.raises(ValueError, match="weight is not an array of numbers"):
        brier([0.5], [1], weight=["much"])


# From counts: each takes (counts, gold); the null looks at counts alone.
FROM_COUNTS = {
    "confidences": confidences,
    "class table": ClassTable.of_arrays,
    "split_half": lambda c, g: split_half(ClassTable.of_arrays(c, g), rng=np.random.default_rng(0)),
    "calibrate": lambda c, g: calibrate(ClassTable.of_arrays(c, g), **QUICK),
}
NULLS = {
    "simulated_null": lambda c: simulated_null(c, null_draws=5, seed=0),
    "null_band": lambda c: null_band(c, bandwidth=0.05, null_draws=5, seed=0),
}
BAD_COUNTS = {
    "NaN": ([[NAN, 5], [5, 0]], r"counts\[0, 0\] is nan"),
    "infinite": ([[5, 0], [INF, 5]], r"counts\[1, 0\] is inf"),
    "beyond integers": ([[1e300, 5], [5, 0]], r"counts\[0, 0\] is 1e\+300"),
    "negative": ([[6, -1], [5, 0]], r"counts\[0, 1\] is -1"),
    "fractions": ([[2.5, 2.5], [5, 0]], r"counts\[0, 0\] is 2\.5"),
    "empty": (np.zeros((0, 2)), r"\(0, 2\)"),
    "no classes": (np.zeros((2, 0)), r"\(2, 0\)"),
    "one row": ([5, 0], r"\(2,\)"),
    "other totals": ([[3, 2], [5, 1]], r"counts\[1\] to 6"),
    "no samples": ([[0, 0], [0, 0]], r"counts\[0\] sums to 0"),
    "texts": ([["a", "b"], ["c", "d"]], "counts is not an array of numbers"),
    "ragged": ([[1, 2], [3]], "counts is not an array of numbers"),
}
BAD_GOLD = {
    "another length": ([0], r"gold has shape \(1,\)"),
    "NaN": ([0, NAN], r"gold\[1\] is nan"),
    "missing": ([None, 0], r"gold\[0\] is nan"),
    "a fraction": ([0, 0.5], r"gold\[1\] is 0\.5"),
    "beyond the row": ([0, 2], r"gold\[1\] is 2"),
    "texts": (["a", "b"], "gold is not an array of numbers"),
    "another mask": (np.ones((2, 3), dtype=bool), r"gold has shape \(2, 3\)"),
}


@pytest.mark.parametrize("case", BAD_COUNTS)
def test_invalid_counts_are_named(case):
    counts, message = BAD_COUNTS[case]
    for measure in FROM_COUNTS.values():
        with pytest.raises(ValueError, match=message):
            measure(counts, [0, 0])
    for null in NULLS.values():
        with pytest.raises(ValueError, match=message):
            null(counts)


@pytest.mark.parametrize("case", BAD_GOLD)
def test_invalid_gold_is_named(case):
    gold, message = BAD_GOLD[case]
    for measure in FROM_COUNTS.values():
        with pytest.raises(ValueError, match=message):
            measure([[3, 2], [5, 0]], gold)
    for measure in (confidences_of_masses, lambda p, g: calibrate(ClassTable.of_arrays(gold=g, masses=p), **QUICK)):
        with pytest.raises(ValueError, match=message):
            measure([[0.6, 0.4], [1.0, 0.0]], gold)


@pytest.mark.parametrize(
    ("masses", "message"),
    [
        ([[0.5, NAN]], r"masses\[0, 1\] is nan"),
        ([[0.5, 0.5], [0.5, -0.1]], r"masses\[1, 1\] is -0\.1"),
        ([[0.5, 0.6]], r"masses\[0\] sums to 1\.1"),
        ([["a", "b"]], "masses is not an array of numbers"),
    ],
)
def test_invalid_masses_are_named(masses, message):
    with pytest.raises(ValueError, match=message):
        confidences_of_masses(masses, [0] * len(masses))


@pytest.mark.parametrize(
    ("counts", "gold", "undefined"),
    [
        ([[3, 2]], [0], {"auroc", "debiased_ece"}),
        ([[5, 0], [4, 1]], [0, 0], {"auroc", "debiased_ece"}),
        ([[5, 0], [4, 1]], [1, 1], {"auroc", "debiased_ece"}),
        ([[3, 2]] * 4, [0, 1, 0, 1], set()),
        ([[5, 0]] * 3, [0] * 3, {"auroc"}),
        ([[5, 0]] * 3, [-1] * 3, {"auroc"}),
        ([[5]] * 3, [0] * 3, {"auroc"}),
    ],
    ids=["one question", "all right", "all wrong", "constant", "sure and right", "sure and never", "one class"],
)
def test_the_record_of_degenerate_data_leaves_undefined_only_what_is(counts, gold, undefined):
    record = calibrate(ClassTable.of_arrays(counts, gold), truncated_share=0.0, **QUICK).to_dict()
    single = {name for name in record if name.endswith(("_low", "_high"))} if len(counts) == 1 else set()
    bounds = {f"{name}_{end}" for name in undefined & {"auroc"} for end in ("low", "high")}
    found = {name for name, value in record.items() if value is not None and math.isnan(value)}
    assert found == undefined | bounds | single | {"seen_mass"}  # counts alone do not know it
