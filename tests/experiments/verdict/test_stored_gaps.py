"""The KL gap of a run, from tables of planted losses."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from experiments.bench.validity.planted_runs import mechanism, with_gap
from experiments.verdict.calibration_claims import Law
from experiments.verdict.mechanism_claims import predictability_helps
from experiments.verdict.stored_gaps import kl_gaps, telling_losses
from semcal.positions import LAST_PROMPT_TOKEN

GROUPS = {f"q{i}": f"g{i // 2}" for i in range(40)}


def gaps_of(rung: str, by_layer: np.ndarray, position: str = LAST_PROMPT_TOKEN) -> pd.DataFrame:
    """`by_layer` [layer, question] as rows of `probe_losses.parquet`."""
    layer, question = np.indices(by_layer.shape)
    ids = np.array(list(GROUPS))[question.ravel()]
    rows = {"layer": layer.ravel(), "question_id": ids, "gap_nats": by_layer.ravel()}
    return pd.DataFrame(rows).assign(rung=rung, position=position)


def gap(by_layer: np.ndarray) -> float:
    return kl_gaps(gaps_of("linear", by_layer), GROUPS, stratum="facts", seed=0)["linear"].estimate


def test_no_question_has_a_say_in_the_layer_it_is_measured_at():
    """Each group is best at a layer of its own, by luck: where all layers are alike, the minimum would see the luck."""
    rng = np.random.default_rng(0)
    found, best = [], []
    for _ in range(40):
        by_layer = np.repeat(rng.exponential(1.0, (6, 20)), 2, axis=1)  # the questions of a group share theirs
        found.append(gap(by_layer))
        best.append(by_layer.mean(axis=1).min())
    assert np.mean(found) == pytest.approx(1.0, abs=4 / np.sqrt(40 * 20))
    assert np.mean(best) < 0.8  # what a layer chosen on the questions themselves would say


@pytest.mark.parametrize("own", range(0, 20, 3))
def test_the_layer_a_group_is_measured_at_does_not_depend_on_its_own_losses(own):
    by_layer = np.repeat(np.random.default_rng(1).exponential(1.0, (4, 20)), 2, axis=1)
    measured_at = []
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):  # losses so large that they betray their layer, best first and best last
        by_layer[:, 2 * own : 2 * own + 2] = 1e4 + 1e3 * np.array(order)[:, None]
        total = gap(by_layer) * len(GROUPS)
        measured_at.append(order.index(round((total / 2 - 1e4) / 1e3)))
    assert measured_at[0] == measured_at[1]


def test_a_layer_that_is_truly_better_is_found():
    by_layer = np.full((3, 40), 1.0)
    by_layer[1] = 0.2
    assert gap(by_layer) == pytest.approx(0.2)


def test_gaps_below_zero_are_kept_for_their_mean_is_that_of_a_perfect_predictor():
    assert gap(np.tile([-0.2, 0.2], 20)[None]) == pytest.approx(0.0)


def test_other_positions_and_rungs_have_no_gap_and_without_probes_there_is_none():
    later = gaps_of("linear", np.zeros((1, 40)), position="before_answer")
    losses = pd.concat([later, gaps_of("linear", np.full((1, 40), 0.5)), gaps_of("mlp", np.zeros((1, 40)))])
    found = kl_gaps(losses, GROUPS, stratum="facts", seed=0)
    assert list(found) == ["linear"]
    assert found["linear"].estimate == pytest.approx(0.5)
    assert kl_gaps(pd.DataFrame(), GROUPS, stratum="facts", seed=0) == {}


def test_a_question_whose_entropy_is_unknown_is_left_out():
    by_layer = np.full((2, 40), 0.5)
    by_layer[:, 0] = np.nan
    assert gap(by_layer) == pytest.approx(0.5)
    assert kl_gaps(gaps_of("linear", np.full((1, 40), np.nan)), GROUPS, stratum="facts", seed=0) == {}


def test_lora_is_taken_where_every_cell_has_it():
    lora = [replace(run, chances=None, null=0.05) for run in mechanism(0, n=100)]  # nothing is simulated
    both = [replace(run, kl_gaps=with_gap(run, 0.3, "linear").kl_gaps | run.kl_gaps) for run in lora]
    law = Law(null_draws=20)
    assert "(lora)" in predictability_helps(both, law).parts[1].what
    one_without = [with_gap(both[0], 0.3, "linear"), *both[1:]]
    assert "(linear)" in predictability_helps(one_without, law).parts[1].what


def test_a_cell_that_pools_much_needs_a_rung_over_open_classes():
    cells = [replace(run, chances=None, null=0.05, pooled=0.5) for run in mechanism(0, n=100)]
    law = Law(null_draws=20)
    assert "pooled" in predictability_helps(cells, law).reason  # LoRA on closed classes
    opened = [replace(run, kl_gaps={"bilinear": run.kl_gaps["lora"]} | run.kl_gaps) for run in cells]
    assert "(bilinear)" in predictability_helps(opened, law).parts[1].what
    closed = [replace(run, pooled=0.0) for run in opened]
    assert "(lora)" in predictability_helps(closed, law).parts[1].what


def test_the_gap_of_the_bilinear_probe_counts_only_where_the_number_of_classes_is_known():
    losses = pd.concat([gaps_of(rung, np.full((1, 40), 0.3)) for rung in ("linear", "bilinear")])
    for universe, kept in ((120.0, {"linear", "bilinear"}), (np.inf, {"linear"})):
        probes = pd.DataFrame({"rung": ["bilinear", "linear"], "universe": [universe, np.nan]})
        assert set(kl_gaps(telling_losses(losses, probes), GROUPS, stratum="facts", seed=0)) == kept
    assert set(telling_losses(losses, pd.DataFrame({"rung": ["bilinear"]}))["rung"]) == {"linear", "bilinear"}
    assert telling_losses(losses.drop(columns="gap_nats"), pd.DataFrame()).empty
