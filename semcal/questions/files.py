"""Datasets from files: the user's own JSONL, TriviaQA and SimpleQA in their original formats.

Every reader returns (question, answers) records in the order of the file; `semcal.questions.build` turns them into
a Dataset.
"""

from __future__ import annotations

import ast
import csv
import io
import json
import re
from pathlib import Path
from typing import Any

from semcal.errors import UserError
from semcal.questions.question import STYLES, Question


def read_jsonl(path: Path) -> list[Question]:
    """One JSON object a line: id, question, answers[, group, choices, worked].

    `answers` are surface forms of one gold answer, the preferred one first. `worked` maps a style to the answer
    written out in that style, for exemplars.

    Raises:
        UserError: naming file and line: not JSON, a field that is missing, unknown or of the wrong type.
    """
    questions = []
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            questions.append(_json_question(line, f"{path}:{number}"))
    return questions


def _json_question(line: str, where: str) -> Question:
    try:
        record = json.loads(line)
    except json.JSONDecodeError as error:
        raise UserError(f"{where}: not JSON ({error.msg} at column {error.colno}); write one object a line") from None
    if not isinstance(record, dict):
        raise UserError(f"{where}: a {type(record).__name__} where an object is needed")
    fields = {"id", "question", "answers", "group", "choices", "worked"}
    for name in ("id", "question", "answers"):
        if name not in record:
            raise UserError(f"{where}: no field {name!r}; each line needs id, question, answers")
    for name in record:
        if name not in fields:
            raise UserError(f"{where}: unknown field {name!r}; the fields are {', '.join(sorted(fields))}")
    worked = record.get("worked", {})
    if not isinstance(worked, dict) or not set(worked) <= set(STYLES):
        raise UserError(f"{where}: field 'worked' maps styles ({', '.join(STYLES)}) to texts")
    return make_question(
        where,
        id=_text(record, "id", where),
        text=_text(record, "question", where),
        answers=_texts(record, "answers", where),
        group=_text(record, "group", where) if "group" in record else "",
        choices=_texts(record, "choices", where) if "choices" in record else (),
        worked={style: str(text) for style, text in worked.items()},
    )


def read_triviaqa(path: Path) -> list[Question]:
    """TriviaQA: the CSV with columns question, answer ("; "-joined aliases), or the official JSON with "Data"."""
    if path.suffix == ".json":
        try:
            rows = json.loads(_read(path))["Data"]
            return [
                make_question(
                    f"{path}: entry {number}",
                    id=str(row["QuestionId"]),
                    text=row["Question"],
                    answers=(row["Answer"]["Value"], *row["Answer"].get("Aliases", ())),
                )
                for number, row in enumerate(rows, start=1)
            ]
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise UserError(f"{path}: not TriviaQA's JSON ({error!r}); give the official file or the CSV") from None
    return [
        make_question(
            f"{path}: row {i}",
            id=f"triviaqa-{i:05d}",
            text=row["question"],
            answers=_plainest_first(row["answer"].split("; ")),
        )
        for i, row in enumerate(_csv_rows(path, ("question", "answer")), start=1)
    ]


def read_simpleqa(path: Path) -> list[Question]:
    """SimpleQA's CSV (metadata, problem, answer) and SimpleQA Verified's (original_index, problem, answer, ...)."""
    questions = []
    for i, row in enumerate(_csv_rows(path, ("problem", "answer")), start=1):
        group = ""
        if row.get("metadata"):
            try:
                urls = ast.literal_eval(row["metadata"]).get("urls", [])
                group = str(urls[0]) if urls else ""  # questions about one page belong together
            except (ValueError, SyntaxError, AttributeError):
                raise UserError(f"{path}: row {i}: column 'metadata' is no Python literal of a dict") from None
        questions.append(
            make_question(
                f"{path}: row {i}",
                id=f"simpleqa-{row.get('original_index') or i:0>5}",
                text=row["problem"],
                answers=(row["answer"],),
                group=group,
            )
        )
    return questions


def _plainest_first(aliases: list[str]) -> tuple[str, ...]:
    """Aliases with the one in front that exemplars should show; the CSV has them in no order.

    It is the one whose words stand in most of the others (Farthing, not "Farthing (coin)"), then the shortest.
    """
    words = [set(re.findall(r"\w+", alias.lower())) for alias in aliases]
    spread = [sum(own <= other for other in words) if own else -1 for own in words]
    best = min(range(len(aliases)), key=lambda i: (-spread[i], len(words[i]), i))
    return (aliases[best], *aliases[:best], *aliases[best + 1 :])


def make_question(where: str, **fields: Any) -> Question:
    """A Question, with the place it came from in the error if it is no good."""
    try:
        return Question(**fields)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"no file {path}; check the dataset's path") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder, a file is needed") from None
    except UnicodeDecodeError as error:
        raise UserError(f"{path} is not UTF-8 text (byte {error.start})") from None


def _lines(path: Path) -> list[str]:
    return _read(path).split("\n")


def _csv_rows(path: Path, columns: tuple[str, ...]) -> list[dict[str, str]]:
    text = _read(path)
    reader = csv.DictReader(io.StringIO(text, newline=""))
    missing = [c for c in columns if c not in (reader.fieldnames or ())]
    if missing:
        raise UserError(f"{path}: no column {missing[0]!r}; it has {', '.join(reader.fieldnames or ()) or 'nothing'}")
    rows = []
    for number, row in enumerate(reader, start=1):
        for column in columns:
            if row[column] is None:
                raise UserError(f"{path}: row {number}: column {column!r} is missing")
        rows.append(row)
    return rows


def _text(record: dict[str, Any], name: str, where: str) -> str:
    value = record[name]
    if isinstance(value, bool) or not isinstance(value, str | int):
        raise UserError(f"{where}: field {name!r} is a {type(value).__name__}, text is needed")
    return str(value)


def _texts(record: dict[str, Any], name: str, where: str) -> tuple[str, ...]:
    value = record[name]
    if not isinstance(value, list) or not all(
        isinstance(v, str | int | float) and not isinstance(v, bool) for v in value
    ):
        raise UserError(f"{where}: field {name!r} must be a list of texts")
    return tuple(str(v) for v in value)
