"""What is measured of an intervention: differences that are there, none that are not, and ranks among random ones."""

from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest

from probes.interventions.effects import FAMILY, against_random, effect, gold_loss, total_variation
from semcal.semantics.collapsing.collapse import UNPARSED
from semcal.semantics.distribution import ClassDistribution

GOLD = frozenset({"a"})


def of(**counts: int) -> ClassDistribution:
    return ClassDistribution.of(counts.keys(), counts.values(), GOLD)


def test_total_variation_is_the_share_that_moves():
    assert total_variation(of(a=5, b=5), of(a=5, b=5)) == 0
    assert total_variation(of(a=10), of(b=10)) == 1
    assert total_variation(of(a=6, b=4), of(a=3, c=7)) == pytest.approx(0.7)
    assert total_variation(of(a=3, c=7), of(a=6, b=4)) == pytest.approx(0.7)


def test_the_loss_is_that_of_the_gold_classes_and_finite_where_none_was_sampled():
    assert gold_loss(of(a=10)) == pytest.approx(-math.log(10.5 / 11))
    assert gold_loss(of(b=10)) == pytest.approx(-math.log(0.5 / 11))
    unread = ClassDistribution.of([UNPARSED], [10], frozenset({UNPARSED}))
    assert gold_loss(unread) == gold_loss(of(b=10))


def test_answers_left_alone_show_no_effect():
    rng = np.random.default_rng(0)
    base = [of(a=k, b=20 - k) for k in rng.integers(1, 20, 60).tolist()]
    found = effect(base, base, [str(i // 2) for i in range(60)], draws=50, null_draws=50, seed=0)
    assert found["n"] == 60
    for name, value in found.items():
        if name.startswith(("tv", "d_")):
            assert value == 0, name


def test_certainty_in_the_wrong_class_shows_in_every_figure():
    base, sure = [of(a=12, b=8)] * 40, [of(b=19, a=1)] * 40
    found = effect(base, sure, [str(i) for i in range(40)], draws=0, null_draws=50, seed=0)
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


def test_p_values_count_the_controls_of_the_same_family_alone():
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
