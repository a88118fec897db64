"""The benchmarks keep their contract; what they measure is not asserted."""

from __future__ import annotations

import json

import pytest

from experiments.bench import sampler as sampler_bench
from experiments.bench.growth import draw
from experiments.bench.subjects import Subject
from experiments.bench.timing import Case, side_by_side
from semcal.sampling import Prompt


def test_the_line_of_json_is_flat_and_the_ratio_is_theirs_over_ours():
    case = side_by_side("a", lambda: None, lambda: sum(range(200_000)), repeats=3, rows=7)
    line = json.loads(json.dumps(case.to_dict()))
    assert line["rows"] == 7
    assert set(line) == {"case", "ours_s", "theirs_s", "ratio", "rows"}
    assert line["ratio"] > 1


def test_a_sampler_that_draws_something_else_is_not_timed(tiny):
    subject = Subject("tiny", tiny, tuple(Prompt(f"k{i}", (0, 3 + i)) for i in range(8)), 3, ())
    honest = sampler_bench.ours(subject)
    sampler_bench.check(subject, honest)
    from dataclasses import replace

    honest.settings = replace(honest.settings, temperature=4.0)
    with pytest.raises(AssertionError, match="different laws"):
        sampler_bench.check(subject, honest)


def test_growth_is_drawn_in_two_panels():
    cases = [Case(f"{kind}/{x}", 1.0, 2.0 * x, 2.0 * x) for kind in ("m", "prompt") for x in (5, 50)]
    assert len(draw(cases).axes) == 2
