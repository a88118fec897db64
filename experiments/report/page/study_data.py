"""What the page of a study lets its reader compare: runs that answered the same questions, question by question.

Draws nothing. Texts of a dataset's questions are stored once, whichever runs were asked them.
"""

from collections.abc import Sequence
from typing import Any

from experiments.config.study import Cell
from experiments.report.page.embedded import cut, digits
from semcal.runs.run import WITHOUT_TEXTS, Run

_SHOWN = 300  # characters of a question
_CLASS = 80  # characters of a class
VARIED = ("models", "styles", "B", "checkpoints")


def study_data(rows: Sequence[tuple[Cell, Run]], links: Sequence[str]) -> dict[str, Any]:
    """Runs, the questions of each dataset, and the sets of runs that differ in one thing; `sets` is empty where there
    is nothing to compare.

    Args:
        rows: Scored runs. Those that were kept without their texts are left out.
        links: Of the page of each run.
    """
    linked = [(cell, run, link) for (cell, run), link in zip(rows, links, strict=True)]
    known = [row for row in linked if not row[1].manifest().get(WITHOUT_TEXTS)]
    sets = sets_of([cell for cell, _, _ in known])
    if not sets:
        return {"runs": [], "questions": {}, "sets": []}
    tables = [run.table() for _, run, _ in known]
    questions: dict[str, dict[str, tuple[str, str]]] = {}
    for (cell, _, _), table in zip(known, tables, strict=True):
        asked = questions.setdefault(cell.dataset.name, {})
        for question, text, gold in table[["question_id", "text", "gold"]].itertuples(index=False):
            asked.setdefault(question, (text, gold))
    runs = [
        {"link": link, "dataset": cell.dataset.name, "step": cell.model.step}
        | _answers(table.set_index("question_id").reindex(list(questions[cell.dataset.name])))
        for (cell, _, link), table in zip(known, tables, strict=True)
    ]
    asked = {
        name: {
            "id": list(of),
            "text": [cut(text, _SHOWN) for text, _ in of.values()],
            "gold": [cut(gold, _CLASS) for _, gold in of.values()],
        }
        for name, of in questions.items()
    }
    return {"runs": runs, "questions": asked, "sets": sets}


def _answers(table: Any) -> dict[str, list[Any]]:
    """Top class, confidence and correctness of each question; None where the run was not asked it."""
    return {
        "answer": [None if not isinstance(label, str) else cut(label, _CLASS) for label in table["top_class"]],
        "confidence": list(map(digits, table["confidence"])),
        "correct": list(map(digits, table["correct"])),
    }


def sets_of(cells: Sequence[Cell]) -> list[dict[str, Any]]:
    """Sets of at least two runs of one dataset that differ in one thing: their name, what varies, the number of each
    run and what it is called within the set."""
    varied = {
        "models": lambda c: (c.dataset.name, c.style, c.semantics.label),
        "styles": lambda c: (c.dataset.name, c.model.name, c.semantics.label),
        "B": lambda c: (c.dataset.name, c.model.name, c.style),
    }
    called = {"models": lambda c: c.model.name, "styles": lambda c: c.style, "B": lambda c: c.semantics.label}
    several_b = len({cell.semantics.label for cell in cells}) > 1
    found = []
    for what, key in varied.items():
        groups: dict[tuple[str, ...], list[int]] = {}
        for number, cell in enumerate(cells):
            groups.setdefault(key(cell), []).append(number)
        for shared, numbers in groups.items():
            if len(numbers) < 2:
                continue
            steps = [cells[number].model.step for number in numbers]
            along = what == "models" and all(step is not None for step in steps)
            if along:
                numbers = sorted(numbers, key=lambda number: cells[number].model.step or 0)
            words = shared if several_b or what == "B" else shared[:2]
            found.append(
                {"name": " · ".join(words), "varied": "checkpoints" if along else what, "runs": numbers}
                | {"called": [called[what](cells[number]) for number in numbers]}
            )
    return found
