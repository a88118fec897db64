"""Two styles in quarters of their questions by KL gap."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.compare.by_gap import PARTS, ByGap, Quarter, by_gap, parts
from semcal.calibration.inference.paired import Difference
from semcal.calibration.resampling import Resampling
from semcal.semantics.class_table import ClassTable

K, M = 6, 50


def answered(seed: int, *, n: int = 400, off: float = 0.0) -> tuple[Any, pd.Series]:
    """A run on n questions of graded flatness and what a predictor that knows nothing misses of its samples; `off` is
    the power to which a model raises the chances that gold answers are drawn from, 0 for a calibrated one."""
    rng = np.random.default_rng(seed)
    law = np.stack([rng.dirichlet(np.full(K, a)) for a in np.geomspace(0.1, 3, n)])  # [question, class]
    gold_law = law ** np.where(np.arange(n) < n / 2, 1 + off, 1.0)[:, None]  # off where the answer is sure
    gold_law /= gold_law.sum(axis=1, keepdims=True)
    counts = rng.multinomial(M, law)
    order = np.argsort(-counts, axis=1, kind="stable")
    drawn = np.array([rng.choice(K, p=p) for p in gold_law])
    ids = tuple(f"q{i}" for i in range(n))
    table = ClassTable(
        questions=ids,
        groups=np.array(ids),
        classes=tuple(tuple(f"c{k}" for k in row) for row in order),
        counts=np.take_along_axis(counts, order, axis=1),
        masses=None,
        seen_mass=np.full(n, np.nan),
        gold=order == drawn[:, None],
        unparsed=np.full(n, -1),
    )
    calibration = SimpleNamespace(null_draws=60, resampling=lambda seed: Resampling(bootstrap=20, seed=seed))
    run = SimpleNamespace(
        cell=SimpleNamespace(calibration=calibration, seed=0),
        table=table,
        questions=pd.DataFrame({"group": ids}, index=pd.Index(ids)),
    )
    share = counts / M
    missed = np.where(counts > 0, share * np.log(np.where(counts > 0, share, 1.0) * K), 0.0).sum(axis=1)
    return run, pd.Series(missed, index=list(ids))


def quarters(first: tuple[Any, pd.Series], second: tuple[Any, pd.Series]) -> ByGap:
    found = by_gap(first[0], second[0], "linear", (first[1], second[1]))
    assert found is not None
    return found


def test_whole_groups_are_sorted_by_their_mean():
    gaps = np.array([0.1, 9.0, 0.3, 0.2, 5.0, 4.0, 7.0, 8.0])
    group = ["a", "a", "b", "b", "c", "c", "d", "d"]
    assert [own.tolist() for own in parts(gaps, group)] == [[2, 3], [4, 5], [0, 1], [6, 7]]


def test_the_run_with_the_larger_gap_sorts_and_every_question_is_in_one_quarter():
    first, second = answered(0), answered(1)
    found = quarters(first, (second[0], second[1] + 1.0))
    assert found.sorted_by == "second"
    assert [q.n for q in found.quarters] == [100] * PARTS
    harder = [q.gaps[1] for q in found.quarters]
    assert harder == sorted(harder)
    assert np.mean(harder) == pytest.approx(second[1].mean() + 1.0)
    assert quarters((first[0], first[1] + 2.0), second).sorted_by == "first"


def test_a_run_that_is_off_where_its_gap_is_large_is_off_there_alone():
    found = quarters(answered(0), (answered(1, off=-0.8)[0], answered(1)[1] + 1.0))
    assert found.quarters[-1].excess.b > 0.1
    assert found.quarters[-1].holm < 0.01
    assert found.told(("concise", "cot"), 0.95).endswith("it rises with the gap, as the theory expects")
    assert abs(found.quarters[0].excess.b) < 0.03


def planted(raised: list[float], sorted_by: str = "second", error: float = 0.01) -> ByGap:
    """Quarters with gaps of 1 to 4 nats in the harder run, whose excess minus that of the other is `raised`."""

    def quarter(gap: float, up: float) -> Quarter:
        ends = (0.0, up) if sorted_by == "second" else (up, 0.0)
        gaps = (0.1, gap) if sorted_by == "second" else (gap, 0.1)
        return Quarter(100, gaps, Difference(*ends, -1.0, 1.0, error, 50, 1.0), 1.0)

    return ByGap("linear", sorted_by, tuple(map(quarter, (1.0, 2.0, 3.0, 4.0), raised)))


@pytest.mark.parametrize("sorted_by", ["first", "second"])
def test_the_trend_is_told_whichever_way_it_goes(sorted_by):
    names = ("cot", "concise") if sorted_by == "first" else ("concise", "cot")
    rising, level = [0.1, 0.2, 0.3, 0.4], [0.1] * 4
    up, down, flat = (planted(raised, sorted_by) for raised in (rising, rising[::-1], level))
    assert up.trend.estimate == pytest.approx(0.1)
    assert up.trend.standard_error == pytest.approx(0.01 / np.sqrt(5))  # the gaps are 1.5, 0.5, ... from their mean
    assert up.trend.freedom == pytest.approx(49 * 25 / (2 * (1.5**4 + 0.5**4)))
    assert up.told(names, 0.95) == (
        "the excess of cot minus that of concise goes from +0.100 in the first quarter to +0.400 in the last, by "
        "+0.100 [+0.091, +0.109] per nat of the KL gap of cot (p < 0.001): it rises with the gap, as the theory expects"
    )
    assert down.trend.estimate == pytest.approx(-0.1)
    assert down.told(names, 0.95).endswith("(p < 0.001): it falls as the gap rises, against the theory")
    assert "(p 1.000): no trend is shown" in flat.told(names, 0.95)
    for raised, sign in ((rising, "is as the theory expects"), (rising[::-1], "is against the theory")):
        said = planted(raised, sorted_by, error=0.3).told(names, 0.95)
        assert said.endswith(f": no trend is shown, and its sign {sign}")


@pytest.mark.long
def test_sorting_a_calibrated_run_by_its_own_samples_makes_no_error():
    drawn = [quarters(answered(2 * seed), answered(2 * seed + 1)) for seed in range(12)]
    means = np.mean([[q.excess.b for q in own.quarters] for own in drawn], axis=0)
    assert np.abs(means).max() < 0.02
    shown = ["no trend" not in found.told(("concise", "cot"), 0.95) for found in drawn]
    assert sum(shown) <= 2  # of size 5 %, more than 2 of 12 in 2 of 100 cases


def test_few_questions_are_not_divided():
    first, second = answered(0, n=79), answered(1, n=79)
    assert by_gap(first[0], second[0], "linear", (first[1], second[1])) is None
