from functools import partial

import numpy as np
import pandas as pd
import pytest

from probes.evaluation.contrast import compare_gaps, gap_difference
from probes.evaluation.kl_gap import KLGap
from probes.evaluation.result import Evaluation
from semcal.calibration.resampling import Resampling

N = 120
GROUPS = [f"g{row // 2}" for row in range(N)]


def run(gap: float, seed: int, layers: tuple[str, ...] = ("a", "b"), hard: float = 0.5) -> Evaluation:
    """A run with a KL gap of about `gap` nats at every layer, more for questions that are hard for every run."""
    own, shared = np.random.default_rng(seed), np.random.default_rng(99).uniform(-hard, hard, N)
    nats = gap + shared - shared.mean() + own.normal(0, 0.1, (len(layers), N))
    frame = pd.DataFrame({"rung": "linear", "target": "classes", "layer": layers})
    known = (np.nan,) * 9
    gaps = tuple(KLGap(float(row.mean()), *known, np.nan, row, row, 0.0, 0.0) for row in nats)
    return Evaluation(frame, nats, np.ones(N), None, gaps)


compare = partial(compare_gaps, group=GROUPS, resampling=Resampling(bootstrap=300))


def test_a_planted_difference_is_found_with_its_size() -> None:
    a, b = run(0.8, 0), run(0.5, 1)
    found = compare(a, b)
    assert list(found["layer"]) == ["a", "b"]
    np.testing.assert_allclose(found["difference"], -0.3, atol=0.04)
    np.testing.assert_allclose(found["a"], [gap.gap for gap in a.gaps])
    assert ((found["low"] < found["difference"]) & (found["difference"] < found["high"])).all()
    assert (found["high"] < 0).all()
    assert (found["p_holm"] < 1e-6).all()
    assert (found["p_exchange"] < 0.01).all()


def test_pairing_takes_off_what_is_hard_for_both() -> None:
    a, b = run(0.8, 0, ("a",), hard=3.0), run(0.75, 1, ("a",), hard=3.0)
    nats = a.gaps[0].per_question
    assert nats.std() > 1
    found = compare(a, b)
    assert (found["high"] - found["low"]).item() < 0.1
    assert found["p_value"].item() < 0.01


def test_a_run_does_not_differ_from_itself() -> None:
    a = run(0.5, 0)
    found = compare(a, a)
    assert (found["difference"] == 0).all()
    assert (found["p_value"] == 1).all()
    assert (found["p_exchange"] == 1).all()


def test_equal_runs_are_called_different_about_as_often_as_the_level_says() -> None:
    few = Resampling(bootstrap=20)
    p = [compare(run(0.5, 2 * s, ("a",)), run(0.5, 2 * s + 1, ("a",)), resampling=few)["p_value"].item() for s in range(100)]  # fmt: skip
    assert np.mean(np.array(p) <= 0.05) <= 0.12  # binomial(100, 0.05) exceeds 12 once in 700 times


def test_layers_in_common_are_compared_and_what_cannot_be_is_refused() -> None:
    assert list(compare(run(0.5, 0), run(0.5, 1, ("b", "c")))["layer"]) == ["b"]
    with pytest.raises(ValueError, match="no KL gap of one rung, target and layer in common"):
        compare(run(0.5, 0), run(0.5, 1, ("c",)))
    without = Evaluation(run(0.5, 0).frame, np.ones((2, N)), np.ones(N))
    with pytest.raises(ValueError, match="no KL gap"):
        compare(without, run(0.5, 1))
    with pytest.raises(ValueError, match="120 and 120 questions and 119 group labels; compare runs on the same"):
        compare(run(0.5, 0), run(0.5, 1), group=GROUPS[1:])
    with pytest.raises(ValueError, match="120 and 119 questions"):
        gap_difference(np.ones(N), np.ones(N - 1), group=GROUPS, resampling=Resampling(bootstrap=10))
