"""Code lengths and learning curves: what a probe costs in data, and what more of it would bring."""

from functools import partial
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.special import softmax

from probes.evaluation.learning import doubling_blocks, learning_curve, online_code
from probes.rungs.linear import LinearProbe
from probes.rungs.networks import MLPProbe
from probes.targets.closed import ClassTarget
from semcal.calibration.resampling import Resampling
from tests.probes.tables import evaluated

N, D, K = 240, 5, 4
GROUPS = [f"entity {row // 2}" for row in range(N)]
PATH = [LinearProbe(penalty, tol=1e-6) for penalty in (1e3, 1e2, 10.0, 1.0, 0.1)]


def planted(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(N, D))
    return X, softmax(2 * X @ rng.normal(size=(D, K)), axis=1)


code = partial(online_code, PATH, group=GROUPS, seed=0)


def test_a_planted_read_out_makes_the_code_short_and_noise_does_not() -> None:
    X, Y = planted()
    found = code(X, Y)
    assert found.entropy < found.probe < found.marginal < found.uniform + 0.1
    assert found.uniform == pytest.approx(np.log(K))
    assert found.compression > 1.2
    assert 0.5 < found.explained < 1
    noise = code(np.random.default_rng(9).normal(size=(N, D)), Y)
    assert noise.explained == pytest.approx(0, abs=0.1)
    assert found.blocks[0] == pytest.approx(np.log(K))
    sizes = np.diff([0, *found.ends])
    assert found.probe == pytest.approx((sizes * found.blocks).sum() / N)
    assert found.blocks[-1] < found.blocks[1]


def test_uniform_targets_cost_their_entropy_whatever_is_known() -> None:
    X, _ = planted()
    found = code(X, np.full((N, K), 1 / K))
    assert found.probe == pytest.approx(found.entropy) == pytest.approx(found.uniform)
    assert np.isnan(found.explained)
    assert found.compression == pytest.approx(1)


def test_a_read_out_that_needs_more_data_has_the_longer_code() -> None:
    """The same information on two axes, straight and as an exclusive or, which takes more to learn."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(N, 2))
    rows = np.array([[0.9, 0.1], [0.1, 0.9]])
    straight, folded = rows[(X[:, 0] > 0).astype(int)], rows[(X.prod(1) > 0).astype(int)]
    path = [MLPProbe(32, lr=1e-2)]
    assert online_code(path, X, straight, group=GROUPS, seed=0).probe < online_code(path, X, folded, group=GROUPS, seed=0).probe  # fmt: skip


@given(st.lists(st.integers(0, 8), min_size=1, max_size=60), st.integers(1, 10))
def test_blocks_double_and_tear_no_group_apart(codes: list[int], first: int) -> None:
    group = [f"g{code}" for code in codes]
    blocks = doubling_blocks(group, first, seed=0)
    assert sorted(np.concatenate(blocks)) == list(range(len(group)))
    names = [{group[row] for row in block} for block in blocks]
    assert sum(map(len, names)) == len(set(group))
    told = np.cumsum([len(block) for block in blocks])
    assert len(blocks) == 1 or told[0] >= first
    assert all(after >= 2 * before for before, after in pairwise(told[:-1]))


def test_what_cannot_be_told_is_refused_in_one_line() -> None:
    X, Y = planted()
    with pytest.raises(ValueError, match=r"single block.*give more questions"):
        online_code(PATH, X, Y, group=["one"] * N, seed=0)
    with pytest.raises(ValueError, match="239 inputs, 240 targets"):
        code(X[1:], Y)
    with pytest.raises(ValueError, match="not a valid distribution at question 5"):
        code(X, np.where(np.arange(N)[:, None] == 5, np.nan, Y))
    with pytest.raises(ValueError, match="first is 0"):
        code(X, Y, first=0)


# ---- learning curves -----------------------------------------------------------------------------------------------


def test_a_learning_curve_rises_to_what_the_evaluation_finds() -> None:
    X, pi = planted()
    target = ClassTarget(tuple("abcd"), pi, None)
    curve = learning_curve(PATH, X, target, sizes=[10, 40, 10_000], group=GROUPS, folds=3, resampling=Resampling(100))
    assert curve["explained"].is_monotonic_increasing
    assert curve["questions"].iloc[-1] == pytest.approx(2 * N / 3)
    assert (curve["questions"] >= [10, 40, 160]).all()
    assert ((curve["low"] < curve["explained"]) & (curve["explained"] < curve["high"])).all()
    grid = {"penalties": [probe.penalty for probe in PATH], "permutations": 0, "folds": 3, "bootstrap": 10, "seed": 0}
    whole = evaluated(X[:, None], target, layers=["x"], group=GROUPS, **grid).frame["explained"].item()
    assert curve["explained"].iloc[-1] == pytest.approx(whole, abs=0.01)


def test_a_learning_curve_of_nothing_is_refused() -> None:
    X, pi = planted()
    target = ClassTarget(tuple("abcd"), pi, None)
    with pytest.raises(ValueError, match="all at least 1"):
        learning_curve(PATH, X, target, sizes=[], group=GROUPS)
    one = ClassTarget(("only",), np.ones((N, 1)), None)
    with pytest.raises(ValueError, match="nothing to explain"):
        learning_curve(PATH, X, one, sizes=[50], group=GROUPS, resampling=Resampling(5))
