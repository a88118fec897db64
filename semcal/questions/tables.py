"""Your own questions: JSONL, CSV or Parquet with the fields of a Question as columns."""

import json
from dataclasses import replace
from pathlib import Path

from semcal.questions.question import STYLES, Question
from semcal.questions.rows import Row, read_rows

NEEDED = ("id", "question", "answers")
FIELDS = (*NEEDED, "choices", "group", "incorrect", "others", "worked")
LISTS = ("answers", "choices", "incorrect", "others")


def read_table(path: Path) -> list[Question]:
    """The questions of a file with columns id, question, answers[, group, choices, others, incorrect, worked].

    `answers` are surface forms of one gold answer, the preferred one first. `others` are further correct answers, each
    a text or a list of its forms. `worked` maps a style to the answer written out in that style, for exemplars. A cell
    of a CSV holds a list as JSON, or a single text for a list of one; an empty cell has no value.

    Raises:
        UserError: a missing or unknown field or one of the wrong type (naming file and row), or an unreadable file.
    """
    rows = read_rows(path)
    if path.suffix.lower() in (".csv", ".tsv"):
        rows = [_parsed(row) for row in rows]
    return [_question(row) for row in rows]


def _parsed(row: Row) -> Row:
    """A row of a CSV with its lists and mappings read as JSON."""
    cells = {name: cell for name, cell in row.values.items() if cell.strip() or name in NEEDED}
    for name in cells.keys() & {*LISTS, "worked"}:
        if name == "worked" or cells[name].lstrip().startswith("["):
            try:
                cells[name] = json.loads(cells[name])
            except json.JSONDecodeError as error:
                raise row.error(
                    f"column {name!r} is not JSON ({error.msg} at column {error.colno}); "
                    + ('write {"cot": "..."}' if name == "worked" else 'write a list as ["...", "..."]')
                ) from None
        else:
            cells[name] = [cells[name]]
    return replace(row, values=cells)


def _question(row: Row) -> Question:
    values = row.values
    for name in NEEDED:
        if name not in values:
            raise row.error(f"field {name!r} is missing; expected {', '.join(NEEDED)}, found {', '.join(values)}")
    for name in values:
        if name not in FIELDS:
            raise row.error(f"unknown field {name!r}; expected {', '.join(sorted(FIELDS))}")
    return row.question(
        id=row.text("id"),
        text=row.text("question"),
        answers=row.texts("answers"),
        group=row.text("group") if "group" in values else "",
        choices=row.texts("choices") if "choices" in values else (),
        others=_others(row) if "others" in values else (),
        incorrect=row.texts("incorrect") if "incorrect" in values else (),
        worked=_worked(row) if "worked" in values else {},
    )


def _others(row: Row) -> tuple[tuple[str, ...], ...]:
    """Each further answer as its forms; a text is an answer with one form."""
    others = row.values["others"]
    if not isinstance(others, list):
        raise row.error("column 'others' must be a list of texts or of lists of texts")
    forms = [other if isinstance(other, list) else [other] for other in others]
    return tuple(replace(row, values={"others": form}).texts("others") for form in forms)


def _worked(row: Row) -> dict[str, str]:
    worked = row.values["worked"]
    if not isinstance(worked, dict) or not set(worked) <= set(STYLES):
        raise row.error(f"field 'worked' must map styles ({', '.join(STYLES)}) to texts")
    # A struct of a Parquet file has all styles, with null for those that a row lacks.
    return {style: str(text) for style, text in worked.items() if text is not None}
