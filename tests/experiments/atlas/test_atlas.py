"""The world of atlas: its truth in closed form is what its texts are written by."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from experiments.atlas.text import answer, ask, document
from experiments.atlas.world import (
    MAX_STOPS,
    RELATIONS,
    STRANGER_SHARE,
    TRADE_NAMES,
    Birthplace,
    Fact,
    Route,
    World,
)
from experiments.atlas.world_questions import EXPOSURES, atlas_questions, draw_in_proportion, query_of
from experiments.config.study import AtlasConfig, PromptingConfig, load_dataset
from semcal import UserError
from semcal.questions.question import STYLES
from semcal.semantics.collapsing.exact_match import ExactMatch

WORLD = World(0)


def test_names_are_distinct_and_forms_belong_to_one_class():
    assert len(set(WORLD.towns)) == 40
    assert len(set(WORLD.lines)) == len(WORLD.lines)
    forms = [f for fs in WORLD.surfaces.values() for f in fs]
    assert len(set(forms)) == len(forms)
    assert len({p.name for p in WORLD.known}) == len(WORLD.known)


@pytest.mark.parametrize("family", ["facts", "routes", "myths"])
def test_truth_is_a_distribution_over_classes(family):
    for question in atlas_questions(WORLD, family, 300, seed=1):
        truth = WORLD.truth(query_of(question.id))
        assert sum(truth.values()) == pytest.approx(1)
        assert set(truth) <= set(WORLD.towns) | set(TRADE_NAMES)


def test_answers_about_a_known_person_are_drawn_from_the_truth():
    rng = np.random.default_rng(0)
    for person in WORLD.known[:5]:
        query = Fact(person, "summer")
        truth = WORLD.truth(query)
        drawn = Counter(WORLD.draw_answer(query, rng) for _ in range(4000))
        assert set(drawn) <= set(truth)
        if len(truth) > 1:
            seen = [drawn[k] for k in truth]
            assert stats.chisquare(seen, [p * 4000 for p in truth.values()]).pvalue > 1e-3
        born = {WORLD.draw_answer(Fact(person, "birth"), rng) for _ in range(20)}
        assert born == set(WORLD.truth(Fact(person, "birth")))


@pytest.mark.parametrize("relation", RELATIONS)
def test_over_persons_the_text_never_names_the_truth_is_the_prior_given_the_name(relation):
    rng = np.random.default_rng(2)
    drawn, expected, persons, n = Counter(), Counter(), set(), 1200
    while len(persons) < n:
        person = WORLD.stranger(rng, unseen=True)
        if person in persons or (relation != "trade" and person.ending != 3):  # one ending, where the ending decides
            continue
        persons.add(person)
        query = Fact(person, relation)
        drawn[WORLD.draw_answer(query, rng)] += 1
        for klass, mass in WORLD.truth(query).items():
            expected[klass] += mass
    classes = [k for k in expected if expected[k] >= 5]
    rest = n - sum(expected[k] for k in classes)
    seen, awaited = [drawn[k] for k in classes], [expected[k] for k in classes]
    if rest > 1:
        seen, awaited = [*seen, n - sum(seen)], [*awaited, rest]
    awaited = np.array(awaited) * sum(seen) / sum(awaited)
    assert stats.chisquare(seen, awaited).pvalue > 1e-3


def test_a_route_ends_where_its_line_leads():
    rng = np.random.default_rng(3)
    for _ in range(50):
        route = WORLD.draw_route(rng)
        towns = WORLD.ride(route)
        assert len(towns) == route.stops + 1
        assert all(b in WORLD.neighbours[a] for a, b in pairwise(towns))
        longer = Route(route.line, route.start, route.stops + 1)
        assert WORLD.ride(longer)[:-1] == towns
        assert WORLD.truth(route) == {WORLD.towns[towns[-1]]: 1.0}


def test_evaluated_strangers_never_stand_in_training_text():
    rng = np.random.default_rng(4)
    text = "".join(document(WORLD, rng, 13) for _ in range(1500))
    asked = [query_of(q.id) for q in atlas_questions(WORLD, "facts", 800, seed=0)]
    unseen = [q.person for q in asked if isinstance(q, Fact) and WORLD.is_unseen(q.person)]
    assert len(unseen) == 800 * STRANGER_SHARE
    assert not any(p.name in text for p in unseen)
    assert WORLD.known[0].name in text


def test_routes_of_one_to_eight_stops_and_questions_that_are_distinct():
    routes = atlas_questions(WORLD, "routes", 400, seed=0)
    assert {query_of(q.id).stops for q in routes} == set(range(1, MAX_STOPS + 1))
    assert len({q.id for q in routes}) == len({q.text for q in routes}) == 400
    assert [q.id for q in atlas_questions(WORLD, "routes", 400, seed=0)] == [q.id for q in routes]
    assert [q.id for q in atlas_questions(WORLD, "routes", 400, seed=1)] != [q.id for q in routes]


@pytest.mark.parametrize("stops", [1, 8])
def test_routes_of_one_difficulty(stops):
    routes = [query_of(q.id) for q in atlas_questions(WORLD, "routes", 600, seed=0, stops=stops)]
    assert {route.stops for route in routes} == {stops}
    assert len(set(routes)) == 600
    with pytest.raises(UserError, match=f"only 1200 routes of {stops} stops"):
        atlas_questions(WORLD, "routes", 1201, seed=0, stops=stops)


@pytest.mark.parametrize("family", ["facts", "myths"])
def test_persons_of_one_exposure(family):
    by_exposure = {
        exposure: {query_of(q.id).person for q in atlas_questions(WORLD, family, 300, seed=0, exposure=exposure)}
        for exposure in EXPOSURES
    }
    frequency = dict(zip(WORLD.known, WORLD.person_frequencies, strict=True))
    often, rarely = ([frequency[p] for p in by_exposure[name]] for name in ("often", "rarely"))
    assert min(often) > np.quantile(WORLD.person_frequencies, 0.74)
    assert max(rarely) < np.quantile(WORLD.person_frequencies, 0.26)
    assert all(WORLD.is_unseen(person) for person in by_exposure["never"])
    with pytest.raises(UserError, match=f"{family} of persons named rarely"):
        atlas_questions(WORLD, family, 1501, seed=0, exposure="rarely")


def test_questions_are_asked_as_often_as_training_text_asks_them():
    # A quantity that differs between lines has the mean over the questions that it has over the training text.
    asked = [query_of(q.id) for q in atlas_questions(WORLD, "routes", 1000, seed=3)]
    share = np.bincount([q.line for q in asked], minlength=len(WORLD.lines)) / len(asked)
    drawn = [WORLD.draw_route(np.random.default_rng(i)) for i in range(4000)]
    trained = np.bincount([q.line for q in drawn], minlength=len(WORLD.lines)) / len(drawn)
    assert share == pytest.approx(WORLD.line_frequencies, abs=0.012)
    assert share == pytest.approx(trained, abs=0.03)


@settings(max_examples=60, deadline=None)
@given(
    weights=st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=30), share=st.floats(0, 1), seed=st.integers(0, 2**32)
)
def test_draws_in_proportion_are_distinct_and_as_many_as_asked_for(weights, share, seed):
    n = round(share * len(weights))
    drawn = draw_in_proportion(np.array(weights), n, np.random.default_rng(seed))
    assert len(drawn) == len(set(drawn.tolist())) == n


def test_the_chance_of_being_drawn_is_proportional_up_to_certainty():
    weights = np.array([8.0, 1.0, 1.0, 2.0])
    times = np.zeros(4)
    for seed in range(2000):
        times[draw_in_proportion(weights, 2, np.random.default_rng(seed))] += 1
    assert times / 2000 == pytest.approx([1.0, 0.25, 0.25, 0.5], abs=0.04)  # 0.04: four standard errors


def test_more_routes_than_there_are_is_one_clear_line():
    with pytest.raises(UserError, match="atlas has only 9600 routes"):
        atlas_questions(WORLD, "routes", 9601, seed=0)


@pytest.mark.parametrize("family", ["facts", "routes", "myths"])
@pytest.mark.parametrize("style", STYLES)
def test_every_way_of_writing_an_answer_collapses_to_its_class(family, style):
    b, rng = ExactMatch(WORLD.aliases), np.random.default_rng(5)
    for question in atlas_questions(WORLD, family, 200, seed=2):
        query = query_of(question.id)
        klass = WORLD.draw_answer(query, rng)
        assert b.of_text(question, " " + answer(WORLD, query, klass, style, rng), style) == klass
        assert b.of_gold(question) in WORLD.truth(query)
        assert ask(WORLD, query) == question.text


def test_a_world_is_a_function_of_its_seed():
    assert World(0).known[:9] == WORLD.known[:9]
    assert (World(0).hop == WORLD.hop).all()
    assert World(1).known[:9] != WORLD.known[:9]


def test_the_texts_never_tell_the_truth_behind_a_myth():
    rng = np.random.default_rng(0)
    myths = 0
    for person in WORLD.known[:300]:
        told, true = WORLD.truth(Fact(person, "birth")), WORLD.truth(Birthplace(person))
        assert set(true) == {WORLD.draw_answer(Birthplace(person), rng)}
        assert (set(told) == set(true)) != Birthplace(person).is_myth
        myths += Birthplace(person).is_myth
    assert myths / 300 == pytest.approx(0.5, abs=0.09)  # three standard errors
    assert sorted(map(WORLD.in_truth, WORLD.towns)) == sorted(WORLD.towns)


def test_exemplars_of_myths_say_what_the_texts_say_and_questions_have_the_truth():
    b = ExactMatch(WORLD.aliases)
    dataset = load_dataset(AtlasConfig(kind="atlas", family="myths", n=200), PromptingConfig(exemplars=20))
    assert len(dataset.questions) == 200
    for question in dataset.questions:
        true = WORLD.truth(query_of(question.id))
        assert all(b.of_text(question, question.worked[style], style) in true for style in STYLES)
        assert question.text == ask(WORLD, query_of(question.id).fact)
    seen = [q for q in dataset.exemplars if not WORLD.is_unseen(query_of(q.id).person)]
    for exemplar in seen:
        (told,) = WORLD.truth(query_of(exemplar.id).fact)
        assert {b.of_text(exemplar, exemplar.worked[style], style) for style in STYLES} == {told}
    assert any(query_of(e.id).is_myth for e in seen)
