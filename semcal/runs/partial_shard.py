"""The answers of a shard that is not finished yet, kept question by question as they come: one line of JSON each."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from semcal.runs.files import disk_error, write_atomically

SAMPLE_COLUMNS = ("question_id", "text", "token_ids", "count", "logprob", "finish")
FINISHES = ("stop", "length")
Rows = list[dict[str, Any]]
_SYNCED_EVERY = 5.0  # seconds; what is written survives the death of the process at once, and a power cut after these


class PartialShard:
    """The file of an unfinished shard, open for more questions.

    Args:
        path: The file. Lines that `read_partial` does not take are removed from it.
        is_right: Tells of a question and its rows whether they are what was asked for.

    Attributes:
        kept: question -> rows, as the file holds them.
    """

    def __init__(self, path: Path, is_right: Callable[[str, Rows], bool] = lambda *_: True) -> None:
        self.path = path
        lines = {question: line for question, line in _lines(path).items() if is_right(question, line[1])}
        self.kept = {question: rows for question, (_, rows) in lines.items()}
        whole = b"".join(line for line, _ in lines.values())
        if path.is_file() and path.read_bytes() != whole:
            write_atomically(path, lambda p: p.write_bytes(whole))
        self._length, self._synced, self._file = len(whole), time.monotonic(), -1

    def append(self, question_id: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """Keep the rows of one more question.

        Raises:
            UserError: the disk is full or the folder cannot be written; the file holds the questions before this one.
        """
        line = json.dumps([question_id, *rows], separators=(",", ":")).encode() + b"\n"
        try:
            if self._file < 0:
                self.path.parent.mkdir(parents=True, exist_ok=True)
                self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
            written = 0
            while written < len(line):
                written += os.write(self._file, line[written:])
            if time.monotonic() - self._synced >= _SYNCED_EVERY:
                os.fsync(self._file)
                self._synced = time.monotonic()
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


def read_partial(path: Path) -> dict[str, Rows]:
    """question -> rows of the lines that are whole.

    Left out, so that the question is asked again, are lines that were cut short or are no JSON, rows that lack a field
    or hold another kind of value, and questions that occur twice.
    """
    return {question: rows for question, (_, rows) in _lines(path).items()}


def _lines(path: Path) -> dict[str, tuple[bytes, Rows]]:
    if not path.is_file():
        return {}
    found: dict[str, list[tuple[bytes, Rows]]] = {}
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            written = json.loads(line)
        except (ValueError, RecursionError):  # no JSON, or no UTF-8
            continue
        if not isinstance(written, list) or not written or not line.endswith(b"\n"):
            continue
        question_id, *rows = written
        if isinstance(question_id, str) and all(_is_row(row, question_id) for row in rows):
            found.setdefault(question_id, []).append((line, rows))
    return {question: lines[0] for question, lines in found.items() if len(lines) == 1}


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
