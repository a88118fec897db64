"""The answers of an unfinished shard, kept as they come: a line of JSON for each portion of its questions."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from semcal.runs.files import disk_error, write_atomically

SAMPLE_COLUMNS = ("question_id", "text", "token_ids", "count", "logprob", "finish")
FINISHES = ("stop", "length")
_BEGINS = b'[{"question_id":'  # the rows of a question; within a text, the quotation marks would be escaped
Rows = list[dict[str, Any]]
Portion = Mapping[str, Rows]  # question -> the rows of its distinct answers


class PartialShard:
    """The file of an unfinished shard, open for more portions.

    Args:
        path: The file.
        kept: The portions to keep of what it holds; everything else is removed from it.

    Raises:
        UserError: the disk is full or the folder cannot be written.
    """

    def __init__(self, path: Path, kept: Sequence[Portion]) -> None:
        self.path = path
        whole = b"".join(map(_line, kept))
        if path.is_file() and path.read_bytes() != whole:
            write_atomically(path, lambda p: p.write_bytes(whole))
        self._length, self._file = len(whole), -1

    def append(self, portion: Portion) -> None:
        """Keep one more portion; it is on the disk when this returns.

        Raises:
            UserError: the disk is full or the folder cannot be written; the file holds the portions before this one.
        """
        line, written = _line(portion), 0
        try:
            if self._file < 0:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            while written < len(line):
                written += os.write(self._file, line[written:])
            os.fsync(self._file)
        except BaseException as error:
            if self._file >= 0:
                with suppress(OSError):
                    os.ftruncate(self._file, self._length)
            if complaint := disk_error(self.path, error):
                raise complaint from error
            raise
        self._length += len(line)

    def __enter__(self) -> PartialShard:
        return self

    def __exit__(self, *_: type[BaseException] | BaseException | TracebackType | None) -> None:
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def read_partial(path: Path) -> list[Portion]:
    """The portions that a file holds whole.

    Left out are lines that were cut short or are no JSON, and those with rows that lack a field or hold another kind of
    value.
    """
    found = []
    for line in path.read_bytes().splitlines(keepends=True) if path.is_file() else ():
        try:
            portion = json.loads(line)
        except (ValueError, RecursionError):  # no JSON, or no UTF-8
            continue
        if line.endswith(b"\n") and isinstance(portion, dict) and all(map(_is_answer, portion, portion.values())):
            found.append(portion)
    return found


def questions_in(path: Path) -> int:
    """How many questions the portions of a file hold, by a glance at its text: a hundred times faster than reading it.

    Portions that `read_partial` leaves out count too, but for a line that was cut short.

    Raises:
        OSError: the file cannot be read.
    """
    return sum(line.count(_BEGINS) for line in path.read_bytes().splitlines(keepends=True) if line.endswith(b"\n"))


def _line(portion: Portion) -> bytes:
    return json.dumps(portion, separators=(",", ":")).encode() + b"\n"


def _is_answer(question_id: str, rows: Any) -> bool:
    return isinstance(rows, list) and all(_is_row(row, question_id) for row in rows)


def _is_row(row: Any, question_id: str) -> bool:
    """Whether this is an answer to this question, with all its fields."""
    if not isinstance(row, dict) or row.keys() != set(SAMPLE_COLUMNS):
        return False
    ids, count, logprob = row["token_ids"], row["count"], row["logprob"]
    return (
        row["question_id"] == question_id
        and isinstance(row["text"], str)
        and isinstance(ids, list)
        and all(type(i) is int and 0 <= i < 2**31 for i in ids)
        and (count is None or (type(count) is int and count > 0))
        and (logprob is None or type(logprob) in (int, float))
        and row["finish"] in FINISHES
    )
