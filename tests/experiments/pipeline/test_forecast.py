"""A forecast is proportional to counted tokens, comes once a model, and never stops a study."""

from __future__ import annotations

import pytest

from experiments.config.study import Study
from experiments.pipeline import forecast
from experiments.pipeline.dry_run import dry_run
from experiments.pipeline.forecast import Forecast, duration, foresee, lines, work
from experiments.pipeline.progress import Reporter
from semcal import Run, UserError


def study(**changes):
    return Study.model_validate(
        {
            "name": "s",
            "output": "nowhere",
            "models": [{"path": "atlas:base", "name": "a"}, {"path": "atlas:sft", "name": "b"}],
            "datasets": [{"kind": "atlas", "family": "facts", "n": 20}, {"kind": "atlas", "family": "routes", "n": 40}],
            "styles": ["concise", "sentence"],
            "probes": {"enabled": False},
            **changes,
        }
    )


@pytest.fixture(scope="module")
def planned():
    return dry_run(study())


def test_a_cell_is_foreseen_from_its_own_part(planned):
    cell = planned[2].cell
    own = foresee(planned, cell, seconds=30.0, share=0.25)[2]
    assert own.seconds == pytest.approx(120.0)
    assert own.measured


def test_cells_are_in_the_ratio_of_their_tokens_and_models_of_their_weights(planned):
    found = foresee(planned, planned[0].cell, seconds=10.0, share=1.0)
    assert len(found) == 8
    for f, p in zip(found, planned, strict=True):
        assert f.seconds / found[0].seconds == pytest.approx(work(p) / work(planned[0]))
        assert f.measured == (p.cell.model.name == "a")
    text = lines(found)
    assert "in all" in text[0]
    assert text[-1].split(": ")[1].startswith("~")


def test_what_is_sampled_already_takes_no_time(planned, monkeypatch):
    saved = {planned[1].cell.folder: 20, planned[2].cell.folder: 30}  # of 20 and of 40
    monkeypatch.setattr(Run, "questions_saved", lambda run: saved.get(str(run.folder), 0))
    found = {f.label: f.seconds for f in foresee(planned, planned[0].cell, seconds=10.0, share=1.0)}
    assert len(found) == 7
    assert "a · atlas-facts · sentence" not in found
    expected = 10.0 * work(planned[2]) / work(planned[0]) / 4
    assert found["a · atlas-routes · concise"] == pytest.approx(expected)
    assert "left in all" in lines(foresee(planned, planned[0].cell, seconds=10.0, share=1.0))[0]


def test_it_is_told_once_a_model_after_a_minute_and_everything_is_passed_on():
    now, told, heard = [0.0], [], []

    class Ears(Reporter):
        def answered(self, questions):
            heard.append(questions)

    watched = Forecast(study(), Ears(), told.append, clock=lambda: now[0])
    cells = study().cells()
    watched.sampling(cells[0], 20, 0)
    now[0] = 59.0
    watched.answered(2)
    assert not told
    now[0] = 61.0
    watched.answered(3)
    assert len(told) == 9
    assert told[1].strip().split(": ")[1] == duration(61.0 * 20 / 5)
    now[0] = 500.0
    watched.answered(1)
    assert len(told) == 9
    watched.sampling(cells[4], 20, 0)  # the other model
    now[0] = 600.0
    watched.answered(5)
    assert len(told) == 18
    assert heard == [2, 3, 1, 5]


def test_questions_in_flight_do_not_make_the_forecast_longer():
    now, told = [0.0], []
    watched = Forecast(study(), Reporter(), told.append, clock=lambda: now[0])
    watched.sampling(study().cells()[0], 20, 0)
    for seconds, answered in ((25.0, 3), (30.0, 7), (61.0, 1)):  # ten together in 30 s, then ten more in flight
        now[0] = seconds
        watched.answered(answered)
    assert told[1].strip().split(": ")[1] == duration(30.0 * 20 / 10)


def test_the_first_of_many_in_flight_is_no_rate():
    now, told = [0.0], []
    watched = Forecast(study(), Reporter(), told.append, clock=lambda: now[0])
    watched.sampling(study().cells()[0], 20, 0)
    for seconds, answered in ((70.0, 1), (75.0, 9)):
        now[0] = seconds
        watched.answered(answered)
        assert bool(told) is (seconds == 75.0)
    assert told[1].strip().split(": ")[1] == duration(75.0 * 20 / 10)


def test_a_slow_model_is_foreseen_from_what_there_is():
    now, told = [0.0], []
    watched = Forecast(study(), Reporter(), told.append, clock=lambda: now[0])
    watched.sampling(study().cells()[0], 20, 0)
    for now[0] in (150.0, 310.0):
        watched.answered(1)
    assert told[1].strip().split(": ")[1] == duration(150.0 * 20)


def test_a_forecast_that_fails_stops_nothing(monkeypatch):
    def fails(_):
        raise UserError("no")

    monkeypatch.setattr(forecast, "dry_run", fails)
    now, told = [0.0], []
    watched = Forecast(study(), Reporter(), told.append, clock=lambda: now[0])
    watched.sampling(study().cells()[0], 20, 0)
    now[0] = 100.0
    watched.answered(5)
    assert not told


@pytest.mark.parametrize(
    ("seconds", "said"), [(41, "41 s"), (600, "10 min"), (5460, "1 h 31 min"), (11100, "3 h 05 min")]
)
def test_durations_in_words(seconds, said):
    assert duration(seconds) == said
