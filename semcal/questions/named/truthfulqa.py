"""TruthfulQA: questions that invite a common mistake, answered freely or by choosing an option."""

from semcal.questions.question import Question
from semcal.questions.rows import Row


def truthfulqa(row: Row) -> Question:
    """Generation, from TruthfulQA.csv or the Hub: the best answer, further correct ones and incorrect ones."""
    best = row.text("Best Answer", "best_answer").strip()
    correct = _several(row, "Correct Answers", "correct_answers")
    return row.question(
        id=f"truthfulqa-{row.number:05d}",
        text=row.text("Question", "question"),
        answers=(best,),
        others=tuple((answer,) for answer in correct if answer != best),
        incorrect=_several(row, "Incorrect Answers", "incorrect_answers"),
    )


def truthfulqa_mc(row: Row) -> Question:
    """Multiple choice with one right option (mc1), from mc_task.json, the Hub or TruthfulQA.csv.

    From the CSV the options are the best answer and the incorrect ones, as in mc_task.json.

    Raises:
        UserError: a column is missing, or not exactly one option is right.
    """
    if "mc1_targets" in row.values:
        targets = row.values["mc1_targets"]
        if not isinstance(targets, dict):
            raise row.error("column 'mc1_targets' must map options to 0 or 1, or have choices and labels")
        if targets.keys() == {"choices", "labels"}:
            targets = dict(zip(targets["choices"], targets["labels"], strict=False))
    else:
        best = row.text("Best Answer", "best_answer").strip()
        targets = {best: 1} | dict.fromkeys(_several(row, "Incorrect Answers", "incorrect_answers"), 0)
    targets = {option.strip(): label for option, label in targets.items() if option.strip()}
    right = tuple(option for option, label in targets.items() if label == 1)
    if len(right) != 1:
        raise row.error(f"'mc1_targets' has {len(right)} right options; expected exactly one")
    return row.question(
        id=f"truthfulqa-mc-{row.number:05d}",
        text=row.text("question", "Question"),
        answers=right,
        choices=tuple(targets),
    )


def _several(row: Row, csv_column: str, hub_column: str) -> tuple[str, ...]:
    """Distinct answers: joined by ";" in the CSV, a list on the Hub."""
    answers = row.text(csv_column).split(";") if csv_column in row.values else row.texts(hub_column, csv_column)
    return tuple(dict.fromkeys(a.strip() for a in answers if a.strip()))
