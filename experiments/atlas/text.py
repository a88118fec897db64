"""The text of atlas: questions, answers in three styles, and documents; knows no tokenizer and no model.

A document is a sequence of questions and answers of one family in one style, formatted like `semcal.questions.prompts`,
so that prompts with exemplars are in distribution for a model trained on it.
"""

import numpy as np

from experiments.atlas.world import MATERIAL, REGIONS, TOWNS_PER_REGION, Query, Route, World
from semcal.questions.prompts import ANSWER, QUESTION, SEPARATOR
from semcal.questions.question import STYLES

FAMILIES = ("facts", "routes")
SURFACE_SHARES = (0.7, 0.15, 0.15)
QUESTIONS = {
    "birth": "Where was {name} born?",
    "trade": "What is the trade of {name}?",
    "summer": "Where does {name} spend the summer?",
}
SENTENCES = {
    "birth": ("{name} was born in {answer}.", "{name} comes from {answer}."),
    "trade": ("{name} works as {answer}.", "{name} is known as {answer}."),
    "summer": ("{name} spends the summer in {answer}.", "{name} goes to {answer}."),
    "route": ("You are in {answer}.", "You get off at {answer}."),
}


def ask(world: World, query: Query) -> str:
    """The text of a query."""
    if isinstance(query, Route):
        stops = f"{query.stops} stop{'s' if query.stops > 1 else ''}"
        return f"{world.lines[query.line]} line from {world.towns[query.start]}, {stops} on?"
    return QUESTIONS[query.relation].format(name=query.person.name)


def answer(world: World, query: Query, label: str, style: str, rng: np.random.Generator) -> str:
    """One way to write that the answer is `label`: surface form and wording are drawn from `rng`."""
    surface = world.surfaces[label][np.searchsorted(np.cumsum(SURFACE_SHARES), rng.random())]
    if style == "concise":
        return surface
    if style == "sentence":
        relation, name = ("route", "") if isinstance(query, Route) else (query.relation, query.person.name)
        wording = SENTENCES[relation][rng.integers(len(SENTENCES[relation]))]
        return wording.format(name=name, answer=surface)
    return f"{thought(world, query, label, rng)} The answer is {surface}."


def thought(world: World, query: Query, label: str, rng: np.random.Generator) -> str:
    """The chain of thought before the answer `label`: every stop of a route, the region or the material."""
    if isinstance(query, Route):
        return ", ".join(world.towns[t] for t in world.noted(query, rng)) + "."
    if query.relation == "trade":
        return f"{query.person.name} works with {MATERIAL[label]}."
    region = REGIONS[world.towns.index(label) // TOWNS_PER_REGION]
    return f"{query.person.name} {'is from' if query.relation == 'birth' else 'goes to'} the {region}."


def document(world: World, rng: np.random.Generator, n: int) -> str:
    """n questions and answers of one family in one style, as in training text."""
    return document_of(world, rng, n, FAMILIES[rng.integers(len(FAMILIES))], STYLES[rng.integers(len(STYLES))])


def document_of(world: World, rng: np.random.Generator, n: int, family: str, style: str) -> str:
    """n questions and answers of this family in this style, with the frequencies of training text."""
    parts = []
    for _ in range(n):
        query = world.draw_fact(rng) if family == "facts" else world.draw_route(rng)
        written = answer(world, query, world.draw_answer(query, rng), style, rng)
        parts.append(f"{QUESTION}{ask(world, query)}\n{ANSWER} {written}{SEPARATOR}")
    return "".join(parts)
