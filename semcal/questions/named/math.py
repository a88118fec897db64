"""MATH-500 and OpenMathInstruct-2: problems and answers in LaTeX, with solutions written out."""

import hashlib

from semcal.questions.question import Question
from semcal.questions.rows import Row


def math500(row: Row) -> Question:
    """A row of the original JSONL or the Hub: problem, solution, answer, unique_id (and subject, level)."""
    answer = row.text("answer")
    return row.question(
        id=row.text("unique_id"),
        text=row.text("problem"),
        answers=(answer,),
        worked={"cot": _worked(row.text("solution"), answer)},
    )


def openmathinstruct2(row: Row) -> Question:
    """A row of the JSONL or the Hub: problem, generated_solution, expected_answer (and problem_source).

    A problem is listed once for each of its solutions. Its id is a hash of its text, so that rows of one problem share
    an id in every split and slice.
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
