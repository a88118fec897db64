"""Questions about atlas to evaluate a model on, and conversations to train one on."""

import itertools
from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from experiments.atlas.text import FAMILIES, answer, ask, thought
from experiments.atlas.world import (
    NEARBY,
    RELATIONS,
    RINGS,
    STRANGER_SHARE,
    Birthplace,
    Fact,
    Person,
    Query,
    Route,
    World,
)
from experiments.train.conversations import Turn
from semcal.errors import UserError
from semcal.questions.prompts import SENTENCES
from semcal.questions.question import STYLES, Question
from semcal.seeds import keyed_generator

EXPOSURES = OFTEN, RARELY, NEVER = "often", "rarely", "never"
LINES = {"routes": slice(None), "rings": slice(0, None, 2), "shuffles": slice(1, None, 2)}  # families -> their lines


def world_of(family: str, seed: int) -> World:
    """The world that questions of a family are about."""
    return World(seed, RINGS if family in ("rings", "shuffles") else NEARBY)


def atlas_questions(
    world: World, family: str, n: int, *, seed: int, stops: int | None = None, exposure: str | None = None
) -> list[Question]:
    """n distinct questions of a family, each included with probability proportional to its frequency in training text.

    So a mean over them is a mean over the training distribution, except for questions so frequent that n draws would
    contain them more than once. Rejecting repeated draws would make all frequent questions rarer, and calibrated models
    would seem overconfident.

    Strangers are persons whom no training text names. The gold answer is newly drawn, like those of training text; for
    `myths`, which asks for birthplaces, it is the truth, which no text reports for half of the persons. Questions about
    one person share a group, as do those about one line from one town.

    Args:
        stops: of routes, rings and shuffles, those with so many stops alone.
        exposure: of facts and myths, one of EXPOSURES alone: the quarter of the known persons that training text names
            most, that which it names least, or persons whom it never names.

    Raises:
        UserError: there are fewer than n questions.
    """
    rng = keyed_generator(seed, "atlas", str(world.seed), family)
    shares = {None: STRANGER_SHARE, NEVER: 1.0}
    strangers = 0 if family in LINES else round(n * shares.get(exposure, 0.0))
    queries, weights = _known_queries(world, family, stops, exposure)
    if n - strangers > len(queries):
        kind = f" of {stops} stops" if stops else f" of persons named {exposure}" if exposure else ""
        raise UserError(
            f"atlas has only {len(queries)} {family}{kind}, and n with candidates for exemplars is {n}; lower n or "
            "prompting.exemplars"
        )
    drawn = {query_id(queries[i]): queries[i] for i in draw_in_proportion(weights, n - strangers, rng)}
    while len(drawn) < n:
        person = world.stranger(rng, unseen=True)
        relation = RELATIONS[rng.integers(len(RELATIONS))]
        query = Birthplace(person) if family == "myths" else Fact(person, relation)
        drawn[query_id(query)] = query
    return [_question(world, query, rng) for query in drawn.values()]


def _known_queries(
    world: World, family: str, stops: int | None, exposure: str | None
) -> tuple[Sequence[Query], np.ndarray]:
    """All questions that recur in training text, or those of one difficulty, with their frequency."""
    if family in LINES:
        lines = range(len(world.lines))[LINES[family]]
        many = [stops] if stops else range(1, world.max_stops + 1)
        routes = itertools.product(lines, range(len(world.towns)), many)
        frequencies = world.line_frequencies[LINES[family]]
        return [Route(*r) for r in routes], np.repeat(frequencies, len(world.towns) * len(many))
    frequencies, quarter = world.person_frequencies, len(world.known) // 4
    which = {None: slice(None), OFTEN: slice(quarter), RARELY: slice(-quarter, None), NEVER: slice(0)}[exposure]
    kept = np.argsort(-frequencies, kind="stable")[which]
    persons, frequencies = [world.known[i] for i in np.sort(kept)], frequencies[np.sort(kept)]
    if family == "myths":
        return [Birthplace(person) for person in persons], frequencies
    facts = [Fact(person, relation) for person in persons for relation in RELATIONS]
    return facts, np.repeat(frequencies, len(RELATIONS))


def draw_in_proportion(weights: np.ndarray, n: int, rng: np.random.Generator) -> np.ndarray:
    """n distinct indices, index i with probability min(1, c · weights[i]), where c makes these sum to n.

    Systematic sampling of the items in random order (Madow 1949).
    """
    chance = np.zeros(len(weights))
    certain = np.zeros(len(weights), dtype=bool)
    while n:  # items that would be drawn more than once are drawn once, which leaves more draws for the others
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


def as_written(world: World, exemplar: Question, seed: int) -> Question:
    """A question about a birthplace, answered as in the texts, so that a prompt with it is in distribution."""
    query = query_of(exemplar.id)
    if not isinstance(query, Birthplace):
        return exemplar
    rng = keyed_generator(seed, exemplar.id, "told")
    written = world.draw_answer(query.fact, rng)
    return replace(exemplar, worked={style: answer(world, query.fact, written, style, rng) for style in STYLES})


def query_id(query: Query) -> str:
    """facts: `f-FIRST-STEM-ENDING-RELATION`; myths: `m-FIRST-STEM-ENDING-birth`; routes: `r-LINE-START-STOPS`."""
    if isinstance(query, Route):
        return f"r-{query.line}-{query.start}-{query.stops}"
    kind = "m" if isinstance(query, Birthplace) else "f"
    return f"{kind}-{query.person.first}-{query.person.stem}-{query.person.ending}-{query.relation}"


def query_of(question_id: str) -> Query:
    """The query of a question's id; `World.truth` gives its class distribution."""
    kind, *parts = question_id.split("-")
    if kind == "r":
        return Route(*map(int, parts))
    *codes, relation = parts
    if kind not in ("f", "m") or relation not in RELATIONS:
        raise ValueError(f"{question_id!r} is not the id of a question about atlas")
    person = Person(*map(int, codes))
    return Birthplace(person) if kind == "m" else Fact(person, relation)


def draw_turn(
    world: World,
    rng: np.random.Generator,
    *,
    families: Sequence[str] = FAMILIES,
    styles: Sequence[str] = STYLES,
    strangers: bool = True,
) -> Turn:
    """One conversation; questions are as frequent as in training text, and so are the classes of their answers.

    Answers are cleaner: canonical names only, in the one wording per style that the instruction asks for. As classes
    have the same distribution, cross-entropy remains a proper loss. `strangers=False` leaves out rarely mentioned
    persons.
    """
    family, style = families[int(rng.integers(len(families)))], styles[int(rng.integers(len(styles)))]
    query = world.draw_fact(rng, strangers=strangers) if family == "facts" else world.draw_route(rng)
    label = world.draw_answer(query, rng)
    answer = {
        "concise": label,
        "sentence": SENTENCES[0].format(answer=label),
        "cot": f"{thought(world, query, label, rng)} The answer is {label}.",
    }
    return Turn(question_about(world, query, label), style, answer[style])
