"""A user's own B by import path, and the contract that every B must keep."""

import hashlib
import importlib
import inspect
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from semcal.errors import UserError
from semcal.questions.question import BlindQuestion, Question
from semcal.semantics.class_table import UNPARSED
from semcal.semantics.collapsing.collapse import Collapse, Pointwise, collapse_blind

Function = Callable[[BlindQuestion, str, str], "str | None"]
PARTS = ("name", "partition", "match")  # of an object that is a B
_REFERENCE_STYLE = "concise"


@dataclass(frozen=True)
class Custom(Pointwise):
    """A function from (question, text, style) to the name of a class, or to None if the text holds no answer.

    The question has id, text, group and choices; a function that reads its gold answers is refused. The dataset's own
    answers go through it as concise texts. Its name contains a hash of the source of its module, so that results of two
    versions are not mixed.
    """

    path: str
    function: Function

    @property
    def name(self) -> str:
        source = inspect.getsourcefile(self.function)
        digest = hashlib.sha256(Path(source).read_bytes()).hexdigest()[:8] if source else "no-source"
        return f"custom({self.path})/{digest}"

    def of_text(self, question: BlindQuestion, text: str, style: str) -> str:
        try:
            label = self.function(question, text, style)
        except AttributeError as error:
            if error.obj is not question:
                raise
            raise UserError(
                f"semantics custom({self.path}) reads question.{error.name}, but B must not see which answer is right; "
                "use id, text, group and choices only"
            ) from None
        return UNPARSED if label is None else label

    def of_reference(self, question: BlindQuestion, answer: str) -> str:
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
    if all(hasattr(found, part) for part in PARTS):
        return found
    if not callable(found):
        raise UserError(f"semantics: {path!r} must be a function, or an object with {', '.join(PARTS)}")
    return Custom(path, found)  # pyright: ignore[reportArgumentType]


def check_contract(
    collapse: Collapse, questions: Sequence[Question], texts: Sequence[Sequence[str]], style: str
) -> None:
    """Check the contract of a B on some answers: total, deterministic, independent of order, gold never unparsed, and
    the same partition if gold answers change places among the questions.

    Raises:
        UserError: naming what was violated, and by which question.
    """
    # A B that keeps what it is shown as gold would use it in its next pass, so other gold comes before its own.
    passes = [
        collapse_blind(collapse, asked, texts, style)
        for asked in (_gold_moved_on(questions), questions, questions, questions)
    ]
    backward = collapse_blind(collapse, questions, [list(reversed(own)) for own in texts], style)
    for question, own, moved, shown, one, two, three in zip(questions, texts, *passes, backward, strict=True):
        where = f"semantics {collapse.name}: question {question.id!r}"
        if len(one.classes) != len(own) or not all(isinstance(k, str) and k for k in one.classes):
            raise UserError(f"{where}: every answer needs a class, as text; return one, or None for unparsed")
        if one != two:
            raise UserError(f"{where}: two passes over the same answers differ; B must be deterministic")
        if not moved.classes == shown.classes == one.classes:
            raise UserError(f"{where}: classes depend on the gold answers; B must not know which answer is right")
        if one.classes != three.classes[::-1] or one.gold != three.gold:
            raise UserError(f"{where}: classes depend on the order of the answers; B must not")
        if UNPARSED in one.gold:
            raise UserError(f"{where}: unparsed is among the gold classes; an unreadable answer is never correct")


def _gold_moved_on(questions: Sequence[Question]) -> list[Question]:
    """The questions, each with the gold answers of the one before."""
    moved = [*questions[-1:], *questions[:-1]]
    return [
        replace(q, answers=gold.answers, others=gold.others, incorrect=gold.incorrect)
        for q, gold in zip(questions, moved, strict=True)
    ]


def unreadable_gold(collapse: Collapse, questions: Sequence[Question]) -> list[str]:
    """Ids of the questions without a single gold answer that has a class."""
    found = collapse_blind(collapse, questions, [[] for _ in questions], _REFERENCE_STYLE)
    return [q.id for q, own in zip(questions, found, strict=True) if not own.gold]
