"""Open class distributions layer by layer: planted truth, false positives, baselines of the same form, bad input."""

from dataclasses import replace

import numpy as np
import pytest

from experiments.bench.open_worlds import OpenWorld, alike, open_world, target_of
from probes.activations.layers import Layers
from probes.evaluation.baselines import Texts
from probes.evaluation.kl_gap import kl_gap
from probes.evaluation.layerwise import CrossValidation
from probes.evaluation.open_layers import OpenEvaluation, evaluate_open
from probes.targets.open import open_entropies, open_target
from semcal.calibration.resampling import Resampling
from semcal.errors import UserError
from tests.probes.tables import table_of

QUICK = CrossValidation(folds=3, penalties=(1.0, 10.0, 100.0, 1e4), exchanges=99)


def evaluated(world: OpenWorld, *layers: np.ndarray, how: CrossValidation = QUICK, seed: int = 0) -> OpenEvaluation:
    source = Layers.of(np.stack(layers, 1), [f"layer {i}" for i in range(len(layers))])
    group = [str(i) for i in range(len(world.target))]
    return evaluate_open(source, world.target, world.embedding, group=group, how=how, seed=seed)


def test_the_gap_is_that_of_the_fitted_q_and_small_where_the_signal_is() -> None:
    world = open_world(600, 500)
    noise = np.random.default_rng(1).normal(size=world.activations.shape).astype(np.float32)
    found = evaluated(world, world.activations, noise)
    gaps = [world.cross_entropy(log_q) - world.entropy for log_q in found.log_q]
    candidate = world.cross_entropy(found.candidate_log_q) - world.entropy
    assert gaps[0] < 0.1 < 1 < candidate
    assert gaps[1] == pytest.approx(candidate, abs=0.03)
    assert found.gain[0] == pytest.approx(candidate - gaps[0])
    assert found.p_value[0] == 0.01
    assert found.p_value[1] > 0.05


def test_a_distribution_that_is_the_same_for_all_questions_leaves_no_gap() -> None:
    world = alike(open_world(300, 60), seed=1)
    found = evaluated(world, world.activations)
    assert world.entropy > 1
    assert world.cross_entropy(found.log_q[0]) - world.entropy == pytest.approx(0, abs=0.05)
    assert found.gain[0] == pytest.approx(0, abs=0.02)


@pytest.mark.parametrize("classes", [1, 2])
def test_a_single_class_is_predicted_without_a_gap(classes: int) -> None:
    """Also where others are known by name, which no question has."""
    rows = [{"red": 5}] * 29 + [{"red": 5} if classes == 1 else {"blue": 5}]
    target = open_target(table_of(rows)).select(slice(0, 29))
    source = Layers.of(np.random.default_rng(0).normal(size=(29, 2, 3)), ["a", "b"])
    group = [str(i) for i in range(29)]
    found = evaluate_open(source, target, np.eye(classes), group=group, how=QUICK)
    assert (found.log_q == 0).all()
    assert (found.candidate_log_q == 0).all()
    assert {target.classes[column] for column in found.answer.flat} == {"red"}
    assert (found.confidence == 1).all()
    assert (found.gain == 0).all()
    assert (found.p_value == 1).all()
    gap = kl_gap(target, found.log_q[0], open_entropies(table_of(rows[:29])), group, Resampling(20))
    assert str(gap.gap) == "0.0"  # and not −0


def test_predictions_are_distributions_over_all_classes() -> None:
    """Every question answers every class, so that its entries are the whole of q."""
    rng = np.random.default_rng(0)
    counts = 1 + rng.multinomial(40, np.full(10, 0.1), size=60)
    world = replace(open_world(60, 10), target=target_of(counts))
    found = evaluated(world, world.activations)
    first = world.target.starts[:-1]
    likeliest = np.maximum.reduceat(found.log_q[0], first)  # every class is among a question's own
    np.testing.assert_allclose(found.confidence[0], np.exp(likeliest), rtol=1e-4)
    own = {
        q: world.target.column[world.target.question == q][found.log_q[0][world.target.question == q].argmax()]
        for q in range(len(world.target))
    }
    assert found.answer[0].tolist() == list(own.values())
    of_question = np.reshape(found.log_q[0], (len(world.target), 10))
    np.testing.assert_allclose(found.entropy[0], -(np.exp(of_question) * of_question).sum(1), rtol=1e-4)
    for log_q in (found.log_q[0], found.candidate_log_q):
        np.testing.assert_allclose(np.bincount(world.target.question, np.exp(log_q)), 1, rtol=1e-4)


def test_a_held_out_question_does_not_change_its_own_prediction() -> None:
    """With other masses on the same classes it gets the same log q."""
    world = open_world(90, 60, d=4)
    group = [str(i) for i in range(90)]
    counts = np.zeros((90, 60), dtype=np.int64)
    counts[world.target.question, world.target.column] = np.rint(50 * world.target.mass)
    source = Layers.of(world.activations[:, None], ["only"])
    before = evaluate_open(source, world.target, world.embedding, group=group, how=QUICK)
    changed = counts.copy()
    own = np.flatnonzero(counts[7])
    changed[7, own] = changed[7, own[::-1]]  # the same masses on the same classes, exchanged
    other = target_of(changed)
    after = evaluate_open(source, other, world.embedding, group=group, how=QUICK)

    def of_7(target, log_q):
        entries = target.entries([7])
        return log_q[entries][np.argsort(target.column[entries])]

    np.testing.assert_allclose(of_7(other, after.log_q[0]), of_7(world.target, before.log_q[0]), atol=1e-5)


def test_the_same_seed_gives_the_same_numbers_whatever_other_layers_there_are() -> None:
    world = open_world(90, 60)
    noise = np.random.default_rng(1).normal(size=world.activations.shape).astype(np.float32)
    one, two = evaluated(world, world.activations), evaluated(world, noise, world.activations)
    np.testing.assert_allclose(two.log_q[1], one.log_q[0], atol=1e-6)
    np.testing.assert_array_equal(two.candidate_log_q, one.candidate_log_q)


@pytest.mark.long
def test_without_signal_few_studies_find_one_though_questions_of_a_group_are_alike() -> None:
    """24 studies of three layers; `python -m experiments.bench planted-open` counts 200."""
    found = sum(false_positive(study) for study in range(24))
    assert found <= 4  # P(more | 5 %) = 0.6 %


def false_positive(study: int) -> bool:
    """Whether any of three layers of noise is called significant; questions of a group share π and most activations."""
    rng = np.random.default_rng(study)
    n, classes = 60, 30
    pair = np.arange(n) // 2
    pi = rng.dirichlet(np.full(classes, 0.2), size=n // 2)[pair]
    target = target_of(np.stack([rng.multinomial(20, row) for row in pi]))
    layers = rng.normal(size=(n // 2, 3, 5))[pair] + 0.1 * rng.normal(size=(n, 3, 5))
    how = CrossValidation(folds=3, penalties=(1.0, 100.0), exchanges=99)
    source = Layers.of(layers.astype(np.float32), ["a", "b", "c"])
    found = evaluate_open(
        source, target, rng.normal(size=(classes, 6)), group=[str(p) for p in pair], how=how, seed=study
    )
    return bool(found.p_value.min() <= 0.05)


def test_text_is_a_baseline_of_the_same_form() -> None:
    words = ["river", "king", "song", "plant", "star"]
    rng = np.random.default_rng(0)
    topic = rng.integers(0, 5, 100)
    counts = np.zeros((100, 50), dtype=np.int64)
    for row, t in enumerate(topic):
        counts[row, 10 * t : 10 * t + 10] = rng.multinomial(30, np.full(10, 0.1))
    features = np.eye(5)[np.arange(50) // 10] + 0.1 * rng.normal(size=(50, 5))
    texts = Texts.of([f"which {words[t]} is number {i}" for i, t in enumerate(topic)], [5] * 100)
    how = CrossValidation(folds=3, penalties=(0.01, 0.1, 1.0, 10.0), exchanges=99)
    found = evaluate_open(texts, target_of(counts), features, group=[str(i) for i in range(100)], how=how)
    assert found.layers == texts.names
    assert found.gain[0] > 0.5 * np.log(5)
    assert found.p_value[0] == 0.01


def test_bad_input_is_one_line_with_the_remedy() -> None:
    world = open_world(30, 20)
    group = [str(i) for i in range(30)]
    source = Layers.of(world.activations[:, None], ["blocks.3"])

    def refusal(kind: type[Exception], **changed: object) -> str:
        given = {"source": source, "target": world.target, "features": world.embedding, "group": group, "how": QUICK}
        given |= changed
        with pytest.raises(kind) as error:
            evaluate_open(given.pop("source"), given.pop("target"), given.pop("features"), **given)  # pyright: ignore
        assert "\n" not in str(error.value)
        return str(error.value)

    assert "2 groups of questions cannot be split into 3 folds; ask" in refusal(
        UserError, group=[str(i % 2) for i in range(30)]
    )
    assert "29 group labels" in refusal(ValueError, group=group[1:])
    assert "19 embeddings of 20 classes" in refusal(ValueError, features=world.embedding[1:])
    spoilt = world.activations.copy()
    spoilt[4, 2] = np.nan
    message = refusal(ValueError, source=Layers.of(spoilt[:, None], ["blocks.3"]))
    assert "layer blocks.3 at question 4 are not finite; capture" in message


def test_activations_that_are_the_same_for_all_questions_give_the_candidate_only_model() -> None:
    """As those of the embedding layer at the last prompt token, which is the same in every prompt."""
    world = open_world(90, 60, d=4)
    found = evaluated(world, np.ones_like(world.activations))
    assert found.gain[0] == pytest.approx(0, abs=0.02)
    assert np.isfinite(found.log_q).all()
