"""What is measured of an intervention: real differences, no spurious ones, and ranks among random controls."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from probes.interventions.effects import FAMILY, against_random, effect, gold_loss, total_variation
from semcal.calibration.resampling import Resampling
from semcal.semantics.class_table import UNPARSED, ClassTable

GOLD = frozenset({"a"})


def of(*questions: dict[str, int], group: int = 1) -> ClassTable:
    n = len(questions)
    columns = [list(q) for q in questions], [list(q.values()) for q in questions], [GOLD] * n
    return ClassTable.of_answers([str(i) for i in range(n)], [str(i // group) for i in range(n)], *columns)


def test_total_variation_is_the_share_that_moves():
    first = of({"a": 5, "b": 5}, {"a": 10}, {"a": 6, "b": 4}, {"a": 3, "c": 7})
    second = of({"a": 5, "b": 5}, {"b": 10}, {"a": 3, "c": 7}, {"a": 6, "b": 4})
    np.testing.assert_allclose(total_variation(first, second), [0, 1, 0.7, 0.7])


def test_the_loss_is_that_of_the_gold_classes_and_finite_where_none_was_sampled():
    unparsed = ClassTable.of_answers(["q"], ["g"], [[UNPARSED]], [[10]], [frozenset({UNPARSED})])
    np.testing.assert_allclose(gold_loss(of({"a": 10}, {"b": 10})), [-math.log(10.5 / 11), -math.log(0.5 / 11)])
    assert gold_loss(unparsed) == gold_loss(of({"b": 10}))


def test_unchanged_answers_show_no_effect():
    rng = np.random.default_rng(0)
    base = of(*({"a": k, "b": 20 - k} for k in rng.integers(1, 20, 60).tolist()), group=2)
    found = effect(base, base, resampling=Resampling(bootstrap=50, null_draws=50))
    assert found["n"] == 60
    for name, value in found.items():
        if name.startswith(("tv", "d_")):
            assert value == 0, name


def test_certainty_in_the_wrong_class_shows_in_every_figure():
    base, sure = of(*[{"a": 12, "b": 8}] * 40), of(*[{"b": 19, "a": 1}] * 40)
    found = effect(base, sure, resampling=Resampling(null_draws=50), intervals=False)
    assert found["tv"] == pytest.approx(0.55)
    assert found["d_confidence"] == pytest.approx(0.35)
    assert (found["accuracy"], found["d_accuracy"]) == (0, -1)
    assert found["d_signed_gap"] == pytest.approx(1.35)
    assert found["smece"] == pytest.approx(0.95, abs=0.05)
    assert found["d_gold_loss"] == pytest.approx(math.log(12.5 / 1.5))
    assert math.isnan(found["tv_low"])


def rows(control: str, values: list[float], **more: object) -> list[dict]:
    labels = dict.fromkeys(FAMILY, 0) | {"kind": "ablate"} | more
    columns = ("tv", "d_confidence", "d_accuracy", "d_smece", "d_signed_gap", "d_log_loss", "d_gold_loss")
    return [labels | {"control": control, "draw": i} | dict.fromkeys(columns, v) for i, v in enumerate(values)]


def test_p_values_count_only_the_controls_of_the_same_family():
    frame = pd.DataFrame(
        [
            *rows("", [-0.3]),
            *rows("matched", [0.1, -0.3, 0.4, 0.2]),
            *rows("isotropic", [0.0, 0.1]),
            *rows("", [0.5], rank=2),
            *rows("matched", [0.6] * 4, rank=2),
        ]
    )
    once = against_random(frame)
    assert once.loc[0, "p_confidence_matched"] == pytest.approx(3 / 5)  # 0.4, and -0.3 itself, in size
    assert once.loc[0, "p_tv_isotropic"] == pytest.approx(1 / 3)
    second = once.index[(once["rank"] == 2) & (once["control"] == "")][0]
    assert once.loc[second, "p_tv_matched"] == 1
    assert math.isnan(once.loc[second, "p_tv_isotropic"])
    assert once.loc[once["control"] != "", "p_tv_matched"].isna().all()
    pd.testing.assert_frame_equal(against_random(once), once)
