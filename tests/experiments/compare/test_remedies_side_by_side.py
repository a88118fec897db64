"""Remedies beside each other: each on the same questions, with paired changes, and what it costs."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from experiments.compare import remedies_side_by_side
from experiments.compare.remedies_side_by_side import AS_SAMPLED, MAPS, TILTED, explanation, side_by_side
from experiments.config.run_folder import stored_cell
from experiments.report.look_tables import REMEDIES_TOLD
from semcal.calibration.measures.scores import auroc
from semcal.calibration.measures.smece import smece
from semcal.runs.run import Run
from tests.experiments.conftest import questions_in, run_dict, study_of


@pytest.fixture(scope="module")
def run(tmp_path_factory, checkpoint):
    folder = tmp_path_factory.mktemp("remedies")
    study = study_of(checkpoint, questions_in(folder), folder) | {"probes": {"enabled": False}}
    return run_dict(folder, study)[0]


@pytest.fixture
def table(run):
    """The run's answers, some of them right."""
    before = run.class_table()
    return replace(before, gold=np.random.default_rng(0).random(before.gold.shape) < 0.4)


def test_every_remedy_is_compared_on_the_same_questions(run, table, monkeypatch):
    n = len(table.questions)
    rng = np.random.default_rng(1)
    sure, right, of_mode = rng.random(n), (rng.random(n) < 0.5).astype(float), rng.random(n)
    told = pd.DataFrame({"question_id": table.questions, "class": "a", "confidence": sure, "correct": right})
    told = told.assign(confidence_in_mode=of_mode).sample(frac=1, random_state=0)
    monkeypatch.setattr(Run, "probe_predictions", lambda _: told)
    cell = stored_cell(run)
    found, left_out = side_by_side(cell, run, table, table)
    assert not left_out
    rows = {row.remedy: row for row in found}
    assert list(rows) == [AS_SAMPLED, *MAPS, "class probe", "confidence probe", TILTED]
    own = table.by_count
    assert rows[AS_SAMPLED].smece == pytest.approx(smece(own.plug_in, own.correct))
    for name, pair in {"class probe": (sure, right), "confidence probe": (of_mode, own.correct)}.items():
        assert rows[name].smece == pytest.approx(smece(*pair))
        assert rows[name].auroc == pytest.approx(auroc(*pair))  # of the answer that it is about
        assert rows[name].accuracy == pytest.approx(pair[1].mean())
        assert rows[name].passes == 1
    for row in found[1:-1]:
        assert row.change_low < row.change < row.change_high
        assert row.change == pytest.approx(row.smece - rows[AS_SAMPLED].smece)
        assert row.less == pytest.approx(row.smece - rows[TILTED].smece)
    assert rows[TILTED].change == pytest.approx(0)
    assert rows[AS_SAMPLED].passes > table.m
    assert np.isnan(rows[TILTED].passes)  # no half has been asked


def test_a_map_that_cannot_be_fitted_leaves_the_other_rows(run, table):
    wrong = replace(table, gold=np.zeros_like(table.gold))
    found, left_out = side_by_side(stored_cell(run), run, wrong, table)
    assert {row.remedy for row in found}.isdisjoint(MAPS)
    assert {AS_SAMPLED, TILTED} <= {row.remedy for row in found}
    assert len(left_out) == len(MAPS)
    assert "no temperature of the confidence: all answers outside fold 0 are wrong" in left_out[0]


def test_it_is_said_how_much_each_remedy_has_learnt_from(run, table, monkeypatch):
    dealt, recalibrated = [], remedies_side_by_side.recalibrated

    def noted(*args, **settings):
        dealt.append(settings["folds"])
        return recalibrated(*args, **settings)

    monkeypatch.setattr(remedies_side_by_side, "recalibrated", noted)
    found, _ = side_by_side(stored_cell(run), run, table, table)
    assert dealt == [5] * len(MAPS)
    for told in (explanation(run, found, [200, 198], [8_000, 7_900]), REMEDIES_TOLD):
        assert "are fitted on 80 % of the questions" in told
        assert "learns from at most 40 % (one of the halves, less the 20 % of it that it is validated on)" in told
