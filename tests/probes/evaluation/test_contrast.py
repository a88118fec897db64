from functools import partial

import numpy as np
import pytest

from probes.evaluation.ceiling import Ceiling
from probes.evaluation.contrast import compare_explained
from probes.evaluation.result import Evaluation, HeldOut, evaluation
from probes.targets.closed import ClassTarget
from semcal.calibration.resampling import Resampling

N = 120
GROUPS = [f"g{row // 2}" for row in range(N)]


def run(
    share: float, ceiling: float, seed: int, layers: tuple[str, ...] = ("a", "b"), scale: float = 1.0
) -> Evaluation:
    """A run whose probes leave about 1 − share of each question's baseline."""
    rng = np.random.default_rng(seed)
    baseline = scale * rng.uniform(0.5, 1.5, size=N)
    losses = baseline * (1 - share) * rng.uniform(0.9, 1.1, size=(len(layers), N))
    return evaluation(
        HeldOut(losses, baseline),
        {"rung": "linear", "layer": layers, "measure": "kl_explained"},
        target=ClassTarget(("a", "b"), np.full((N, 2), 0.5), None),
        ceiling=Ceiling(ceiling),
        group=GROUPS,
        resampling=Resampling(10),
        columns={},
    )


compare = partial(compare_explained, group=GROUPS, resampling=Resampling(bootstrap=300))


def test_a_planted_difference_is_found_with_its_size() -> None:
    found = compare(run(0.8, 0.9, 0), run(0.5, 0.9, 1))
    assert list(found["layer"]) == ["a", "b"]
    np.testing.assert_allclose(found["difference"], -0.3 / 0.9, atol=0.02)
    assert ((found["low"] < found["difference"]) & (found["difference"] < found["high"])).all()
    assert (found["high"] < 0).all()
    assert (found["p_holm"] < 1e-6).all()
    assert (found["p_exchange"] < 0.01).all()


def test_shares_of_the_ceiling_are_equal_where_only_the_noise_differs() -> None:
    a, b = run(0.8, 0.8, 0), run(0.6, 0.6, 1)
    assert (compare(a, b)["p_value"] > 0.001).all()
    np.testing.assert_allclose(compare(a, b)["difference"], 0, atol=0.03)
    np.testing.assert_allclose(compare(a, b, of_ceiling=False)["difference"], -0.2, atol=0.02)
    np.testing.assert_allclose(compare(a, b)["a"], a.frame["of_ceiling"])


def test_a_run_does_not_differ_from_itself() -> None:
    a = run(0.5, 0.9, 0)
    found = compare(a, a)
    assert (found["difference"] == 0).all()
    assert (found["p_value"] == 1).all()
    assert (found["p_exchange"] == 1).all()


def test_equal_runs_are_called_different_about_as_often_as_the_level_says() -> None:
    few = Resampling(bootstrap=20)
    p = [compare(run(0.5, 0.9, 2 * s, ("a",)), run(0.5, 0.9, 2 * s + 1, ("a",)), resampling=few)["p_value"].item() for s in range(100)]  # fmt: skip
    assert np.mean(np.array(p) <= 0.05) <= 0.12  # binomial(100, 0.05) exceeds 12 once in 700 times


def test_layers_in_common_are_compared_and_what_is_not_known_is_no_number() -> None:
    found = compare(run(0.5, 0.9, 0), run(0.5, 0.9, 1, ("b", "c")))
    assert list(found["layer"]) == ["b"]
    unknown = compare(run(0.5, float("nan"), 0), run(0.5, 0.9, 1))
    assert unknown[["difference", "p_value", "p_holm"]].isna().to_numpy().all()
    with pytest.raises(ValueError, match="no rung, target and layer in common"):
        compare(run(0.5, 0.9, 0), run(0.5, 0.9, 1, ("c",)))
    with pytest.raises(ValueError, match="119 group labels; compare runs on the same questions"):
        compare(run(0.5, 0.9, 0), run(0.5, 0.9, 1), group=GROUPS[1:])
