"""Calibration from exact class masses."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from semcal.calibration.measures.smece import smece
from semcal.calibration.nulls.null import null_of_twins
from semcal.calibration.nulls.twins import exact_chances
from semcal.calibration.resampling import Resampling
from semcal.calibration.summary import calibrate
from semcal.semantics.class_table import ClassTable
from semcal.semantics.confidence import confidences_of_masses


def world(n: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Class masses [n, 4] and gold classes drawn from them: a model calibrated by construction."""
    rng = np.random.default_rng(seed)
    masses = rng.dirichlet([1.0] * 4, size=n)
    return masses, np.array([rng.choice(4, p=p) for p in masses])


def test_many_samples_lead_to_the_exact_figures():
    masses, gold = world(400, 0)
    rng = np.random.default_rng(1)
    counts = np.stack([rng.multinomial(200_000, p) for p in masses])
    exact = calibrate(
        ClassTable.of_arrays(gold=gold, masses=masses), resampling=Resampling(bootstrap=20, null_draws=50)
    )
    drawn = calibrate(ClassTable.of_arrays(counts, gold), resampling=Resampling(bootstrap=20, null_draws=50))
    for name in ("smece", "confidence", "accuracy", "signed_gap", "brier", "null_mean"):
        assert getattr(exact, name) == pytest.approx(getattr(drawn, name), abs=5e-3), name
    assert (exact.m, exact.unexplored) == (None, pytest.approx(0))
    assert np.isnan(exact.split_half_gap)


@pytest.mark.long
def test_the_p_value_of_a_calibrated_model_is_uniform():
    p = []
    for seed in range(200):
        masses, gold = world(150, seed)
        found = confidences_of_masses(masses, gold)
        null = null_of_twins(exact_chances(found.plug_in), null_draws=99, seed=seed)
        p.append(null.p_value(smece(found.plug_in, found.correct)))
    assert stats.kstest(p, "uniform").pvalue > 1e-3


def test_unexplored_mass_is_reported_and_an_empty_row_is_never_right():
    found = confidences_of_masses([[0.6, 0.2], [0.0, 0.0]], [0, 0])
    assert found.plug_in.tolist() == [0.6, 0.0]
    assert found.correct.tolist() == [1.0, 0.0]
    result = calibrate(
        ClassTable.of_arrays(gold=[0, 1], masses=[[0.6, 0.2], [0.5, 0.5]]),
        resampling=Resampling(bootstrap=10, null_draws=10),
    )
    assert result.unexplored == pytest.approx(0.1)


@pytest.mark.parametrize("masses", [[[0.7, 0.5]], [[-0.1, 0.5]], [0.5], [[np.nan, 0.1]]])
def test_invalid_masses_are_refused(masses):
    with pytest.raises(ValueError, match="masses"):
        confidences_of_masses(masses, [0])
