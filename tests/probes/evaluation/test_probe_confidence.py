import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import entropy

from probes.evaluation.rungwise import out_of_fold
from probes.probe_confidence import Cost, confidence_row, probe_answer, sampled_row
from probes.targets.closed import OTHER, share_target
from semcal.calibration.resampling import Resampling
from semcal.calibration.summary import calibrate
from semcal.semantics.class_table import ClassTable

N, K, D, M = 400, 5, 10, 50
FREE = Cost(prompt_tokens=40.0, generated_tokens=0.0, rows_decoded=0.0, seconds=0.01)
LABELS = tuple("abcde")
GROUPS = [f"g{i}" for i in range(N)]


def world(seed: int = 0, sharpen: float = 1.0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Activations [n, d] linear in the logits of π, counts [n, K] of M samples of sharpened π, gold [n] drawn from π."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(size=(N, K)) * 1.2
    pi = softmax(logits, axis=1)
    counts = np.stack([rng.multinomial(M, row) for row in softmax(sharpen * logits, axis=1)])
    gold = np.array([rng.choice(K, p=row) for row in pi])
    return logits @ rng.normal(size=(K, D)) + 0.1 * rng.normal(size=(N, D)), counts, gold


def measured(seed: int = 0, sharpen: float = 1.0):
    X, counts, gold = world(seed, sharpen)
    table = ClassTable.of_arrays(counts, gold, groups=GROUPS)
    sampled = table.by_count
    predicted = out_of_fold(X, counts / M, GROUPS, folds=4, seed=0)
    answer = probe_answer(predicted, LABELS, [{LABELS[g]} for g in gold])
    np.testing.assert_allclose(answer.entropy, entropy(predicted, axis=1))
    agreement = (np.array([LABELS.index(k) for k in answer.labels]) == counts.argmax(1)).astype(float)
    sure = out_of_fold(X, share_target(counts.max(1) / M, name="c", m=M).distribution, GROUPS, folds=4, seed=0)[:, 0]
    shared = {"table": table, "cost": FREE, "resampling": Resampling(bootstrap=100, null_draws=200)}
    return (
        confidence_row("class probe", answer.confidence, answer.correct, agreement=agreement, **shared),
        confidence_row("confidence probe", sure, sampled.correct, **shared),
        sampled,
    )


def test_the_probe_of_a_calibrated_model_is_calibrated_at_the_price_of_its_prompt() -> None:
    classes, scalar, sampled = measured()
    assert classes["smece"] < classes["null_q95"]
    assert abs(classes["signed_gap"]) < 0.05
    assert classes["signed_gap_low"] < classes["signed_gap"] < classes["signed_gap_high"]
    assert classes["agreement"] > 0.8
    assert classes["spearman"] > 0.8
    assert classes["accuracy"] == pytest.approx(sampled.correct.mean(), abs=0.04)
    assert classes["auroc_low"] < classes["auroc"] < classes["auroc_high"]
    assert abs(classes["auroc_less_sampled"]) < 0.08
    assert (classes["prompt_tokens"], classes["generated_tokens"], classes["seconds"]) == (40.0, 0.0, 0.01)
    assert scalar["answer"] == "mode"
    assert scalar["accuracy"] == pytest.approx(sampled.correct.mean())
    assert scalar["agreement"] == 1.0


def test_the_probe_of_an_overconfident_model_is_overconfident_too() -> None:
    classes, scalar, sampled = measured(sharpen=3.0)
    assert sampled.plug_in.mean() - sampled.correct.mean() > 0.15
    assert classes["signed_gap"] > 0.1
    assert classes["p_value"] < 0.01
    assert scalar["signed_gap"] > 0.1


def test_a_probe_of_noise_tells_nothing() -> None:
    _, counts, gold = world()
    table = ClassTable.of_arrays(counts, gold, groups=GROUPS)
    blind = out_of_fold(np.random.default_rng(9).normal(size=(N, D)), counts / M, GROUPS, folds=4, seed=0)
    answer = probe_answer(blind, LABELS, [{LABELS[g]} for g in gold])
    row = confidence_row(
        "class probe",
        answer.confidence,
        answer.correct,
        table=table,
        cost=FREE,
        resampling=Resampling(bootstrap=100, null_draws=100),
    )
    assert row["auroc_low"] < 0.5 < row["auroc_high"] + 0.06  # pooled over folds, a void probe leans below chance
    assert row["auroc_less_sampled_high"] < 0
    assert abs(row["spearman"]) < 0.25


def test_the_pool_of_light_classes_is_not_an_answer() -> None:
    predicted = np.array([[0.2, 0.1, 0.7], [0.1, 0.6, 0.3]])
    answer = probe_answer(predicted, ("a", "b", OTHER), [{"a"}, {"a"}])
    assert answer.labels == ("a", "b")
    np.testing.assert_allclose(answer.confidence, [0.2, 0.6])
    np.testing.assert_allclose(answer.correct, [1, 0])
    with pytest.raises(ValueError, match="for 1 questions and 2 classes"):
        probe_answer(predicted, ("a", "b"), [{"a"}])


def test_the_samples_row_says_what_the_calibration_record_says() -> None:
    _, counts, gold = world()
    record = calibrate(ClassTable.of_arrays(counts, gold), resampling=Resampling(bootstrap=20, null_draws=20, seed=0))
    row = sampled_row(record.to_dict(), FREE)
    assert (row["smece"], row["auroc"], row["p_value"]) == (record.smece, record.auroc, record.p_value)
    assert (row["source"], row["agreement"], row["auroc_less_sampled"]) == ("samples", 1.0, 0.0)
    silent = record.to_dict() | {"auroc": None}  # JSON's way to say that all answers are right
    assert np.isnan(sampled_row(silent, FREE)["auroc"])
