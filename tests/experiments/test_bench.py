"""The benchmarks keep their contract; what they measure is not asserted."""

from __future__ import annotations

import json
import mmap
import signal
import time
from dataclasses import replace

import pytest
import yaml

from experiments.bench import calibration_cases as calibration_bench
from experiments.bench import probe_cases as probes_bench
from experiments.bench import sampler_cases as sampler_bench
from experiments.bench.runs import scale_cases as scale_bench
from experiments.bench.runs import stop_cases as stop_bench
from experiments.bench.timing import Case, side_by_side
from semcal.sampling.records import Prompt


def test_the_line_of_json_is_flat_and_the_ratio_is_theirs_over_ours():
    case = side_by_side("a", lambda: None, lambda: sum(range(200_000)), repeats=3)
    line = json.loads(json.dumps(replace(case, facts={"rows": 7}).to_dict()))
    assert line["rows"] == 7
    assert set(line) == {"case", "ours_s", "theirs_s", "ratio", "rows"}
    assert line["ratio"] > 1


def test_a_sampler_that_draws_something_else_is_not_timed(tiny):
    subject = sampler_bench.Subject("tiny", tiny, tuple(Prompt(f"k{i}", (0, 3 + i)) for i in range(8)), 3, ())
    honest = sampler_bench.ours(subject)
    sampler_bench.check(subject, honest)
    honest.settings = replace(honest.settings, temperature=4.0)
    with pytest.raises(AssertionError, match="different distributions"):
        sampler_bench.check(subject, honest)


def test_growth_is_drawn_in_two_panels():
    cases = [Case(f"{kind}/{x}", 1.0, 2.0 * x, 2.0 * x) for kind in ("m", "prompt") for x in (5, 50)]
    assert len(sampler_bench.draw(cases).axes) == 2


def test_calibration_cases_agree_with_their_references_and_fill_one_table():
    cases = [
        calibration_bench.bootstrap_case(200, resamples=12, timed=4),
        calibration_bench.null_case(200, draws=40, timed=4),
        calibration_bench.linear_case(500),
        calibration_bench.calibrate_case(200, replicates=12, timed=2),
    ]
    rows = [case.to_dict() for case in cases]
    assert all(list(row) == list(rows[0]) for row in rows)
    assert max(row["apart"] for row in rows if row["case"] != "null") < 1e-3
    assert rows[0]["us_per_question"] == pytest.approx(1e6 * rows[0]["ours_s"] / (200 * 12))


@pytest.mark.parametrize(
    ("measure", "case", "message"),
    [
        ("smece_batch", lambda: calibration_bench.bootstrap_case(200, resamples=4, timed=4), "smece-bootstrap"),
        ("simulated_null", lambda: calibration_bench.null_case(200, draws=40, timed=4), "standard errors"),
        ("smece", lambda: calibration_bench.linear_case(500), "linear/500"),
    ],
)
def test_a_measure_that_differs_is_not_timed(monkeypatch, measure, case, message):
    honest = getattr(calibration_bench, measure)

    class Shifted:
        def __init__(self, found):
            self.values = found.values + 0.1

    def shifted(*args, **options):
        found = honest(*args, **options)
        return found + 0.1 if isinstance(found, float) else Shifted(found)

    monkeypatch.setattr(calibration_bench, measure, shifted)
    with pytest.raises(AssertionError, match=message):
        case()


@pytest.mark.long
def test_the_grid_of_probes_is_timed_only_if_both_reach_the_same_objectives(monkeypatch):
    for name, value in {"LAYERS": 2, "N": 60, "WIDTH": 8, "CLASSES": 3, "FOLDS": 3}.items():
        monkeypatch.setattr(probes_bench, name, value)
    case = next(iter(probes_bench.probes_cases("cpu"))).to_dict()
    assert case["fits"] == 2 * 3 * 8
    assert case["apart_nats"] < 1e-4
    monkeypatch.setattr(probes_bench, "TOLERANCE", 0.1)
    with pytest.raises(AssertionError, match="nats apart"):
        next(iter(probes_bench.probes_cases("cpu")))


def test_the_peak_counts_what_was_given_back():
    def hold() -> None:
        with mmap.mmap(-1, 40_000_000) as held:  # not what an earlier test gave back to the allocator
            held.write(b"1" * len(held))
            time.sleep(0.1)

    grown = probes_bench.peak_growth(hold)
    assert grown > 30_000_000


@pytest.mark.long
def test_a_stop_of_a_real_run_is_measured_and_held_to_its_limits(checkpoint, tmp_path, monkeypatch):
    """On a model small enough for a test, which is stopped while it samples thousands of questions."""
    study = stop_bench._study(str(tmp_path), "cpu")
    study["models"] = [{"path": str(checkpoint), "name": "tiny", "device": "cpu"}]
    rows = [{"id": f"q{i}", "question": f"red {i} ?", "answers": ["red"]} for i in range(5000)]
    (tmp_path / "many.jsonl").write_text("\n".join(map(json.dumps, rows)))
    study["datasets"] = [{"kind": "jsonl", "path": str(tmp_path / "many.jsonl")}]
    study["prompting"] = {"shots": 0, "exemplars": 0}
    (tmp_path / "stops.yaml").write_text(yaml.safe_dump(study))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    found = stop_bench.stop(tmp_path / "stops.yaml", 0, signal.SIGTERM, 0.5)
    assert found.saved < 5000
    assert found.lost_s <= found.by_shards_s
    within = replace(found, lost_s=119.0, exit_s=9.0)
    assert within.holds
    assert not replace(within, lost_s=121.0).holds
    assert not replace(within, exit_s=11.0).holds
    assert {"case", "ours_s", "theirs_s", "ratio"} < set(json.loads(json.dumps(found.to_dict())))


def test_without_the_real_model_no_stop_is_measured_and_a_line_says_so(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("SEMCAL_MODELS", str(tmp_path))
    assert list(stop_bench.stop_cases()) == []
    assert "left out: real:gemma-3-270m is not here" in capsys.readouterr().err


def test_a_large_study_is_held_to_what_it_may_cost_its_driver(monkeypatch):
    found = scale_bench.simulated(shards=2000)
    assert found.units == 2000
    assert found.per_unit_ms == pytest.approx(found.cpu_s / 2)
    for name, value in {"MODELS": 2, "DATASETS": 1, "QUESTIONS": 20}.items():
        monkeypatch.setattr(scale_bench, name, value)
    grid = scale_bench.resolved()
    assert grid.units == 6
    assert not scale_bench.in_process("a", 1, lambda: sum(range(10**6)), cpu_s=0.0).holds
    with pytest.raises(RuntimeError, match="ended with 1"):
        scale_bench.in_process("a", 1, lambda: 1 / 0)
