"""Rows of a table, from a file or from the Hub, each with the place it came from.

Knows no dataset: the readers in `semcal.questions` know what the columns mean.
"""

import csv
import io
import json
import re
from codecs import BOM_UTF16_BE, BOM_UTF16_LE
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np

from semcal.errors import UserError
from semcal.questions.cells import as_text, missing, plain
from semcal.questions.question import Question

LFS_POINTER = b"version https://git-lfs.github.com/spec"
_NESTED = (list, dict)
_REPEATED = "\0repeated key"  # marks an object of JSON in which a key occurs twice; no key can be written so
# ['a', 'b'] as Python and NumPy print lists, ("a", "b") as tuples, {'a', 'b'} as sets.
_WRITTEN_LIST = re.compile(r"""\s*(?:\[\s*['"].*['"]\s*\]|[({]\s*(['"]).*\1\s*,.*[)}])\s*$""", re.DOTALL)


@dataclass(frozen=True)
class Row:
    """One row of a table.

    Attributes:
        values: Column -> value, as in the file or on the Hub.
        where: The place that error messages name: file and line, file and row, or Hub id and row.
        number: Number of the row, from 1.
    """

    values: dict[str, Any]
    where: str
    number: int

    def value(self, *names: str) -> Any:
        """The value of the first of these columns that exists; versions of a dataset name them differently.

        Raises:
            UserError: none of them exists.
        """
        for name in names:
            if name in self.values:
                return self.values[name]
        expected = " or ".join(repr(name) for name in names)
        raise self.error(f"expected column {expected}; the columns are {', '.join(map(str, self.values)) or 'none'}")

    def text(self, *names: str) -> str:
        """The same as text; a number is written in its shortest decimal form."""
        value = self.value(*names)
        if plain(value):
            return value
        if missing(value) and not isinstance(value, str):
            raise self.error(f"column {self._name(names)!r} is empty; expected text")
        return self._as_text(value, names)

    def texts(self, *names: str) -> tuple[str, ...]:
        """The same as several texts, without those that are missing."""
        value = self.value(*names)
        if missing(value):
            raise self.error(f"column {self._name(names)!r} is empty; expected a list of texts")
        if not isinstance(value, list) or any(isinstance(v, _NESTED) for v in value):
            raise self.error(f"column {self._name(names)!r} must be a list of texts, got {value!r:.60}")
        as_they_are = all(map(plain, value))
        found = tuple(value if as_they_are else (self._as_text(v, names) for v in value if not missing(v)))
        if written := next(filter(_WRITTEN_LIST.match, found), None):
            raise self.error(
                f"column {self._name(names)!r} holds a list as one text ({written:.40}); "
                'write a list of texts, in a CSV as JSON: ["...", "..."]'
            )
        return found

    def question(self, **fields: Any) -> Question:
        """A Question; if it is invalid, the error names this row."""
        return make_question(self.where, **fields)

    def error(self, message: str) -> UserError:
        return UserError(f"{self.where}: {message}")

    def _as_text(self, value: Any, names: tuple[str, ...]) -> str:
        try:
            return as_text(value)
        except ValueError as error:
            raise self.error(f"column {self._name(names)!r} {error}") from None

    def _name(self, names: tuple[str, ...]) -> str:
        return next(name for name in names if name in self.values)


def make_question(where: str, **fields: Any) -> Question:
    """A Question; if it is invalid, the error names the place it came from.

    Raises:
        UserError: no text, no gold answer, or not exactly one right option.
    """
    try:
        question = Question(**fields)
    except ValueError as error:
        raise UserError(f"{where}: {error}") from None
    choices = question.choices
    if choices:
        right = [choice for choice in choices if choice in question.answers]
        if len(set(choices)) < len(choices) or len(choices) > len(ascii_uppercase):
            raise UserError(f"{where}: question {question.id!r} needs distinct options, at most {len(ascii_uppercase)}")
        if len(right) != 1:
            raise UserError(f"{where}: question {question.id!r} has {len(right)} right options; expected exactly one")
    return question


# ---- files ---------------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> list[Row]:
    """The rows of a .jsonl, .json, .csv, .tsv or .parquet file; no suffix, or .test, means JSONL.

    Raises:
        UserError: a missing file, a folder, an empty file, a Git LFS pointer, not UTF-8, or not in its suffix's format.
    """
    _readable(path)
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"{path}: cannot read {path.suffix} files; expected one of {', '.join(filter(None, FORMATS))}")
    rows = FORMATS[path.suffix.lower()](path)
    if not rows:
        raise UserError(f"{path} has no rows; check the dataset's path")
    return rows


def read_text(path: Path) -> str:
    """The text of a file in UTF-8, or in UTF-16 with a byte order mark, as spreadsheets write it; without the mark.

    Raises:
        UserError: a missing file, a folder, an empty file, a Git LFS pointer, or in another encoding.
    """
    content = _bytes(path)
    try:
        return content.decode("utf-16" if content.startswith((BOM_UTF16_LE, BOM_UTF16_BE)) else "utf-8-sig")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path} is not UTF-8 text (byte {error.start}); save it as UTF-8, in a spreadsheet as CSV UTF-8"
        ) from None


def _json_lines(path: Path) -> list[Row]:
    """The rows of a file with one JSON object per line; empty lines are skipped."""
    rows = []
    for number, line in enumerate(read_text(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}:{number}"
        try:
            value = decoded(line)
        except json.JSONDecodeError as error:
            raise UserError(
                f"{where}: not JSON ({error.msg} at column {error.colno}); write one object per line"
            ) from None
        rows.append(Row(_object(value, where), where, len(rows) + 1))
    return rows


def _json(path: Path) -> list[Row]:
    """A list of objects, or an object that holds one list, such as TriviaQA's "Data"."""
    try:
        value = decoded(read_text(path))
    except json.JSONDecodeError as error:
        raise UserError(
            f"{path}:{error.lineno}: not JSON ({error.msg} at column {error.colno}); "
            "name a file with one object per line .jsonl"
        ) from None
    if isinstance(value, dict):
        _object(value, str(path), deep=False)
        lists = [v for v in value.values() if isinstance(v, list)]
        value = lists[0] if len(lists) == 1 else value
    if not isinstance(value, list):
        raise UserError(f"{path}: expected a list of objects, or an object that holds one list")
    wheres = [f"{path}: entry {number}" for number in range(1, len(value) + 1)]
    return [Row(_object(v, where), where, i) for i, (v, where) in enumerate(zip(value, wheres, strict=True), start=1)]


def decoded(text: str) -> Any:
    """A text as JSON; an object in which a key occurs twice is marked, and refused by `_object`.

    Raises:
        json.JSONDecodeError: not JSON.
    """
    return _DECODER.decode(text)


def _marked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) == len(pairs):
        return values
    twice = next(key for key, n in Counter(key for key, _ in pairs).items() if n > 1)
    return values | {_REPEATED: twice}


_DECODER = json.JSONDecoder(object_pairs_hook=_marked)


def _csv(path: Path, delimiter: str | None = None) -> list[Row]:
    """Without a delimiter, the comma, semicolon or tab that the header has most of."""
    text = read_text(path)
    if announced := re.match(r"sep=(.)\r?\n", text):  # how Excel is told the delimiter
        delimiter, text = announced[1], text[announced.end() :]
    delimiter = delimiter or max(",;\t", key=text.partition("\n")[0].count)
    # strict: a quote that is never closed must not silently swallow the rest of the file.
    reader = csv.DictReader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    rows: list[Row] = []
    try:
        # Columns without a title, as spreadsheets leave them, are told apart by the length of a blank one.
        reader.fieldnames = [title.strip() or " " * at for at, title in enumerate(reader.fieldnames or ())]
        _apart(reader.fieldnames, f"{path}:1")
        for number, values in enumerate(reader, start=1):
            row = Row(values, f"{path}: row {number}", number)
            if None in values:
                raise row.error(
                    f"more cells than the header's {len(values) - 1}; quote cells that contain {delimiter!r}"
                )
            missing = next((column for column, cell in values.items() if cell is None), None)
            if missing is not None:
                raise row.error(f"column {missing!r} is missing; the row ends before it")
            rows.append(row)
    except csv.Error as error:
        raise UserError(f"{path}: row {len(rows) + 1}: not CSV ({error}, near line {reader.line_num})") from None
    return rows


def _parquet(path: Path) -> list[Row]:
    """Null cells are left out, as if the row did not have that column."""
    import pyarrow
    import pyarrow.parquet

    content = pyarrow.BufferReader(_bytes(path))
    try:
        _apart(pyarrow.parquet.read_schema(content).names, str(path))
        table = pyarrow.parquet.read_table(content)
    except (pyarrow.ArrowException, OSError) as error:
        raise UserError(f"{path}: not Parquet ({_line(error)})") from None
    return [
        Row(
            {n: _shortest(v, table.schema.field(n).type) for n, v in values.items() if v is not None},
            f"{path}: row {number}",
            number,
        )
        for number, values in enumerate(table.to_pylist(), start=1)
    ]


def _shortest(value: Any, kind: Any) -> Any:
    """A cell of Parquet, where a number of half or single precision is the shortest decimal that it stands for."""
    import pyarrow.types as kinds

    if isinstance(value, float) and (kinds.is_float32(kind) or kinds.is_float16(kind)):
        return float(str(np.float32(value) if kinds.is_float32(kind) else np.float16(value)))
    if isinstance(value, list) and hasattr(kind, "value_type"):
        return [_shortest(v, kind.value_type) for v in value]
    return value


def _apart(columns: Iterable[str], where: str) -> None:
    """No two columns have one name.

    Raises:
        UserError: two have; one would hide the other.
    """
    twice = [column for column, n in Counter(columns).items() if n > 1]
    if twice:
        raise UserError(f"{where}: two columns are named {twice[0]!r}; rename or remove one")


FORMATS = {
    ".jsonl": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": partial(_csv, delimiter="\t"),
    ".parquet": _parquet,
    ".test": _json_lines,
    "": _json_lines,
}


def _readable(path: Path) -> None:
    if path.is_dir():
        inside = sorted(f.name for f in path.iterdir() if f.suffix and f.suffix.lower() in FORMATS)
        raise UserError(f"{path} is a folder; expected a file ({', '.join(inside[:5]) or 'none in it can be read'})")
    if not path.exists():
        raise UserError(f"no file {path}; check the path of the dataset or of its aliases")


def _bytes(path: Path) -> bytes:
    _readable(path)
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror})") from None
    if not content.strip():
        raise UserError(f"{path} is empty; check the dataset's path")
    if content.startswith(LFS_POINTER):
        raise UserError(f"{path} is a Git LFS pointer, not the data; run `git lfs pull` in its repository")
    return content


def _object(value: Any, where: str, *, deep: bool = True) -> dict[str, Any]:
    """A value as an object, in which no key occurs twice, nor, if deep, in any object within."""
    if not isinstance(value, dict):
        raise UserError(f"{where}: expected an object, got a {type(value).__name__}")
    if (twice := repeated(value) if deep else value.get(_REPEATED)) is not None:
        raise UserError(f"{where}: the key {twice!r} occurs twice in one object; rename or remove one")
    return value


def repeated(value: Any) -> str | None:
    """A key that occurs twice in an object of JSON, as `decoded` marks it, or in one within; None if there is none."""
    if isinstance(value, dict) and _REPEATED in value:
        return value[_REPEATED]
    for inside in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(inside, _NESTED) and (twice := repeated(inside)) is not None:
            return twice
    return None


def _line(error: Exception) -> str:
    """Another library's error in one short line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:240]


# ---- the Hub -------------------------------------------------------------------------------------------------------


def hub_rows(hub: str, config: str | None, *, split: str, revision: str | None = None) -> Iterator[Row]:
    """The rows of a dataset on the Hub, one by one: some datasets have millions.

    Args:
        hub: Repository id, e.g. "openai/gsm8k".
        split: As `datasets` reads it, so that "train[:1000]" is the first thousand rows.
        revision: Branch, tag or commit; the newest by default.

    Raises:
        UserError: `datasets` is not installed, the Hub cannot be reached, or it has no such dataset, split or revision.
    """
    try:
        import datasets
    except ImportError:
        raise UserError(
            f"reading {hub} from the Hub needs a package: pip install datasets, or give the path of the dataset's "
            "original file"
        ) from None
    try:
        table: Any = datasets.load_dataset(hub, config, split=split, revision=revision)
    except Exception as error:  # a download may raise anything; the message includes it
        raise UserError(
            f"{hub}, split {split}: cannot be read from the Hub ({_line(error)}); go online and check split and "
            "revision, or give the path of the dataset's original file"
        ) from None
    return (Row(dict(values), f"{hub}, {split}: row {i}", i) for i, values in enumerate(table, start=1))
