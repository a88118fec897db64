"""H5: which runs it compares, and what it says of those that it leaves out."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest

from experiments.bench.validity import planted_runs
from experiments.bench.validity.planted_runs import with_gap
from experiments.verdict.calibration_claims import Law
from experiments.verdict.measured_run import Measured
from experiments.verdict.training_claims import contrasts_of, training_moves

LAW = Law(null_draws=20)
arms = cache(planted_runs.arms)


@pytest.fixture(autouse=True)
def _few_twins(monkeypatch):
    monkeypatch.setattr("experiments.verdict.measured_run.NULL_DRAWS", 20)


def runs() -> list[Measured]:
    return arms(0.1, 0, n=100)


def test_a_contrast_that_shows_nothing_is_listed_with_its_reason():
    still = [with_gap(r, 0.2, "generative") if r.arm == "chains" else r for r in runs() if r.dataset == "atlas-rings"]
    cut = [replace(r, truncated=0.5) if (r.arm, r.lineage) == ("closed", "seed-1") else r for r in still]
    two = [r for r in runs() if r.dataset == "atlas-shuffles" and r.arm == "direct" and r.lineage != "seed-2"]
    finding = training_moves([*cut, *two], LAW)
    assert not finding.parts
    left_out = [part.what for part in finding.context if part.what.startswith("left out")]
    chains, closed, maps = left_out
    assert chains.startswith("left out, the KL gap is raised by ")
    assert "expected at least 0.1 with p at most 0.05: chains − direct" in chains
    assert "50 % truncated in closed-1 · atlas-rings · cot; raise sampling.max_new_tokens: closed − direct" in closed
    assert maps == "left out, arms of 2 lineages, expected at least 3: atlas-shuffles − atlas-rings (direct)"
    whole = training_moves([*still, *two], LAW)
    assert [part.what for part in whole.parts] == ["closed − direct"]
    assert [part.what for part in whole.context if part.what.startswith("left out")] == [chains, maps]


def test_cells_that_share_no_rung_or_are_pooled_are_said_to():
    one, *others = [replace(r, kl_gaps={"linear": r.kl_gaps["generative"]}) for r in runs()]
    other_rung = training_moves([replace(one, kl_gaps=runs()[0].kl_gaps), *others], LAW)
    assert other_rung.reason == ("its cells share no rung; fit one of generative, lora, bilinear, linear in every cell")
    pooled = training_moves([replace(one, pooled=0.4), *others], LAW)
    assert pooled.reason.startswith("40% of the mass of direct-0 · atlas-rings · cot lies in the pooled class")
    assert pooled.reason.endswith("fit generative or bilinear, which pool nothing")


def test_maps_of_one_number_of_stops_are_compared():
    of_stops = [replace(r, dataset=f"{r.dataset}-{stops}-stop") for r in runs() for stops in (2, 4)]
    assert {what: len(pairs) for what, pairs in contrasts_of(of_stops).items()} == {
        "chains − direct": 12,
        "closed − direct": 12,
        "atlas-shuffles-2-stop − atlas-rings-2-stop (direct)": 3,
        "atlas-shuffles-4-stop − atlas-rings-4-stop (direct)": 3,
    }


def test_like_is_paired_with_like():
    asked = [replace(r, prompt=prompt) for prompt in ("few-shot", "chat") for r in runs()]
    found = contrasts_of(asked)
    assert {what: len(pairs) for what, pairs in found.items()} == {
        "chains − direct": 12,
        "closed − direct": 12,
        "atlas-shuffles − atlas-rings (direct)": 6,
    }
    for one, other in (pair for pairs in found.values() for pair in pairs):
        assert (one.prompt, one.lineage, other.arm) == (other.prompt, other.lineage, "direct")
        assert (one.arm == "direct") == (one.dataset != other.dataset)


def test_one_lineage_is_one():
    finding = training_moves([r for r in runs() if r.lineage == "seed-0"], LAW)
    assert finding.reason == "arms of 1 lineage, expected at least 3"
