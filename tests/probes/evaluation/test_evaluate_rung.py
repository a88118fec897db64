"""Any rung by one function, on the folds of the linear probe."""

from typing import Any

import numpy as np
import pytest
from scipy.special import log_softmax, softmax, xlogy
from scipy.stats import kstest

from probes.evaluation.baselines import TEXT_PENALTIES, Texts
from probes.evaluation.controls import exchange_p_value
from probes.evaluation.layerwise import CrossValidation
from probes.evaluation.result import COLUMNS, Evaluation
from probes.evaluation.rungwise import Candidates, evaluate_rung
from probes.rungs.linear import LinearProbe, RidgeLogitProbe
from probes.rungs.networks import AttentionProbe, MLPProbe, Segments
from probes.rungs.registry import PENALTIES, Given, candidates, rungs_reading
from probes.rungs.rung import Rung
from probes.targets.closed import ClassTarget
from probes.targets.open import sparse
from semcal.calibration.resampling import Resampling
from semcal.errors import NonFiniteError
from tests.probes.tables import evaluated

N, D, K = 160, 6, 4
GROUPS = [f"entity {row // 2}" for row in range(N)]


def planted(seed: int = 0) -> tuple[np.ndarray, ClassTarget]:
    rng = np.random.default_rng(seed)
    X = rng.normal(size=(N, D)).astype(np.float32)
    pi = softmax(X @ rng.normal(size=(D, K)), axis=1)
    return X, ClassTarget(tuple("abcd"), rng.multinomial(50, pi) / 50, 50)


def measure(path: Any, X: Any, target: ClassTarget, *, rung: str, control: bool = True, **more: Any) -> Evaluation:
    """`evaluate_rung` with the fields of its records as keywords."""
    how = CrossValidation(folds=3, exchanges=more.pop("exchanges", 999))
    resampling = Resampling(50, seed=more.pop("seed", 0))
    settings = {"layer": "last", "group": GROUPS, "how": how, "resampling": resampling}
    return evaluate_rung(Candidates(rung, path, control), X, target, **settings | more)


def test_a_linear_probe_by_itself_has_the_row_that_it_has_among_all_layers() -> None:
    X, target = planted()
    path = [LinearProbe(penalty) for penalty in sorted(PENALTIES, reverse=True)]
    one = measure(path, X, target, rung="linear")
    many = evaluated(X[:, None], target, layers=["last"], group=GROUPS, folds=3, permutations=0, bootstrap=50, seed=0)
    assert list(one.frame.columns) == COLUMNS == list(many.frame.columns)
    for column in (
        "explained",
        "low",
        "high",
        "ceiling",
        "of_ceiling",
        "control",
        "penalty",
        "baseline_nats",
        "gap",
        "gap_top",
        "gap_floor",
    ):
        assert one.frame[column].item() == pytest.approx(many.frame[column].item(), abs=2e-3), column
    np.testing.assert_allclose(one.baseline, many.baseline, atol=1e-6)
    assert one.frame["choice"].item() == many.frame["choice"].item()


def test_held_out_predictions_are_kept_and_give_the_score() -> None:
    X, target = planted()
    found = measure([LinearProbe(1.0)], X, target, rung="linear", control=False)
    Y, entries = target.distribution, sparse(target)
    assert found.log_q is not None
    log_q = np.zeros(Y.shape)
    log_q[entries.question, entries.columns(target.classes)] = found.log_q[0]
    losses = (xlogy(Y, Y) - Y * log_q).sum(1)
    np.testing.assert_allclose(found.losses[0], losses, atol=1e-9)
    assert found.frame["explained"].item() == pytest.approx(1 - losses.sum() / found.baseline.sum())
    assert np.isnan(found.frame["control"].item())


@pytest.mark.long
@pytest.mark.parametrize("rung", rungs_reading("layer"))
def test_every_rung_finds_a_planted_read_out_and_not_the_control_task(rung: str) -> None:
    X, target = planted()
    row = measure(candidates(rung, Given(50, 0)), X, target, rung=rung).frame.iloc[0]
    assert row["rung"] == rung
    assert 0.4 < row["explained"] <= row["ceiling"] + 0.02
    assert row["low"] < row["explained"] < row["high"]
    assert abs(row["control"]) < 0.2
    assert row["selectivity"] == pytest.approx(row["explained"] - row["control"])


def test_attention_reads_segments() -> None:
    X, target = planted()
    lengths = 1 + np.arange(N) % 3
    tokens = np.repeat(X, lengths, axis=0)
    segments = Segments.of(tokens, lengths)
    assert segments.mask.sum() == len(tokens)
    np.testing.assert_array_equal(segments.states[segments.mask], tokens)
    found = measure([AttentionProbe(lr=3e-2)], segments, target, rung="attention", control=False)
    assert found.frame["explained"].item() > 0.3
    with pytest.raises(ValueError, match="add up to"):
        Segments.of(tokens[1:], lengths)


class Spy(LinearProbe):
    """Remembers the questions that it learnt from (their number stands in the first feature)."""

    learnt: tuple[set[int], ...] = ()

    def fit(self, X, Y, group=None):
        Spy.learnt = (*Spy.learnt, set(X[:, 0].astype(int).tolist()))
        return super().fit(X, Y, group)

    def predict_log(self, X):
        assert not Spy.learnt[-1] & set(X[:, 0].astype(int).tolist())
        entities = {row // 2 for row in Spy.learnt[-1]}
        assert not entities & {row // 2 for row in X[:, 0].astype(int).tolist()}
        return super().predict_log(X)


def test_choices_are_made_inside_the_training_part_only() -> None:
    _, target = planted()
    X = np.column_stack([np.arange(N), np.random.default_rng(0).normal(size=(N, 2))])
    Spy.learnt = ()
    path: list[Rung] = [Spy(penalty) for penalty in (1e3, 1.0)]
    found = measure(path, X, target, rung="linear", control=False)
    sizes = [len(rows) for rows in Spy.learnt]
    assert len(sizes) == 3 * (len(path) + 1)
    assert sizes[0] < sizes[2] < N  # the inner fit learns from less than the outer
    assert found.frame["choice"].item() == "penalty=1000"


def test_the_path_is_left_after_two_in_a_row_that_do_worse() -> None:
    _, target = planted()
    X = np.random.default_rng(5).normal(size=(N, 30))
    Spy.learnt = ()
    X[:, 0] = np.arange(N)
    measure([Spy(p) for p in (1e6, 1e-2, 1e-3, 1e-4, 1e-5)], X, target, rung="linear", control=False)
    assert len(Spy.learnt) == 3 * (3 + 1)


def test_a_single_class_leaves_nothing_to_explain() -> None:
    X, _ = planted()
    found = measure([MLPProbe(8)], X, ClassTarget(("only",), np.ones((N, 1)), 50), rung="mlp")
    assert found.frame[["explained", "low", "ceiling", "of_ceiling", "control", "p_value"]].isna().to_numpy().all()


def test_what_cannot_be_evaluated_is_refused_in_one_line() -> None:
    X, target = planted()
    path = [LinearProbe()]
    with pytest.raises(ValueError, match="159 inputs, 160 targets"):
        measure(path, X[1:], target, rung="linear")
    with pytest.raises(ValueError, match="no candidate"):
        measure([], X, target, rung="linear")
    with pytest.raises(ValueError, match=r"2 groups of questions cannot make 3 folds.*lower the number of folds"):
        measure(path, X, target, rung="linear", group=["a", "b"] * (N // 2))
    broken = X.copy()
    broken[7, 0] = np.nan
    with pytest.raises(ValueError, match="layer last at question 7 are not finite; capture them again"):
        measure(path, broken, target, rung="linear")
    with pytest.raises(ValueError, match="'ridge' is not a valid rung; expected one of linear"):
        candidates("ridge", Given(50, 0))


# ---- the p-value without refitting -------------------------------------------------------------------------------


@pytest.mark.long
def test_the_p_value_is_uniform_where_activations_know_nothing() -> None:
    found = []
    for seed in range(150):
        rng = np.random.default_rng(seed)
        X, target = rng.normal(size=(60, 20)), ClassTarget(tuple("abc"), rng.dirichlet(np.ones(3), size=60), None)
        settings = {"group": GROUPS[:60], "exchanges": 99, "seed": seed}
        row = measure([RidgeLogitProbe(10.0)], X, target, rung="ridge-logit", control=False, **settings).frame
        found.append(row["p_value"].item())
    assert np.mean(np.array(found) <= 0.05) < 0.05 + 3 * (0.05 * 0.95 / 150) ** 0.5
    assert np.mean(found) == pytest.approx(0.5, abs=4 * (1 / 12 / 150) ** 0.5)
    assert kstest(found, "uniform").pvalue > 1e-3


def test_the_p_value_is_small_where_they_know_something_even_if_the_probe_is_worse_than_the_marginal() -> None:
    X, target = planted()
    settle = {"rung": "linear", "control": False, "exchanges": 199}
    assert measure([LinearProbe(1.0)], X, target, **settle).frame["p_value"].item() == 1 / 200

    class TooSure(LinearProbe):
        def predict_log(self, X):
            return log_softmax(40 * super().predict_log(X), axis=1)

    row = measure([TooSure(1.0)], X, target, **settle).frame.iloc[0]
    assert row["explained"] < 0
    assert row["p_value"] == 1 / 200
    assert np.isnan(row["null_q95"])


def test_one_prediction_for_all_fits_every_question_alike_and_no_permutations_say_nothing() -> None:
    rng = np.random.default_rng(0)
    Y, same = rng.dirichlet(np.ones(3), size=40), np.log(np.full((40, 3), 1 / 3))
    assert exchange_p_value(Y, same, GROUPS[:40], 50, seed=0) == 1
    assert np.isnan(exchange_p_value(Y, same, GROUPS[:40], 0, seed=0))


def test_groups_are_exchanged_whole() -> None:
    """Predictions know the group alone: among the questions of one group there is nothing to exchange."""
    Y = np.repeat(np.eye(2), 20, axis=0)
    log_q = np.log(0.8 * Y + 0.1)
    two = ["a"] * 20 + ["b"] * 20
    assert exchange_p_value(Y, log_q, two, 199, seed=0) > 0.3  # half of the permutations leave both where they are
    assert exchange_p_value(Y, log_q, [str(i) for i in range(40)], 199, seed=0) == 1 / 200


def test_what_is_not_finite_names_rung_layer_and_fold() -> None:
    X, target = planted()
    with pytest.raises(
        NonFiniteError, match=r"mlp, last: fold 1 of 3: the loss is (nan|inf) after epoch 1 .*; "
    ) as said:
        measure([MLPProbe(lr=1e30)], X, target, rung="mlp")
    assert "\n" not in str(said.value)

    class Broken(LinearProbe):
        def _log_probabilities(self, inputs: Any) -> np.ndarray:
            return np.full((len(inputs), K), np.nan)

    with pytest.raises(NonFiniteError, match=r"linear, last: fold 1 of 3: a predicted probability is NaN; "):
        measure([Broken()], X, target, rung="linear")


# ---- words and lengths ---------------------------------------------------------------------------------------------


def asked() -> tuple[Texts, ClassTarget]:
    """The country named decides the distribution; the entity's name, which no two groups share, does not."""
    rng = np.random.default_rng(0)
    country = rng.integers(0, 4, size=N)
    texts = [f"Who rules {'ABCD'[c]}land, according to source{row // 2}?" for row, c in enumerate(country)]
    pi = softmax(2 * rng.normal(size=(4, K)), axis=1)[country]
    return Texts.of(texts, [20] * N), ClassTarget(tuple("abcd"), rng.multinomial(50, pi) / 50, 50)


def test_words_explain_what_they_decide() -> None:
    texts, target = asked()
    settings = {"group": GROUPS, "folds": 3, "permutations": 0, "bootstrap": 20, "seed": 0}
    row = evaluated(texts, target, rung="baseline:tfidf", penalties=TEXT_PENALTIES, **settings).frame.iloc[0]
    assert (row["rung"], row["layer"]) == ("baseline:tfidf", "tf-idf and length")
    assert row["explained"] > 0.9 * row["ceiling"]
    other = ClassTarget(target.classes, target.distribution[np.random.default_rng(0).permutation(N)], 50)
    assert evaluated(texts, other, penalties=TEXT_PENALTIES, **settings).frame["explained"].item() < 0.05


def test_words_and_scales_are_learnt_from_training_questions_alone() -> None:
    texts, _ = asked()
    train, test = np.arange(100), np.arange(100, N)
    fitted, held_out = texts.split(train, test)
    changed = Texts((*texts.texts[:100], *["unheard of words"] * 60), np.r_[texts.lengths[:100], np.full((60, 2), 1e6)])
    again, other = changed.split(train, test)
    np.testing.assert_array_equal(fitted, again)
    assert held_out.shape == other.shape
    assert not other[0, :, 2:].any()  # after two lengths, words: none of these is known


def test_texts_without_a_common_word_leave_the_lengths() -> None:
    texts = Texts.of([f"word{i}" for i in range(10)], list(range(10)))
    fitted, held_out = texts.split(np.arange(8), np.arange(8, 10))
    assert fitted.shape == (1, 8, 2)
    assert held_out.shape == (1, 2, 2)
    with pytest.raises(ValueError, match="10 texts, but 9 targets"):
        texts.parts(9)
    with pytest.raises(ValueError, match="not finite"):
        Texts(("a",), np.array([[np.nan]]))
