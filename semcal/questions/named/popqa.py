"""PopQA: questions about facts in Wikidata; the answer is one entity with its aliases."""

import json
from dataclasses import replace

from semcal.questions.question import Question
from semcal.questions.rows import Row


def popqa(row: Row) -> Question:
    """A row of the original TSV or the Hub (possible_answers as JSON), or of FlashRAG's JSONL (golden_answers).

    The first answer is the label of the object, followed by its own aliases. Other possible answers belong to other
    objects of the same relation (a song has several genres) and become `others`. Questions about one subject share a
    group.

    Raises:
        UserError: a column is missing, or o_aliases or possible_answers is not a JSON list.
    """
    if isinstance(row.values.get("metadata"), dict):
        row = replace(row, values=row.values["metadata"] | row.values)
    for column in ("o_aliases", "possible_answers"):
        if isinstance(row.values.get(column), str):
            row = replace(row, values=row.values | {column: _listed(row, column)})
    possible = row.texts("possible_answers", "golden_answers")
    own = row.texts("o_aliases") if "o_aliases" in row.values else possible
    answers = tuple(dict.fromkeys((row.text("obj"), *own)))
    return row.question(
        id=f"popqa-{row.text('id')}",
        text=row.text("question"),
        answers=answers,
        others=tuple((other,) for other in dict.fromkeys(possible) if other not in answers),
        group=f"popqa-subject-{row.text('subj_id')}",
    )


def _listed(row: Row, column: str) -> object:
    try:
        return json.loads(row.values[column])
    except json.JSONDecodeError as error:
        raise row.error(f"column {column!r} is not a JSON list ({error.msg} at column {error.colno})") from None
