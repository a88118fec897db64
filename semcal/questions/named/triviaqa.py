"""TriviaQA: trivia whose answers have many aliases."""

import re

from semcal.questions.question import Question
from semcal.questions.rows import Row


def triviaqa(row: Row) -> Question:
    """A row of the CSV (question, answer as aliases joined by "; "), the official JSON or the Hub.

    Raises:
        UserError: a column is missing, or the row is of a test split, whose answers are not published.
    """
    answer = row.value("answer", "Answer")
    if isinstance(answer, str):
        answers = _plainest_first(answer.split("; "))
    elif isinstance(answer, dict):
        entry = Row({name.lower(): value for name, value in answer.items()}, f"{row.where}: answer", row.number)
        answers = (entry.text("value"), *(entry.texts("aliases") if "aliases" in entry.values else ()))
    else:
        raise row.error(f"column 'answer' must hold aliases, got {type(answer).__name__}")
    if answers[0] == "<unk>":
        raise row.error("the answers of the test split are not published; use the validation split")
    own_id = {"question_id", "QuestionId"} & set(row.values)
    return row.question(
        id=row.text(*own_id) if own_id else f"triviaqa-{row.number:05d}",
        text=row.text("question", "Question"),
        answers=tuple(dict.fromkeys(answers)),
    )


def _plainest_first(aliases: list[str]) -> tuple[str, ...]:
    """The aliases, which the CSV lists in no order, with the one that exemplars should show in front.

    That is the one whose words occur in most of the others (Farthing, not "Farthing (coin)"), then the shortest.
    """
    words = [set(re.findall(r"\w+", alias.lower())) for alias in aliases]
    spread = [sum(own <= other for other in words) if own else -1 for own in words]
    best = min(range(len(aliases)), key=lambda i: (-spread[i], len(words[i]), i))
    return (aliases[best], *aliases[:best], *aliases[best + 1 :])
