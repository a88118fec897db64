"""PopQA: questions about facts in Wikidata; the answer is one entity with its aliases."""

import json
from dataclasses import replace

from semcal.questions.question import Question
from semcal.questions.rows import Row


def popqa(row: Row) -> Question:
    """A row of the original TSV or the Hub (possible_answers as JSON), or of FlashRAG's JSONL (golden_answers).

    The first answer is the label of the object. Questions about one subject share a group.

    Raises:
        UserError: a column is missing, or possible_answers is not a JSON list.
    """
    if isinstance(row.values.get("metadata"), dict):
        row = replace(row, values=row.values["metadata"] | row.values)
    if isinstance(row.values.get("possible_answers"), str):
        row = replace(row, values=row.values | {"possible_answers": _listed(row)})
    return row.question(
        id=f"popqa-{row.text('id')}",
        text=row.text("question"),
        answers=tuple(dict.fromkeys((row.text("obj"), *row.texts("possible_answers", "golden_answers")))),
        group=f"popqa-subject-{row.text('subj_id')}",
    )


def _listed(row: Row) -> object:
    try:
        return json.loads(row.values["possible_answers"])
    except json.JSONDecodeError as error:
        raise row.error(f"column 'possible_answers' is not a JSON list ({error.msg} at column {error.colno})") from None
