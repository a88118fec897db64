"""From a list of questions to a Dataset: duplicates, exemplars, and the choice of n."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from semcal.errors import UserError
from semcal.questions.question import Dataset, Question
from semcal.seeds import keyed_generator


def build(
    name: str,
    questions: Sequence[Question],
    *,
    n: int | None,
    exemplars: int,
    seed: int,
    aliases: Mapping[str, str] | None = None,
    continuation: bool = False,
) -> Dataset:
    """Shuffle by seed, set `exemplars` questions aside, keep n of the others.

    Exemplars never share a group or a normalised text with an evaluated question. A record that stands twice, letter
    for letter, is kept once.

    Raises:
        UserError: one id with two texts; fewer questions than n asks for.
    """
    by_id: dict[str, Question] = {}
    for question in questions:
        known = by_id.setdefault(question.id, question)
        if known != question:
            raise UserError(
                f"{name}: id {question.id!r} is two questions ({known.text[:40]!r} and {question.text[:40]!r}); "
                "give each its own id"
            )
    pool = list(by_id.values())
    order = keyed_generator(seed, name, "order").permutation(len(pool))
    shuffled = [pool[i] for i in order]
    aside = shuffled[:exemplars]
    shown = {_bare(q.text) for q in aside} | {q.group for q in aside}
    rest = [q for q in shuffled[exemplars:] if _bare(q.text) not in shown and q.group not in shown]
    if n is not None and len(rest) < n:
        raise UserError(f"{name}: n is {n}, but beside {len(aside)} exemplars there are only {len(rest)} questions")
    if not rest:
        raise UserError(f"{name}: no question is left to evaluate beside {len(aside)} exemplars")
    return Dataset(name, tuple(rest[:n]), tuple(aside), aliases or {}, continuation)


def _bare(text: str) -> str:
    return re.sub(r"\W+", " ", text).casefold().strip()
