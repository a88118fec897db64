"""A user's own B by import path, and the contract that every B is held to."""

from __future__ import annotations

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from semcal.errors import UserError
from semcal.questions.question import Question
from semcal.semantics.collapsing.collapse import UNPARSED, Collapse, Pointwise

Function = Callable[[Question, str, str], "str | None"]
_REFERENCE_STYLE = "concise"


@dataclass(frozen=True)
class Custom(Pointwise):
    """A function of (question, text, style) to the name of a class, or None where the text holds no answer.

    The dataset's own answers go through it as concise texts. Its name carries a hash of its module's source, so that
    results of two versions are not taken for one.
    """

    path: str
    function: Function

    @property
    def name(self) -> str:
        source = inspect.getsourcefile(self.function)
        digest = hashlib.sha256(Path(source).read_bytes()).hexdigest()[:8] if source else "no-source"
        return f"custom({self.path})/{digest}"

    def of_text(self, question: Question, text: str, style: str) -> str:
        klass = self.function(question, text, style)
        return UNPARSED if klass is None else klass

    def of_reference(self, question: Question, answer: str) -> str:
        return self.of_text(question, answer, _REFERENCE_STYLE)


def load_custom(path: str) -> Collapse:
    """The B behind `module:name`: a function as in `Custom`, or an object with the methods of `Collapse`.

    Raises:
        UserError: no such module or name, or it is neither.
    """
    module, colon, name = path.partition(":")
    if not colon:
        raise UserError(f"semantics: {path!r} is no import path; write module:name")
    sys.path.insert(0, str(Path.cwd()))  # a file beside the study
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"semantics: cannot import {path!r} ({error}); write module:name of what Python finds"
        ) from None
    finally:
        sys.path.pop(0)
    if hasattr(found, "collapse") and hasattr(found, "name"):
        return found
    if not callable(found):
        raise UserError(f"semantics: {path!r} is neither a function nor has it name and collapse")
    return Custom(path, found)  # pyright: ignore[reportArgumentType]


def check_contract(
    collapse: Collapse, questions: Sequence[Question], texts: Sequence[Sequence[str]], style: str
) -> None:
    """Hold a B to its contract on some answers: total, deterministic, independent of order, gold in a gold class.

    Raises:
        UserError: naming what it broke, with the question.
    """
    first = collapse.collapse(questions, texts, style)
    again = collapse.collapse(questions, texts, style)
    backward = collapse.collapse(questions, [list(reversed(its)) for its in texts], style)
    for question, its, one, two, three in zip(questions, texts, first, again, backward, strict=True):
        where = f"semantics {collapse.name}: question {question.id!r}"
        if len(one.classes) != len(its) or not all(isinstance(k, str) and k for k in one.classes):
            raise UserError(f"{where}: not every answer has a class that is a text; return one, or None for unparsed")
        if one != two:
            raise UserError(f"{where}: two passes over the same answers differ; it must be deterministic")
        if one.classes != three.classes[::-1] or one.gold != three.gold:
            raise UserError(f"{where}: classes depend on the order of the answers")
        if UNPARSED in one.gold:
            raise UserError(f"{where}: unparsed is among its gold classes; what cannot be read is never correct")


def unreadable_gold(collapse: Collapse, questions: Sequence[Question]) -> list[str]:
    """Ids of the questions none of whose gold answers has a class."""
    found = collapse.collapse(questions, [[] for _ in questions], _REFERENCE_STYLE)
    return [q.id for q, its in zip(questions, found, strict=True) if not its.gold]
