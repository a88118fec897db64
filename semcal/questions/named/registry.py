"""The named datasets: how each is read, where it lies on the Hub, and which semantics suits it."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from semcal.errors import UserError, nearest
from semcal.questions.named.gsm8k import gsm8k
from semcal.questions.named.math import math500, openmathinstruct2
from semcal.questions.named.nq_open import nq_open
from semcal.questions.named.popqa import popqa
from semcal.questions.named.simpleqa import simpleqa
from semcal.questions.named.triviaqa import triviaqa
from semcal.questions.named.truthfulqa import truthfulqa, truthfulqa_mc
from semcal.questions.question import Question
from semcal.questions.rows import Row, hub_rows, read_rows

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Named:
    """A named dataset.

    Attributes:
        question: From a row, of the original file as of the Hub, to a Question.
        hub: Repository id, configuration (None for the only one) and split to evaluate.
        semantics: The collapsing function that suits its answers.
    """

    question: Callable[[Row], Question]
    hub: tuple[str, str | None, str]
    semantics: Literal["exact", "numeric", "choice"]


NAMED: dict[str, Named] = {
    "gsm8k": Named(gsm8k, ("openai/gsm8k", "main", "test"), "numeric"),
    "math500": Named(math500, ("HuggingFaceH4/MATH-500", None, "test"), "numeric"),
    "openmathinstruct2": Named(openmathinstruct2, ("nvidia/OpenMathInstruct-2", None, "train_1M"), "numeric"),
    "triviaqa": Named(triviaqa, ("mandarjoshi/trivia_qa", "rc.nocontext", "validation"), "exact"),
    "simpleqa": Named(simpleqa, ("basicv8vc/SimpleQA", None, "test"), "exact"),
    "simpleqa-verified": Named(simpleqa, ("google/simpleqa-verified", None, "eval"), "exact"),
    "truthfulqa": Named(truthfulqa, ("truthfulqa/truthful_qa", "generation", "validation"), "exact"),
    "truthfulqa-mc": Named(truthfulqa_mc, ("truthfulqa/truthful_qa", "multiple_choice", "validation"), "choice"),
    "nq-open": Named(nq_open, ("google-research-datasets/nq_open", None, "validation"), "exact"),
    "popqa": Named(popqa, ("akariasai/PopQA", None, "test"), "exact"),
}


def read_named(
    kind: str, path: Path | None, *, split: str | None = None, revision: str | None = None
) -> list[Question]:
    """The questions of a named dataset, in the order of its rows.

    Rows of one id and one text are one question: the first is kept, and how many were left out is logged.

    Args:
        kind: A key of `NAMED`.
        path: The dataset's original file; None to read it from the Hub.
        split: Of the Hub, as `datasets` reads it ("train[:1000]"); the usual one to evaluate if it is left out.
        revision: Of the Hub: branch, tag or commit.

    Raises:
        UserError: no such dataset, a file that is missing or not in its format, the Hub out of reach.
    """
    if kind not in NAMED:
        raise UserError(f"no dataset {kind!r}{nearest(kind, NAMED)}; the named ones are {', '.join(NAMED)}")
    if path is not None and (split or revision):
        raise UserError(f"{kind}: split and revision are of the Hub, and path is {path}; give one or the other")
    named = NAMED[kind]
    hub, config, usual = named.hub
    rows = read_rows(path) if path is not None else hub_rows(hub, config, split=split or usual, revision=revision)
    return _once(kind, map(named.question, rows))


def _once(kind: str, questions: map[Question]) -> list[Question]:
    kept: dict[tuple[str, str], Question] = {}
    repeats = 0
    for question in questions:
        first = kept.setdefault((question.id, " ".join(question.text.split())), question)
        repeats += first is not question
    if repeats:
        logger.warning("%s: %d rows repeat a question and are left out, %d are kept", kind, repeats, len(kept))
    return list(kept.values())
