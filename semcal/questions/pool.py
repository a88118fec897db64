"""The project's own exemplars, for datasets without worked solutions: general knowledge, written in every style."""

from collections.abc import Iterable
from functools import lru_cache
from importlib.resources import files

import yaml

from semcal.questions.question import POOL, Question
from semcal.questions.wording import bare_text


@lru_cache(maxsize=1)
def pool() -> tuple[Question, ...]:
    """28 questions of general knowledge, each with a concise answer, a full sentence and a chain of thought.

    The data are `exemplars.yaml` in this folder. None of them is ever evaluated.
    """
    entries = yaml.safe_load(files("semcal.questions").joinpath("exemplars.yaml").read_text(encoding="utf-8"))
    return tuple(
        Question(
            id=POOL + entry["id"],
            text=entry["question"],
            answers=tuple(entry["answers"]),
            worked={"concise": entry["answers"][0], "sentence": entry["sentence"], "cot": entry["cot"]},
        )
        for entry in entries
    )


def unasked(evaluated: Iterable[str]) -> tuple[Question, ...]:
    """The questions of the pool whose text none of the evaluated questions has, given as `bare_text` writes them."""
    texts = set(evaluated)
    return tuple(q for q in pool() if bare_text(q.text) not in texts)
