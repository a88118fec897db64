"""NQ-open: questions that people typed into a search engine."""

from semcal.questions.question import Question
from semcal.questions.rows import Row


def nq_open(row: Row) -> Question:
    """A row of the original JSONL or the Hub (question, answer as a list), or of a CSV (answers joined by "; ").

    The annotators' answers need not mean the same, so all but the first become `others`.
    """
    answers = row.values["answer"].split("; ") if isinstance(row.value("answer"), str) else row.texts("answer")
    distinct: dict[str, str] = {}
    for answer in answers:
        distinct.setdefault(answer.strip().casefold(), answer)
    first, *others = distinct.values() or ("",)
    return row.question(
        id=f"nq-open-{row.number:05d}",
        text=row.text("question"),
        answers=(first,),
        others=tuple((other,) for other in others),
    )
