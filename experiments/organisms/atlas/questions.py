"""Questions about atlas to evaluate a model on, and what is true of each."""

from __future__ import annotations

from experiments.organisms.atlas.text import answer, ask
from experiments.organisms.atlas.world import MAX_STOPS, RELATIONS, Fact, Person, Route, World
from semcal.errors import UserError
from semcal.questions import STYLES, Question
from semcal.seeds import keyed_generator


def atlas_questions(world: World, family: str, n: int, *, seed: int) -> list[Question]:
    """n distinct questions of a family, drawn as training text draws them, so nearly in distribution.

    Nearly, because a question that is drawn again is drawn anew: what is asked most often is a little rarer here.

    A stranger who is asked about is one that no training text names. The gold answer is one written answer, drawn anew.
    Questions about one person share a group, and so do those about one line from one town.
    """
    limit = len(world.lines) * len(world.towns) * MAX_STOPS // 2  # drawing the rest would take too long
    if family == "routes" and n > limit:
        raise UserError(f"atlas has not enough routes for {n} distinct questions; ask at most {limit}")
    rng = keyed_generator(seed, "atlas", str(world.seed), family)
    questions: dict[str, Question] = {}
    while len(questions) < n:
        query = world.draw_fact(rng, unseen=True) if family == "facts" else world.draw_route(rng)
        if (key := query_id(query)) in questions:
            continue
        klass = world.draw_answer(query, rng)
        questions[key] = Question(
            id=key,
            text=ask(world, query),
            answers=world.surfaces[klass],
            group=key.rsplit("-", 1)[0],
            worked={style: answer(world, query, klass, style, rng) for style in STYLES},
        )
    return list(questions.values())


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
