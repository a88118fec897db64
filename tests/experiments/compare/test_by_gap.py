"""Two styles in quarters of their questions by KL gap."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest

from experiments.compare.by_gap import PARTS, ByGap, by_gap, parts
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
    assert abs(found.quarters[0].excess.b) < 0.03


@pytest.mark.long
def test_sorting_a_calibrated_run_by_its_own_samples_makes_no_error():
    drawn = [quarters(answered(2 * seed), answered(2 * seed + 1)).quarters for seed in range(12)]
    means = np.mean([[q.excess.b for q in own] for own in drawn], axis=0)
    assert np.abs(means).max() < 0.02


def test_few_questions_are_not_divided():
    first, second = answered(0, n=79), answered(1, n=79)
    assert by_gap(first[0], second[0], "linear", (first[1], second[1])) is None
