"""A short form of `python -m experiments.bench validity`: the sizes of the tests, on fewer simulated studies."""

from __future__ import annotations

import pytest

from experiments.bench.validity.restatement_cases import (
    ROUNDING,
    accused,
    presence,
    repetition,
    restatement_cases,
    temperature,
)
from experiments.bench.validity.validity_cases import (
    SIZE_LIMIT,
    Planted,
    accepted,
    clopper_pearson,
    rejected,
    rules,
    sizes,
    slow_sizes,
    told_apart,
)

STUDIES = 60


@pytest.mark.long
@pytest.mark.parametrize("planted", [Planted(1.0, 20, 1), Planted(1.0, 50, 0), Planted(0.3, 5, 10)], ids=str)
def test_the_null_by_mass_rejects_calibrated_models_as_seldom_as_it_says(planted):
    hits = sum(rejected(planted, True, study) for study in range(STUDIES))
    assert clopper_pearson(hits, STUDIES)[0] <= SIZE_LIMIT


@pytest.mark.long
@pytest.mark.parametrize("by_mass", [False, True])
def test_gold_shared_within_groups_does_not_reject_more(by_mass):
    hits = sum(rejected(Planted(1.0, 20, 3, group=10), by_mass, study) for study in range(STUDIES))
    assert clopper_pearson(hits, STUDIES)[0] <= SIZE_LIMIT


def test_a_miscalibrated_model_is_rejected():
    assert sum(rejected(Planted(1.0, 50, 10, shift=-0.1), True, study) for study in range(10)) >= 8


@pytest.mark.long
@pytest.mark.parametrize("shift", [-0.05, 0.05])
def test_equivalence_does_not_rule_out_the_error_that_a_model_has(shift):
    hits = sum(accepted(Planted(0.3, 50, 0, shift=shift), study) for study in range(STUDIES))
    assert clopper_pearson(hits, STUDIES)[0] <= SIZE_LIMIT


@pytest.mark.long
def test_a_pair_that_differs_in_wordings_alone_is_not_told_apart():
    hits = sum(told_apart(Planted(1.0, 50, 1), Planted(1.0, 50, 0), study) for study in range(STUDIES))
    assert clopper_pearson(hits, STUDIES)[0] <= SIZE_LIMIT


def test_every_case_has_a_name_of_its_own():
    names = [case[0] for case in (*sizes(), *slow_sizes(), *rules(100), *restatement_cases())]
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("rounding", ROUNDING.values(), ids=list(ROUNDING))
def test_a_faithful_server_is_not_accused_however_it_rounds(rounding):
    """A fixed limit of 0.25 nats accused most of those that compute in bfloat16."""
    assert not any(accused(rounding, lambda logits, _: logits, study) for study in range(20))


@pytest.mark.parametrize("rounding", ROUNDING.values(), ids=list(ROUNDING))
@pytest.mark.parametrize("settings", [presence, repetition, temperature])
def test_settings_are_found_however_a_server_rounds(settings, rounding):
    assert sum(accused(rounding, settings, study) for study in range(10)) >= 8


def test_what_is_forbidden_is_found_where_two_answers_show_it():
    def without_the_likeliest(logits, _):
        return logits - 30.0 * (logits == logits.max())

    assert accused(ROUNDING["fp8"], without_the_likeliest, 0)
