"""Questions about atlas to evaluate a model on, and what is true of each."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from experiments.atlas.text import answer, ask
from experiments.atlas.world import (
    MAX_STOPS,
    RELATIONS,
    STRANGER_SHARE,
    Birthplace,
    Fact,
    Person,
    Query,
    Route,
    World,
)
from semcal.errors import UserError
from semcal.questions.question import STYLES, Question
from semcal.seeds import keyed_generator


def atlas_questions(world: World, family: str, n: int, *, seed: int) -> list[Question]:
    """n distinct questions of a family, each with the chance of being asked that training text gives it.

    So a mean over them is a mean over the training distribution. Only what is asked so often that n draws would hold it
    more than once is a little rarer here. Drawing one after the other and leaving out what came before would make all
    that is asked often rarer, and a calibrated model would seem overconfident.

    A stranger who is asked about is one that no training text names. The gold answer is one written answer, drawn anew;
    of the family `myths`, which asks for birthplaces, it is the truth, which for half of the persons no text tells.
    Questions about one person share a group, and so do those about one line from one town.

    Raises:
        UserError: there are not so many questions.
    """
    rng = keyed_generator(seed, "atlas", str(world.seed), family)
    strangers = 0 if family == "routes" else round(n * STRANGER_SHARE)
    queries, weights = _known_queries(world, family)
    if n - strangers > len(queries):
        raise UserError(f"atlas has only {len(queries)} {family}, and n with the exemplars is {n}; lower n")
    asked = {query_id(queries[i]): queries[i] for i in draw_in_proportion(weights, n - strangers, rng)}
    while len(asked) < n:
        person = world.stranger(rng, unseen=True)
        relation = RELATIONS[rng.integers(len(RELATIONS))]
        query = Birthplace(person) if family == "myths" else Fact(person, relation)
        asked[query_id(query)] = query
    return [_question(world, query, rng) for query in asked.values()]


def _known_queries(world: World, family: str) -> tuple[Sequence[Query], np.ndarray]:
    """All questions that the training text asks repeatedly, with their frequency."""
    if family == "routes":
        routes = itertools.product(range(len(world.lines)), range(len(world.towns)), range(1, MAX_STOPS + 1))
        return [Route(*r) for r in routes], np.repeat(world.line_frequencies, len(world.towns) * MAX_STOPS)
    if family == "myths":
        return [Birthplace(person) for person in world.known], world.person_frequencies
    facts = [Fact(person, relation) for person in world.known for relation in RELATIONS]
    return facts, np.repeat(world.person_frequencies, len(RELATIONS))


def draw_in_proportion(weights: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """n distinct indices, index i with probability min(1, c · weights[i]); c is such that these sum to n.

    Systematic sampling of the items in random order (Madow 1949).
    """
    chance = np.zeros(len(weights))
    certain = np.zeros(len(weights), dtype=bool)
    while n:  # items that would be drawn more than once are drawn once, and leave the others more room
        chance[~certain] = weights[~certain] / weights[~certain].sum() * (n - certain.sum())
        if not (chance[~certain] > 1).any():
            break
        certain |= chance > 1
        chance[certain] = 1.0
    order = rng.permutation(len(weights))
    edges = np.append(0, np.cumsum(chance[order]))
    edges = np.floor(edges * (n / edges[-1] if n else 1) + rng.random() + 1e-9)
    return order[np.diff(edges) > 0]


def _question(world: World, query: Query, rng: np.random.Generator) -> Question:
    label = world.draw_answer(query, rng)
    worked = {style: answer(world, query, label, style, rng) for style in STYLES}
    return replace(question_about(world, query, label), worked=worked)


def question_about(world: World, query: Query, label: str) -> Question:
    """A query whose gold answer is this class."""
    key = query_id(query)
    return Question(key, ask(world, query), world.surfaces[label], group=key.rsplit("-", 1)[0])


def as_told(world: World, exemplar: Question, seed: int) -> Question:
    """A question about a birthplace answered as the texts answer it, so that a prompt with it is in distribution."""
    query = query_of(exemplar.id)
    if not isinstance(query, Birthplace):
        return exemplar
    rng = keyed_generator(seed, exemplar.id, "told")
    told = world.draw_answer(query.told, rng)
    return replace(exemplar, worked={style: answer(world, query.told, told, style, rng) for style in STYLES})


def query_id(query: Query) -> str:
    """facts: `f-FIRST-STEM-ENDING-RELATION`; myths: `m-FIRST-STEM-ENDING-birth`; routes: `r-LINE-START-STOPS`."""
    if isinstance(query, Route):
        return f"r-{query.line}-{query.start}-{query.stops}"
    kind, relation = ("m", "birth") if isinstance(query, Birthplace) else ("f", query.relation)
    return f"{kind}-{query.person.first}-{query.person.stem}-{query.person.ending}-{relation}"


def query_of(question_id: str) -> Query:
    """The query behind a question's id, so that `World.truth` can be asked for any evaluated question."""
    kind, *parts = question_id.split("-")
    if kind == "r":
        return Route(*map(int, parts))
    *codes, relation = parts
    if kind not in ("f", "m") or relation not in RELATIONS:
        raise ValueError(f"{question_id!r} is not the id of a question about atlas")
    person = Person(*map(int, codes))
    return Birthplace(person) if kind == "m" else Fact(person, relation)
