"""A user's own B by import path, and the contract that every B must keep."""

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from semcal.errors import UserError
from semcal.questions.question import Question
from semcal.semantics.class_table import UNPARSED
from semcal.semantics.collapsing.collapse import Collapse, Pointwise

Function = Callable[[Question, str, str], "str | None"]
_REFERENCE_STYLE = "concise"


@dataclass(frozen=True)
class Custom(Pointwise):
    """A function from (question, text, style) to the name of a class, or to None if the text holds no answer.

    The dataset's own answers go through it as concise texts. Its name contains a hash of the source of its module, so
    that results of two versions are not mixed.
    """

    path: str
    function: Function

    @property
    def name(self) -> str:
        source = inspect.getsourcefile(self.function)
        digest = hashlib.sha256(Path(source).read_bytes()).hexdigest()[:8] if source else "no-source"
        return f"custom({self.path})/{digest}"

    def of_text(self, question: Question, text: str, style: str) -> str:
        label = self.function(question, text, style)
        return UNPARSED if label is None else label

    def of_reference(self, question: Question, answer: str) -> str:
        return self.of_text(question, answer, _REFERENCE_STYLE)


def load_custom(path: str) -> Collapse:
    """The B behind `module:name`: a function as in `Custom`, or an object with the methods of `Collapse`.

    Raises:
        UserError: no such module or name, or neither a function nor such an object.
    """
    module, colon, name = path.partition(":")
    if not colon:
        raise UserError(f"semantics: {path!r} is not an import path; expected module:name")
    sys.path.insert(0, str(Path.cwd()))  # find a module in the current folder
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(
            f"semantics: cannot import {path!r} ({error}); expected module:name that Python can import"
        ) from None
    finally:
        sys.path.pop(0)
    if hasattr(found, "collapse") and hasattr(found, "name"):
        return found
    if not callable(found):
        raise UserError(f"semantics: {path!r} must be a function, or an object with name and collapse")
    return Custom(path, found)  # pyright: ignore[reportArgumentType]


def check_contract(
    collapse: Collapse, questions: Sequence[Question], texts: Sequence[Sequence[str]], style: str
) -> None:
    """Check the contract of a B on some answers: total, deterministic, independent of order, gold never unparsed.

    Raises:
        UserError: naming what was violated, and by which question.
    """
    first = collapse.collapse(questions, texts, style)
    again = collapse.collapse(questions, texts, style)
    backward = collapse.collapse(questions, [list(reversed(own)) for own in texts], style)
    for question, own, one, two, three in zip(questions, texts, first, again, backward, strict=True):
        where = f"semantics {collapse.name}: question {question.id!r}"
        if len(one.classes) != len(own) or not all(isinstance(k, str) and k for k in one.classes):
            raise UserError(f"{where}: every answer needs a class, as text; return one, or None for unparsed")
        if one != two:
            raise UserError(f"{where}: two passes over the same answers differ; B must be deterministic")
        if one.classes != three.classes[::-1] or one.gold != three.gold:
            raise UserError(f"{where}: classes depend on the order of the answers; B must not")
        if UNPARSED in one.gold:
            raise UserError(f"{where}: unparsed is among the gold classes; an unreadable answer is never correct")


def unreadable_gold(collapse: Collapse, questions: Sequence[Question]) -> list[str]:
    """Ids of the questions without a single gold answer that has a class."""
    found = collapse.collapse(questions, [[] for _ in questions], _REFERENCE_STYLE)
    return [q.id for q, own in zip(questions, found, strict=True) if not own.gold]
