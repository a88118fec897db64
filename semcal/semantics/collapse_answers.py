"""From answers as sampled to their class table, by any collapsing function B."""

import inspect
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Protocol, TypeAlias

from semcal.errors import UserError
from semcal.questions.question import CONTINUATION, Dataset, Question
from semcal.semantics.class_table import ClassTable
from semcal.semantics.collapsing.collapse import Collapse, Collapsed
from semcal.semantics.collapsing.custom import Custom
from semcal.semantics.collapsing.exact_match import ExactMatch


class _Answer(Protocol):
    """What matters of a `semcal.models.checkpoint.Answer`."""

    @property
    def text(self) -> str: ...

    @property
    def count(self) -> int | None: ...

    @property
    def logprob(self) -> float | None: ...

    @property
    def finish(self) -> str: ...


AnyAnswer: TypeAlias = _Answer | tuple[str, int] | str
AnyB: TypeAlias = Collapse | Callable[..., str | None]


def collapse(
    questions: Dataset | Sequence[Question],
    answers: Sequence[Iterable[AnyAnswer]],
    b: AnyB | None = None,
    *,
    style: str = "concise",
    aliases: Mapping[str, str] | None = None,
) -> ClassTable:
    """The semantic classes of sampled answers, how often each was sampled, and which are correct.

    >>> question = semcal.Question(id="q", text="Capital of France?", answers=("Paris",))
    >>> table = semcal.collapse([question], [["Paris.", "paris", "Lyon", "Paris"]])
    >>> table.classes[0], table.counts.tolist(), table.gold.tolist()
    (('paris', 'lyon'), [[3, 1]], [[True, False]])
    >>> first_letter = lambda question, text: text.strip()[:1].lower() or None
    >>> semcal.collapse([question], [["Paris.", "Prague", "Lyon"]], first_letter).classes[0]
    ('p', 'l')

    Args:
        questions: What was asked, with gold answers.
        answers: [question] the distinct answers that `sample` returned, or (text, count) pairs, or texts.
        b: None for normalised exact match; an object with a method `collapse` (see `Collapse`); or a function of
            (question, text) or (question, text, style) to a label, or to None if the text holds no answer. Gold
            answers go through it, too.
        style: How the answers were asked for: "concise", "sentence", "cot" or "continuation".
        aliases: surface form → class of a closed answer space, for exact match; None takes those of the dataset.

    Returns:
        A table in the order of `questions`. Class masses are estimated where every answer has a log-probability.

    Raises:
        UserError: lengths that differ, a question without answers, numbers of samples that differ, labels that are not
            text, or gold answers that B cannot read.
    """
    if isinstance(questions, Dataset):
        aliases = questions.aliases if aliases is None else aliases
        questions = questions.questions
    if len(questions) != len(answers):
        raise UserError(f"expected one list of answers per question, got {len(answers)} for {len(questions)} questions")
    given = [[_parts(answer) for answer in found] for found in answers]
    _check_samples(questions, given)
    texts = [[readable(text, finish, style) for text, _, _, finish in found] for found in given]
    found = _as_collapse(b, aliases or {}).collapse(questions, texts, style)
    _check_labels(questions, found)
    classes = [collapsed.classes for collapsed in found]
    counts = [[count for _, count, _, _ in some] for some in given]
    logprobs = [[logprob for _, _, logprob, _ in some] for some in given]
    ids, groups, gold = [q.id for q in questions], [q.group for q in questions], [c.gold for c in found]
    return ClassTable.of_answers(ids, groups, classes, counts, gold).with_masses(classes, counts, logprobs)


def readable(text: str, finish: str, style: str) -> str:
    """The text of an answer as B may read it: a continuation that was cut may end within a word, which is dropped."""
    return re.sub(r"\S+$", "", text) if style == CONTINUATION and finish == "length" else text


_Parts = tuple[str, int, float | None, str]  # text, count, log-probability, finish


def _parts(answer: AnyAnswer) -> _Parts:
    if isinstance(answer, str):
        return answer, 1, None, "stop"
    if isinstance(answer, tuple):
        text, count = answer
        return text, int(count), None, "stop"
    if answer.count is None:
        raise UserError("enumerated answers have no counts; collapse takes sampled ones")
    return answer.text, answer.count, answer.logprob, answer.finish


def _check_samples(questions: Sequence[Question], given: Sequence[Sequence[_Parts]]) -> None:
    totals = [sum(count for _, count, _, _ in found) for found in given]
    for question, total in zip(questions, totals, strict=True):
        if total != totals[0] or not total:
            raise UserError(
                f"question {question.id!r} has {total} answers and {questions[0].id!r} has {totals[0]}; expected the "
                "same number of samples, at least one, for every question"
            )


def _as_collapse(b: AnyB | None, aliases: Mapping[str, str]) -> Collapse:
    if b is None:
        return ExactMatch(aliases)
    if hasattr(b, "collapse"):
        return b  # pyright: ignore[reportReturnType]
    if not callable(b):
        raise UserError(
            f"b is a {type(b).__name__}; expected a function of (question, text), or an object with collapse"
        )
    try:
        inspect.signature(b).bind(None, None, None)
    except TypeError:
        return Custom("b", lambda question, text, _: b(question, text))
    return Custom("b", b)  # pyright: ignore[reportArgumentType]


def _check_labels(questions: Sequence[Question], found: Sequence[Collapsed]) -> None:
    for question, collapsed in zip(questions, found, strict=True):
        wrong = next((x for x in (*collapsed.classes, *collapsed.gold) if not isinstance(x, str) or not x), None)
        if wrong is not None:
            raise UserError(f"question {question.id!r}: b returned {wrong!r}; expected a non-empty text or None")
    if unread := [q.id for q, collapsed in zip(questions, found, strict=True) if not collapsed.gold]:
        more = f" and {len(unread) - 5} more" if len(unread) > 5 else ""
        raise UserError(f"b finds no label in the gold answers of {', '.join(unread[:5])}{more}; choose another b")
