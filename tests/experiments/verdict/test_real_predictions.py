"""The three predictions on planted runs of two models: right where the truth is planted, silent where nothing counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from experiments.bench.validity.planted_runs import made
from experiments.verdict.calibration_claims import Law
from experiments.verdict.measured_run import Measured
from experiments.verdict.real_predictions import predictions, why_left_out

LAW = Law(null_draws=100)


@pytest.fixture(autouse=True)
def _few_twins(monkeypatch):
    monkeypatch.setattr("experiments.verdict.measured_run.NULL_DRAWS", 100)


def two_models(base: float, tuned: float, n: int = 1000) -> list[Measured]:
    runs = []
    for style in ("concise", "sentence"):
        for dataset in ("facts", "routes"):
            one = made("base", style, dataset, off=base, n=n)
            other = made("dpo", style, dataset, off=tuned, n=n)
            runs += [replace(one, lineage="a"), replace(other, lineage="b")]
    return runs


def decisions(short, thinking=()):
    return [v.decision for v in predictions(short, thinking, LAW).verdicts]


@pytest.mark.long
def test_a_calibrated_base_and_an_overconfident_tuned_model():
    assert decisions(two_models(0.0, 0.2))[:2] == ["holds", "holds"]


@pytest.mark.long
def test_both_the_other_way_round():
    assert decisions(two_models(0.2, 0.0))[:2] == ["fails", "fails"]


@pytest.mark.long
def test_few_questions_decide_nothing_of_a_calibrated_model():
    assert decisions(two_models(0.0, 0.0, n=40))[:2] == ["undecided", "undecided"]


@pytest.mark.long
def test_chain_of_thought_is_read_from_its_own_study():
    short = two_models(0.0, 0.2)
    thinking = [
        made("base", s, "facts", off=0.2 if s == "cot" else 0.0, n=1000) for s in ("concise", "sentence", "cot")
    ]
    assert decisions(short, thinking) == ["holds", "holds", "holds"]
    assert decisions(short)[2] == "not tested"


def test_what_says_nothing_is_left_out_and_named():
    runs = two_models(0.0, 0.2)
    bad = [
        replace(runs[0], truncated=0.17),
        replace(runs[1], correct=np.zeros_like(runs[1].correct)),
        replace(runs[2], correct=np.ones_like(runs[2].correct)),
    ]
    found = predictions([*bad, *runs[3:]], [replace(runs[0], truncated=0.06)], LAW)
    assert found.left_out == (
        (runs[0].label, "17% of the samples are truncated"),
        (runs[1].label, "0.0% of the questions are answered correctly"),
        (runs[2].label, "100.0% of the questions are answered correctly"),
        (f"{runs[0].label} (real-cot)", "6% of the samples are truncated"),
    )
    assert not {r.label for r in bad} & {label for v in found.verdicts for label in v.finding.runs}
    assert not why_left_out(runs[3])


@pytest.mark.long
def test_nothing_is_decided_before_all_is_measured():
    """Else the order in which cells are measured, and where one stops to look, would decide."""
    runs = two_models(0.2, 0.2)
    whole, some = (predictions(runs, [], LAW, {"H1": left, "H2": 0}).verdicts for left in (0, 3))
    assert [v.decision for v in whole] == ["fails", "holds", "not tested"]
    assert [v.decision for v in some] == ["cannot be decided", "holds", "not tested"]
    assert some[0].finding.undecidable == "3 cells not measured yet"


def test_nothing_that_counts_is_not_tested():
    runs = [replace(r, truncated=0.5) for r in two_models(0.0, 0.0)]
    assert decisions(runs) == ["not tested"] * 3


def test_what_was_not_measured_at_all_says_how_much_is_missing():
    third = predictions([], [], LAW, {"H3": 9}).verdicts[2]
    assert (third.decision, third.finding.reason) == ("not tested", "9 cells not measured yet")
