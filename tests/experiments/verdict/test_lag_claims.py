"""Which of two curves falls first along training, on curves whose truth is known."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from experiments.bench.validity.planted_runs import made, with_gap
from experiments.verdict.calibration_claims import Law
from experiments.verdict.lag_claims import FEWEST_STEPS, falls_first, half_fall, trajectories, with_lag
from experiments.verdict.measured_run import Measured
from experiments.verdict.rules import Finding
from semcal.calibration.inference.paired import leaves, plain_mean

LAW = Law(null_draws=20)
STEPS = [2**k for k in range(4, 4 + FEWEST_STEPS)]


@pytest.fixture(autouse=True)
def _few_blocks(monkeypatch):
    monkeypatch.setattr("semcal.calibration.inference.paired.BLOCKS", 40)


def falling(log_step: float, middle: float, high: float, low: float) -> float:
    return low + (high - low) / (1 + np.exp(2.5 * (log_step - middle)))


def along(
    *, gap: float, error: float, lineages: int = 3, styles=("concise", "sentence"), n: int = 300, seed: int = 0
) -> list[Measured]:
    """Checkpoints of base models whose KL gap and error are half down at these doublings of training."""
    found = []
    for lineage in range(lineages):
        shift = np.random.default_rng([seed, lineage]).normal(0, 0.5)  # how fast a seed learns, both curves alike
        for style in styles:
            for k, step in enumerate(STEPS, start=4):
                off = falling(k, error + shift, 0.5, 0.0)
                run = made(f"{lineage}-{step}", style, off=off, n=n, seed=seed, stage="base")
                run = replace(run, lineage=f"seed-{lineage}", step=step, chances=None, null=0.03)
                found.append(with_gap(run, falling(k, gap + shift, 1.0, 0.1), "linear"))
    return found


def test_a_half_fall_is_read_between_checkpoints_after_the_highest_value():
    at = np.arange(6.0)
    values = [[0.0, 1.0, 0.8, 0.2, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0, 1.0, 1.0], [0.0, 0.2, 0.4, 0.6, 0.8, 1.0]]
    assert half_fall(at, np.array(values)).tolist() == pytest.approx([2.5, 1.0, np.nan], nan_ok=True)
    assert half_fall(at, np.array([9.0, 8.0, 2.0, 1.0, 1.0, 1.0])) == pytest.approx(1.5)


@pytest.mark.parametrize(("gap", "error"), [(7.0, 9.0), (9.0, 7.0)])
def test_a_planted_lag_is_found_with_its_sign(gap, error):
    mean, *cells = falls_first(along(gap=gap, error=error), LAW)
    assert "mean of 6 cells of 3 lineages" in mean.what
    assert mean.low < error - gap < mean.high
    assert mean.estimate == pytest.approx(error - gap, abs=0.5)
    assert (mean.p < 0.01) is (error > gap)
    assert (mean.p_against < 0.01) is (error < gap)
    assert len(cells) == 6


@pytest.mark.long
def test_curves_that_fall_together_seldom_show_a_lag():
    found = [falls_first(along(gap=8.0, error=8.0, seed=seed), LAW)[0] for seed in range(50)]
    assert sum(not part.low <= 0 <= part.high for part in found) <= 6


def test_a_curve_that_does_not_certainly_fall_has_no_half_fall():
    runs = along(gap=8.0, error=-20.0, lineages=1, styles=("concise",))
    (only,) = falls_first(runs, LAW)
    assert only.what == "seed-0 · facts · concise: its error does not certainly fall"
    assert np.isnan(only.estimate)


@pytest.mark.long
def test_the_highest_of_many_noisy_values_is_no_fall():
    """A flat error has a date in at most 5 % of the cells, if tests of their falls have that size."""
    found = [cell for seed in range(10) for cell in falls_first(along(gap=8.0, error=-20.0, seed=seed), LAW)]
    flat = sum("its error does not certainly fall" in part.what for part in found)
    dated = sum(np.isfinite(part.estimate) and "mean" not in part.what for part in found)
    assert flat + dated == 60
    assert dated <= 8


def test_too_few_checkpoints_and_what_is_no_base_in_distribution_say_nothing():
    runs = along(gap=8.0, error=8.0, lineages=1, styles=("concise",))
    untrained = replace(runs[0], step=0)
    assert len(trajectories([untrained, *runs])["seed-0", "facts", "concise"]) == FEWEST_STEPS
    for changed in (runs[1:], [untrained, *runs[1:]], [replace(r, stage="sft") for r in runs]):
        assert falls_first(changed, LAW) == []
    assert falls_first([replace(r, in_distribution=False) for r in runs], LAW) == []
    assert falls_first([replace(r, kl_gaps={}) for r in runs], LAW) == []


def test_a_checkpoint_that_cannot_write_answers_yet_is_left_out():
    runs = along(gap=8.0, error=8.0, lineages=1, styles=("concise",))
    early = replace(runs[0], step=8, label="early", truncated=0.3)
    cell = ("seed-0", "facts", "concise")
    assert len(trajectories([early, *runs])[cell]) == FEWEST_STEPS
    assert len(trajectories([replace(early, truncated=0.01), *runs])[cell]) == FEWEST_STEPS + 1
    assert falls_first([replace(runs[0], truncated=0.3), *runs[1:]], LAW) == []


def test_it_is_context_of_h4_and_decides_nothing():
    before = Finding("H4", reason="whatever")
    after = with_lag(before, along(gap=7.0, error=9.0, lineages=1, styles=("concise",)), LAW)
    assert replace(after, context=()) == before
    assert [part.shown for part in after.context] == ["", ""]


def test_questions_are_left_out_of_all_checkpoints_at_once():
    """What is luck of the questions alone moves no half fall."""
    runs = along(gap=8.0, error=8.0, lineages=1, styles=("concise",))
    luck = np.random.default_rng(0).normal(0, 5, len(runs[0].correct))
    same = []
    for run, k in zip(runs, range(4, 4 + FEWEST_STEPS), strict=True):
        values = luck + falling(k, 8.0, 1.0, 0.1)
        gap = leaves(plain_mean, values, values, stratum=run.dataset, group=run.group, seed=0)
        same.append(replace(run, kl_gaps={"linear": gap}))
    noisy, steady = falls_first(runs, LAW)[0], falls_first(same, LAW)[0]
    assert steady.high - steady.low < 1.05 * (noisy.high - noisy.low)
