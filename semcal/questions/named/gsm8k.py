"""GSM8K: school problems in words with solutions that end in an integer."""

import re

from semcal.questions.question import Question
from semcal.questions.rows import Row

_CALCULATOR = re.compile(r"<<.*?>>")


def gsm8k(row: Row) -> Question:
    """A row of the original JSONL or the Hub: question, answer (the solution, then "#### number").

    Raises:
        UserError: a column is missing, or the answer does not end in a number.
    """
    solution, _, number = row.text("answer").rpartition("####")
    number = number.strip()
    if not solution.strip() or not number:
        raise row.error("column 'answer' must hold a solution that ends in '#### number'")
    steps = _CALCULATOR.sub("", solution).strip()
    return row.question(
        id=f"gsm8k-{row.number:05d}",
        text=row.text("question"),
        answers=tuple(dict.fromkeys((number, number.replace(",", "")))),
        worked={"cot": f"{steps} The answer is {number}."},
    )
