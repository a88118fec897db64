"""Lists of equivalent forms of an answer: from the gold answers of a dataset, and from a user's file."""

import csv
import io
import json
from collections.abc import Iterable
from pathlib import Path

from semcal.errors import UserError
from semcal.questions.question import Question
from semcal.questions.rows import read_text

AliasLists = tuple[tuple[str, ...], ...]


def gold_lists(questions: Iterable[Question]) -> AliasLists:
    """The distinct lists of forms of the correct answers, sorted: which question has which is not to be seen."""
    return tuple(sorted({forms for q in questions for forms in (q.answers, *q.others)}))


def read_alias_lists(path: Path) -> AliasLists:
    """The lists of a file: a JSON list of lists of texts, or a CSV with one list per row; the preferred form first.

    Raises:
        UserError: a missing file, another suffix, or anything but lists of texts.
    """
    suffix = path.suffix.lower()
    if suffix == ".csv":
        rows = csv.reader(io.StringIO(read_text(path)))
        return tuple(forms for row in rows if (forms := tuple(cell for cell in row if cell.strip())))
    if suffix != ".json":
        raise UserError(
            f"{path}: expected aliases as .json or .csv, found {suffix or 'no suffix'}; save the file as one"
        )
    try:
        lists = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(
            f'{path}:{error.lineno}: not JSON ({error.msg}); write [["New York", "NYC"], ["Paris"]]'
        ) from None
    if not isinstance(lists, list):
        raise UserError(f"{path}: expected a list of lists of texts, found a {type(lists).__name__}")
    for number, forms in enumerate(lists, start=1):
        if not isinstance(forms, list) or not forms or not all(isinstance(f, str) and f.strip() for f in forms):
            raise UserError(f"{path}: list {number} is {forms!r:.60}; expected a list of texts, at least one")
    return tuple(map(tuple, lists))
