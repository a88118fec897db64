"""Questions about atlas to evaluate a model on, and what is true of each."""

from __future__ import annotations

import itertools

import numpy as np

from experiments.organisms.atlas.text import answer, ask
from experiments.organisms.atlas.world import MAX_STOPS, RELATIONS, STRANGER_SHARE, Fact, Person, Route, World
from semcal.errors import UserError
from semcal.questions import STYLES, Question
from semcal.seeds import keyed_generator


def atlas_questions(world: World, family: str, n: int, *, seed: int) -> list[Question]:
    """n distinct questions of a family, each with the chance of being asked that training text gives it.

    So a mean over them is a mean over the training distribution. Only what is asked so often that n draws would hold it
    more than once is a little rarer here. Drawing one after the other and leaving out what came before would make all
    that is asked often rarer, and a calibrated model would seem overconfident.

    A stranger who is asked about is one that no training text names. The gold answer is one written answer, drawn anew.
    Questions about one person share a group, and so do those about one line from one town.

    Raises:
        UserError: there are not so many questions.
    """
    rng = keyed_generator(seed, "atlas", str(world.seed), family)
    strangers = round(n * STRANGER_SHARE) if family == "facts" else 0
    queries, weights = _known_queries(world, family)
    if n - strangers > len(queries):
        raise UserError(f"atlas has only {len(queries)} {family}, and n with the exemplars is {n}; lower n")
    asked = {query_id(queries[i]): queries[i] for i in draw_in_proportion(weights, n - strangers, rng)}
    while len(asked) < n:
        query = Fact(world.stranger(rng, unseen=True), RELATIONS[rng.integers(len(RELATIONS))])
        asked[query_id(query)] = query
    return [_question(world, key, query, rng) for key, query in asked.items()]


def _known_queries(world: World, family: str) -> tuple[list[Fact] | list[Route], np.ndarray]:
    """All questions that training text asks again and again, with how often."""
    if family == "routes":
        routes = itertools.product(range(len(world.lines)), range(len(world.towns)), range(1, MAX_STOPS + 1))
        return [Route(*r) for r in routes], np.repeat(world.line_frequencies, len(world.towns) * MAX_STOPS)
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


def _question(world: World, key: str, query: Fact | Route, rng: np.random.Generator) -> Question:
    klass = world.draw_answer(query, rng)
    return Question(
        id=key,
        text=ask(world, query),
        answers=world.surfaces[klass],
        group=key.rsplit("-", 1)[0],
        worked={style: answer(world, query, klass, style, rng) for style in STYLES},
    )


def query_id(query: Fact | Route) -> str:
    """facts: `f-FIRST-STEM-ENDING-RELATION`; routes: `r-LINE-START-STOPS`."""
    if isinstance(query, Route):
        return f"r-{query.line}-{query.start}-{query.stops}"
    person = query.person
    return f"f-{person.first}-{person.stem}-{person.ending}-{query.relation}"


def query_of(question_id: str) -> Fact | Route:
    """The query behind a question's id, so that `World.truth` can be asked for any evaluated question."""
    kind, *parts = question_id.split("-")
    if kind == "r":
        return Route(*map(int, parts))
    *codes, relation = parts
    if kind != "f" or relation not in RELATIONS:
        raise ValueError(f"{question_id!r} is no question about atlas")
    return Fact(Person(*map(int, codes)), relation)
