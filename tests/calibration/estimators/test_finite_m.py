"""What finite M hides: masses from log-probabilities, the M-curve and its limit, every estimator against the truth."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from semcal.calibration.estimators.finite_m import estimates, extrapolation_weights, m_curve, sizes_for
from semcal.calibration.measures.smece import smece
from semcal.calibration.resampling import Resampling
from semcal.semantics.class_table import ClassTable
from semcal.semantics.confidence import class_masses, confidences, confidences_of_masses


def drawn(n: int, m: int, seed: int, *, alpha: float = 0.5, classes: int = 8, sharpness: float = 1.0):
    """(pi, counts, gold) of a model whose gold answers follow pi^sharpness: below 1 it is overconfident."""
    rng = np.random.default_rng(seed)
    pi = rng.dirichlet(np.full(classes, alpha), n)
    truth = pi**sharpness
    truth /= truth.sum(axis=1, keepdims=True)
    return pi, rng.multinomial(m, pi), (truth.cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)


def truth_of(pi, gold) -> dict[str, float]:
    exact = confidences_of_masses(pi, gold)
    sure, right = exact.plug_in, exact.correct
    return {
        "confidence": sure.mean(),
        "accuracy": right.mean(),
        "signed_gap": sure.mean() - right.mean(),
        "smece": smece(sure, right),
    }


@pytest.mark.long
@pytest.mark.parametrize("sharpness", [1.0, 0.5])
def test_limit_recovers_the_truth_within_its_interval(sharpness):
    inside = {name: [] for name in ("confidence", "accuracy", "signed_gap", "smece")}
    bias = {name: [] for name in inside}
    for run in range(30):
        pi, counts, gold = drawn(250, 50, run, sharpness=sharpness)
        curve = m_curve(
            ClassTable.of_arrays(counts, gold), repeats=4, resampling=Resampling(bootstrap=60, null_draws=40, seed=run)
        )
        for name, value in truth_of(pi, gold).items():
            limit = curve.limits[name]
            inside[name].append(limit.low <= value <= limit.high)
            bias[name].append([limit.estimate - value, getattr(curve, name)[-1] - value])
    for name, hits in inside.items():
        assert np.mean(hits) >= 0.9, name
    for name in ("confidence", "signed_gap"):  # and it takes away most of what the plug-in overstates
        limit, plug_in = np.mean(bias[name], axis=0)
        assert plug_in > 0.008
        assert abs(limit) < 0.6 * plug_in


def test_curve_ends_at_the_plug_in_figures_and_falls_with_m():
    _, counts, gold = drawn(200, 40, 0)
    curve = m_curve(
        ClassTable.of_arrays(counts, gold), repeats=4, resampling=Resampling(bootstrap=20, null_draws=20, seed=0)
    )
    found = confidences(counts, gold)
    assert curve.m.tolist() == sizes_for(40).tolist() == [8, 12, 18, 27, 40]
    assert curve.confidence[-1] == pytest.approx(found.plug_in.mean())
    assert curve.accuracy[-1] == pytest.approx(found.correct.mean())
    assert curve.smece[-1] == pytest.approx(smece(found.plug_in, found.correct))
    assert (np.diff(curve.confidence) < 0).all()
    assert curve.rows()[-1]["m"] is None
    assert curve.rows()[-1]["confidence"] == curve.limits["confidence"].estimate


def test_extrapolation_is_exact_for_what_is_fitted():
    m = np.array([8, 12, 18, 27, 40])
    assert extrapolation_weights(m) @ (0.4 + 1.7 / m - 3 / m**2) == pytest.approx(0.4)


def test_too_few_samples_have_a_curve_and_no_limit():
    curve = m_curve(
        ClassTable.of_arrays([[2, 1], [1, 2]], [0, 0]),
        repeats=2,
        resampling=Resampling(bootstrap=5, null_draws=5, seed=0),
    )
    assert curve.limits == {}
    with pytest.raises(ValueError, match="at least 2 samples"):
        m_curve(ClassTable.of_arrays([[1, 0]], [0]), resampling=Resampling(seed=0))


def wordings(pi: np.ndarray, forms: int, m: int, rng: np.random.Generator):
    """M answers to each question, each class written in `forms` ways; as flat arrays of distinct answers."""
    share = rng.dirichlet(np.full(forms, 0.7), pi.shape)  # [n, K, forms]
    answer = (pi[..., None] * share).reshape(len(pi), -1)
    counts = rng.multinomial(m, answer)
    question, column = np.nonzero(counts)
    return question, column // forms, counts[question, column], np.log(answer[question, column])


@pytest.mark.parametrize(("forms", "gain"), [(1, 0.25), (4, 0.6), (60, 1.05)])
def test_masses_are_nearer_the_truth_than_counts_the_fewer_wordings_there_are(forms, gain):
    rng = np.random.default_rng(forms)
    pi = rng.dirichlet(np.full(6, 0.5), 400)
    question, label, count, logprob = wordings(pi, forms, 50, rng)
    masses = class_masses(question, label, count, logprob, shape=pi.shape)
    shares = np.zeros(pi.shape)
    np.add.at(shares, (question, label), count / 50)
    np.testing.assert_allclose(masses.sum(axis=1), 1)
    error, of_counts = (np.sqrt(((x - pi) ** 2).mean()) for x in (masses, shares))
    assert error < gain * of_counts
    assert masses.max(axis=1).mean() - pi.max(axis=1).mean() < 0.02


def test_masses_of_answers_seen_once_each_are_shares():
    masses = class_masses([0, 0, 0, 0], [0, 0, 0, 1], [1, 1, 1, 1], np.log([1e-9] * 4), shape=(1, 2))
    np.testing.assert_allclose(masses, [[0.75, 0.25]], atol=1e-6)


def test_impossible_masses_are_refused():
    with pytest.raises(ValueError, match=r"logprob\[1\] is NaN"):
        class_masses([0, 0], [0, 1], [1, 1], [-1.0, np.nan], shape=(1, 2))
    with pytest.raises(ValueError, match="question 0 have a total mass of 2"):
        class_masses([0, 0], [0, 1], [1, 1], [0.0, 0.0], shape=(1, 2))
    with pytest.raises(ValueError, match="question 1 have a total mass of 0"):
        class_masses([0], [0], [1], [0.0], shape=(2, 2))


def test_every_estimator_has_a_row():
    pi, counts, gold = drawn(300, 20, 1)
    curve = m_curve(
        ClassTable.of_arrays(counts, gold), repeats=4, resampling=Resampling(bootstrap=20, null_draws=20, seed=0)
    )
    left_out = np.broadcast_to(np.stack([pi.max(axis=1)] * 3 + [np.ones(len(pi))], axis=-1)[:, None], (*pi.shape, 4))
    table = replace(ClassTable.of_arrays(counts, gold, masses=pi), left_out=left_out)
    rows = estimates(table, curve=curve, resampling=Resampling(bootstrap=50, null_draws=20))
    by_name = {r.estimator: r for r in rows}
    assert list(by_name) == ["plug-in", "split-half", "by mass", "M to infinity"]
    assert by_name["by mass"].confidence == pytest.approx(pi.max(axis=1).mean())
    assert by_name["split-half"].confidence < by_name["plug-in"].confidence
    assert by_name["plug-in"].signed_gap_low < by_name["plug-in"].signed_gap < by_name["plug-in"].signed_gap_high
    assert np.isnan(by_name["split-half"].p_value)
    few = Resampling(bootstrap=10, null_draws=10)
    assert len(estimates(ClassTable.of_arrays(counts, gold), curve=curve, resampling=few)) == 3
