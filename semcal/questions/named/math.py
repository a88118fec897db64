"""MATH-500 and OpenMathInstruct-2: problems and answers in LaTeX, with solutions written out."""

from __future__ import annotations

import hashlib

from semcal.questions.question import Question
from semcal.questions.rows import Row


def math500(row: Row) -> Question:
    """The original JSONL and the Hub agree: problem, solution, answer, unique_id (and subject, level).

    Raises:
        UserError: another column.
    """
    answer = row.text("answer")
    return row.question(
        id=row.text("unique_id"),
        text=row.text("problem"),
        answers=(answer,),
        worked={"cot": _worked(row.text("solution"), answer)},
    )


def openmathinstruct2(row: Row) -> Question:
    """The JSONL and the Hub agree: problem, generated_solution, expected_answer (and problem_source).

    A problem stands there once for each of its solutions, so its id is made of its text: rows of one id are one
    problem, in every split and every slice.

    Raises:
        UserError: another column.
    """
    problem, answer = row.text("problem"), row.text("expected_answer")
    digest = hashlib.blake2b(" ".join(problem.split()).encode(), digest_size=8).hexdigest()
    return row.question(
        id=f"openmathinstruct2-{digest}",
        text=problem,
        answers=(answer,),
        worked={"cot": _worked(row.text("generated_solution"), answer)},
    )


def _worked(solution: str, answer: str) -> str:
    return f"{solution.strip()} The answer is ${answer}$."
