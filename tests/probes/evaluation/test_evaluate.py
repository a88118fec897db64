from dataclasses import replace
from functools import partial

import numpy as np
import pandas as pd
import pytest
from scipy.special import softmax

from probes.activations.layers import Layers
from probes.evaluation.baselines import baseline_row
from probes.evaluation.folds import group_folds
from probes.evaluation.layerwise import evaluate_all
from probes.evaluation.result import COLUMNS, SHARES
from probes.targets.closed import MOST_POOLED, OTHER, ClassTarget
from probes.targets.entropy import entropies
from probes.targets.scalars import ScalarTarget
from tests.probes.tables import evaluated

N, K, D = 240, 6, 16
LAYERS = ["embed", "noise", "planted", "faint"]
GROUPS = [f"entity {index // 2}" for index in range(N)]


def planted(seed: int = 0, m: int | None = 400) -> tuple[np.ndarray, ClassTarget]:
    """A constant layer, a layer of noise, one linear in the logits of π, one that shows them faintly."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(N, K)) * 1.5
    pi = softmax(logits, axis=1)
    Y = pi if m is None else np.stack([rng.multinomial(m, row) for row in pi]) / m
    signal = logits @ rng.normal(size=(K, D))
    layers = [np.full((N, D), 3.25), rng.normal(size=(N, D)), signal, signal + 6 * rng.normal(size=(N, D))]
    return np.stack(layers, 1).astype(np.float32), ClassTarget(tuple("abcdef"), Y, m)


def measured(permutations: int = 39, seed: int = 0) -> pd.DataFrame:
    X, target = planted()
    return evaluated(X, target, layers=LAYERS, group=GROUPS, permutations=permutations, bootstrap=200, seed=seed).frame


@pytest.fixture(scope="module")
def frame() -> pd.DataFrame:
    return measured().set_index("layer")


def test_a_planted_layer_is_explained_and_significant(frame: pd.DataFrame) -> None:
    row = frame.loc["planted"]
    assert 0.95 < row["explained"] <= 1
    assert row["explained"] <= row["ceiling"] + 0.02
    assert row["p_value"] == pytest.approx(1 / 40)
    assert row["low"] < row["explained"] < row["high"]
    assert row["probe_nats"] == pytest.approx((1 - row["explained"]) * row["baseline_nats"], rel=1e-6)


def test_a_noise_layer_is_not(frame: pd.DataFrame) -> None:
    row = frame.loc["noise"]
    assert abs(row["explained"]) < 0.05
    assert row["p_value"] > 0.05
    assert row["penalty"] > frame.loc["planted", "penalty"]


def test_a_faint_layer_lies_between(frame: pd.DataFrame) -> None:
    row = frame.loc["faint"]
    assert 0.02 < row["explained"] < 0.8
    assert row["explained"] > row["null_q95"]
    assert row["p_value"] < 0.05


def test_a_constant_layer_explains_nothing(frame: pd.DataFrame) -> None:
    row = frame.loc["embed"]
    assert row["explained"] == pytest.approx(0, abs=1e-3)
    assert row["p_value"] > 0.05
    assert np.isfinite(row[["low", "high", "control", "null_q95", "ceiling"]].astype(float)).all()


def test_selectivity_separates_the_target_from_the_control_task(frame: pd.DataFrame) -> None:
    assert np.abs(frame["control"].to_numpy()).max() < 0.1
    np.testing.assert_allclose(frame["selectivity"], frame["explained"] - frame["control"])
    assert frame.loc["planted", "selectivity"] > 0.9


def test_the_same_seed_gives_the_same_frame(frame: pd.DataFrame) -> None:
    again = measured().set_index("layer")
    pd.testing.assert_frame_equal(frame, again)
    assert not again.equals(measured(seed=1).set_index("layer"))


def test_both_frames_have_the_same_columns(frame: pd.DataFrame) -> None:
    X, target = planted()
    values = ScalarTarget(target.distribution.max(1), "b_confidence")
    scalar = evaluated(X, values, layers=LAYERS, group=GROUPS, permutations=5).frame
    assert list(scalar.columns) == COLUMNS == list(frame.reset_index().reindex(columns=COLUMNS).columns)
    assert set(scalar["measure"]) == {"r2"}
    assert scalar[["baseline_nats", "probe_nats", "ceiling"]].isna().to_numpy().all()


def test_the_loose_solver_tolerance_does_not_show(frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probes.evaluation.layerwise.TOLERANCE", 1e-9)
    exact = measured(permutations=0).set_index("layer")
    np.testing.assert_allclose(frame["explained"], exact["explained"], atol=1e-3)


def test_layers_may_be_taken_in_parts(frame: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("probes.activations.layers.BYTES", 1)
    np.testing.assert_allclose(frame["explained"], measured().set_index("layer")["explained"], atol=1e-4)


def test_more_features_than_questions() -> None:
    X, target = planted()
    rng = np.random.default_rng(1)
    wide = X @ np.linalg.qr(rng.normal(size=(300, D)))[0].T.astype(np.float32)
    frame = evaluated(wide, target, layers=LAYERS, group=GROUPS, permutations=0, bootstrap=10, seed=0).frame.set_index(
        "layer"
    )
    assert frame.loc["planted", "explained"] > 0.9
    assert frame.loc["embed", "explained"] == pytest.approx(0, abs=1e-3)


def test_whole_groups_are_held_out_so_that_duplicates_do_not_leak() -> None:
    """Each group has one activation and one distribution, unrelated: only a split through groups can predict it."""
    rng = np.random.default_rng(0)
    entities, copies = 40, 5
    X = np.repeat(rng.normal(size=(entities, 1, 64)), copies, axis=0)
    Y = np.repeat(np.eye(4)[rng.integers(0, 4, size=entities)], copies, axis=0)
    target = ClassTarget(tuple("abcd"), Y, None)
    honest = [f"g{index // copies}" for index in range(entities * copies)]
    leaky = [f"q{index}" for index in range(entities * copies)]
    score = partial(evaluated, X, target, layers=["only"], permutations=0, bootstrap=10, seed=0)
    assert score(group=honest).frame["explained"].item() < 0.05
    assert score(group=leaky).frame["explained"].item() > 0.5


def test_no_group_straddles_a_split() -> None:
    group = [f"g{index % 17}" for index in range(100)]
    seen = []
    for train, test in group_folds(group, 5, seed=3):
        assert not {group[i] for i in train} & {group[i] for i in test}
        seen += list(test)
    assert sorted(seen) == list(range(100))
    other = group_folds(group, 5, seed=4)
    assert any(set(a[1]) != set(b[1]) for a, b in zip(group_folds(group, 5, seed=3), other, strict=True))


def test_scalars_are_explained_where_they_are_planted() -> None:
    rng = np.random.default_rng(0)
    y = rng.normal(size=N)
    X = np.stack([rng.normal(size=(N, D)), np.outer(y, rng.normal(size=D)) + rng.normal(size=(N, D))], 1)
    target = ScalarTarget(y, "entropy", noise_variance=0.05)
    frame = evaluated(X, target, layers=["noise", "planted"], group=GROUPS, permutations=39).frame.set_index("layer")
    assert frame.loc["planted", "explained"] > 0.8
    assert frame.loc["planted", "p_value"] == pytest.approx(1 / 40)
    assert abs(frame.loc["noise", "explained"]) < 0.05
    assert frame.loc["noise", "p_value"] > 0.05
    assert frame.loc["planted", "ceiling"] == pytest.approx(1 - 0.05 / y.var(), abs=0.01)
    assert abs(frame.loc["planted", "control"]) < 0.1


@pytest.mark.long
def test_the_null_is_not_beaten_by_chance() -> None:
    """Under no relation at all the smallest p-value over layers is uniform: here, rarely small in 20 worlds."""
    smallest = []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        target = ClassTarget(tuple("abc"), rng.multinomial(50, rng.dirichlet(np.ones(3), size=60)) / 50, 50)
        X = rng.normal(size=(60, 3, 8))
        score = partial(evaluated, X, target, layers=list("xyz"), group=[str(i) for i in range(60)], folds=3)
        smallest.append(score(penalties=(10.0, 1e3), permutations=19, bootstrap=5, seed=seed).frame["p_value"].min())
    assert np.mean(np.array(smallest) <= 0.1) < 0.35  # 2 of 20 expected; binomial(20, 0.1) exceeds 6 in 2 of 1,000
    assert np.mean(smallest) > 0.3


def test_the_kl_gap_of_a_question_is_its_loss_with_the_noise_of_its_samples_taken_off() -> None:
    """Of every layer and of the marginal, in whatever order the classes are, and NaN for a scalar."""
    rng = np.random.default_rng(0)
    X = rng.normal(size=(80, 3, 4))
    logits = np.stack([X[:, 1, 0], -X[:, 1, 0], np.zeros(80)], 1)
    share = rng.multinomial(50, np.exp(logits) / np.exp(logits).sum(1, keepdims=True)) / 50
    target = ClassTarget(("zebra", "ant", "mule"), share, 50)
    group = [str(i) for i in range(80)]
    found = evaluated(X, target, layers=list("xyz"), group=group, folds=3, permutations=0, bootstrap=20)
    known = entropies(share, 50)
    for losses, gap in zip([*found.losses, found.baseline], found.gaps, strict=True):
        np.testing.assert_allclose(gap.per_question, losses + known.plug_in - known.point, atol=1e-5)
    np.testing.assert_allclose(found.frame["gap"], [gap.gap for gap in found.gaps[:-1]])
    assert found.frame["gap"].idxmin() == 1
    assert (found.frame["gap_top"] + found.frame["gap_rest"]).to_numpy() == pytest.approx(found.frame["gap"].to_numpy())
    for part in ("gap_top", "gap_rest"):
        assert (found.frame[f"{part}_low"] < found.frame[part]).all()
        assert (found.frame[part] < found.frame[f"{part}_high"]).all()
    assert baseline_row(found)["gap"].item() == pytest.approx(found.gaps[-1].gap)
    ranked = replace(target, fixed_classes=False)
    unknown = evaluated(X, ranked, layers=list("xyz"), group=group, folds=3, permutations=0, bootstrap=20)
    assert unknown.frame["gap"].isna().all()
    assert baseline_row(unknown)["gap"].isna().all()


def test_shares_explained_are_not_shown_where_much_is_pooled() -> None:
    X, target = planted()
    share = target.distribution
    much = ClassTarget((*target.classes[:3], OTHER), np.c_[share[:, :3], share[:, 3:].sum(1)], target.m)
    assert much.pooled > MOST_POOLED
    settings = {"layers": LAYERS, "group": GROUPS, "permutations": 0, "bootstrap": 5}
    found = evaluated(X, much, **settings)
    assert found.frame[list(SHARES)].isna().to_numpy().all()
    assert found.frame[["gap", "probe_nats", "pooled"]].notna().to_numpy().all()
    assert baseline_row(found)[["explained", "of_ceiling"]].isna().to_numpy().all()
    assert evaluated(X, target, **settings).frame["explained"].notna().all()


def test_a_single_class_leaves_nothing_to_explain() -> None:
    X, _ = planted()
    target = ClassTarget(("only",), np.ones((N, 1)), 50)
    frame = evaluated(X, target, layers=LAYERS, group=GROUPS, permutations=3, bootstrap=5, seed=0).frame
    assert frame[["explained", "ceiling", "p_value", "null_q95", "low", "high"]].isna().to_numpy().all()


def test_what_cannot_be_evaluated_is_refused_in_one_line() -> None:
    X, target = planted()
    score = partial(evaluated, X, layers=LAYERS, group=GROUPS, seed=0)
    with pytest.raises(ValueError, match="3 groups of questions cannot make 5 folds"):
        score(target, group=[f"g{index % 3}" for index in range(N)])
    with pytest.raises(ValueError, match="239 targets"):
        score(ClassTarget(target.classes, target.distribution[1:], 50))
    with pytest.raises(ValueError, match="3 layer names"):
        score(target, layers=LAYERS[1:])
    with pytest.raises(ValueError, match="penalties"):
        score(target, penalties=(0.0, 1.0))
    broken = X.copy()
    broken[17, 2, 3] = np.nan
    with pytest.raises(ValueError, match="layer planted at question 17"):
        evaluated(broken, target, layers=LAYERS, group=GROUPS, seed=0)
    with pytest.raises(ValueError, match="entropy is not finite at question 4"):
        ScalarTarget(np.r_[0, 0, 0, 0, np.inf, np.zeros(N - 5)], "entropy")


def test_targets_evaluated_together_read_each_layer_once_and_score_as_each_alone() -> None:
    X, target = planted()
    scalar, read = ScalarTarget(target.distribution.max(1), "b_confidence"), []
    whole = Layers.of(X, LAYERS)
    layers = Layers(whole.names, lambda index: (read.append(index), whole.read(index))[1], whole.row_bytes)
    together = evaluate_all(layers, [target, scalar], group=GROUPS)
    assert sorted(read) == list(range(len(LAYERS)))
    for alone, found in zip((target, scalar), together, strict=True):
        pd.testing.assert_frame_equal(evaluated(X, alone, layers=LAYERS, group=GROUPS).frame, found.frame)
