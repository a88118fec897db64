"""Activations that another tool captured (nnsight, vLLM, TransformerLens), read from one file with question ids.

Knows file formats and question ids; nothing of prompts, so it cannot check at which token something was read.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors import SafetensorError, safe_open

from semcal.errors import UserError, nearest
from semcal.positions import BLOCK_HOOKS

IDS = "question_ids"  # in the metadata of a safetensors file
ID = "question_id"  # a column of a parquet file
_INDEX = re.compile(r"__index_level_\d+__")  # columns in which pandas keeps the numbers of rows


@dataclass(frozen=True)
class ForeignActivations:
    """The activations of some questions of a run at one position, each layer read from the file when asked for.

    A safetensors file holds a tensor [question, d] per layer, named after it, and in its metadata `question_ids`, a
    JSON list in the order of the rows. A parquet file holds a column `question_id` and per layer a column of lists of
    d numbers. Layers are ordered by the numbers in their names: blocks.2 comes before blocks.10.

    Attributes:
        position: where they were read, as far as the caller knows.
        layers: [layer] names.
        questions: [question] ids of the run, in its order.
        width: (d,), the same for every layer.
    """

    position: str
    layers: tuple[str, ...]
    questions: tuple[str, ...]
    width: tuple[int]
    _file: Path = field(repr=False)
    _row: np.ndarray = field(repr=False)  # [question] row in the file, -1 where it has none

    @classmethod
    def open(cls, file: Path, questions: Sequence[str], *, position: str) -> ForeignActivations:
        """Check names, ids and shapes; no activation is read yet.

        Raises:
            UserError: the file is missing or unreadable, has no question ids, an id twice, an id that the run does not
                have, none of the run's, no layer, columns that are no lists of numbers, or layers of different shapes
                or without width.
        """
        if not file.is_file():
            raise UserError(f"{file} is no file; give a .safetensors or .parquet file of activations")
        try:
            ids, shapes = _parquet_header(file) if file.suffix == ".parquet" else _safetensors_header(file)
        except (OSError, ValueError, SafetensorError, pa.ArrowException) as error:
            raise UserError(f"{file} cannot be read as activations: {str(error).splitlines()[0]}") from None
        if not ids:
            raise UserError(f"{file} holds no question; store a row for each that was captured")
        if not shapes:
            raise UserError(f"{file} holds no layer; store an array [question, d] for each")
        first = next(iter(shapes))
        for layer, shape in shapes.items():
            if len(shape) != 2 or shape[0] != len(ids):
                raise UserError(
                    f"{file}: {layer} is {list(shape)}, but there are {len(ids)} question ids; expected [{len(ids)}, d]"
                )
            if shape[1] != shapes[first][1]:
                raise UserError(
                    f"{file}: {layer} is {shape[1]} wide and {first} {shapes[first][1]}; give layers of one width"
                )
        if not shapes[first][1]:
            raise UserError(f"{file}: {first} holds no numbers; store an array [question, d] for each layer")
        rows = _rows(file, ids, questions)
        return cls(position, tuple(sorted(shapes, key=_in_order)), tuple(questions), (shapes[first][1],), file, rows)

    @property
    def present(self) -> np.ndarray:
        """[question] whether the file has a question."""
        return self._row >= 0

    @property
    def rows(self) -> np.ndarray:
        """[question] 1, or 0 where the file does not have it."""
        return self.present.astype(np.int64)

    def only(self, layers: Sequence[str]) -> ForeignActivations:
        """Some of the layers, in the order given.

        Raises:
            UserError: a layer that the file does not have, naming the nearest.
        """
        for layer in layers:
            if layer not in self.layers:
                raise UserError(f"{self._file} has no layer {layer!r}{nearest(layer, self.layers)}")
        return replace(self, layers=tuple(layers))

    def layer(self, name: str) -> np.ndarray:
        """[row, d] float32: one layer of the questions that are present, read from disk at every call.

        Raises:
            UserError: no such layer, naming the nearest; NaN or infinity, naming layer and question.
        """
        self.only([name])
        values = _parquet_layer(self._file, name) if self._file.suffix == ".parquet" else _tensor(self._file, name)
        values = values[self._row[self.present]]
        finite = np.isfinite(values).all(1)
        if not finite.all():
            question = str(np.array(self.questions)[self.present][int(np.argmin(finite))])
            raise UserError(
                f"{self._file}: {name} holds NaN or infinity at question {question!r}; capture it again, or leave the "
                "question out of the file"
            )
        return values


def _rows(file: Path, ids: Sequence[str], questions: Sequence[str]) -> np.ndarray:
    """[question] the row of each of a run's questions in the file, -1 for none."""
    place: dict[str, int] = {}
    for row, question in enumerate(ids):
        if question in place:
            raise UserError(f"{file}: question id {question!r} is there twice; give each question one row")
        place[question] = row
    own = set(questions)
    if (unknown := next((q for q in ids if q not in own), None)) is not None:
        raise UserError(
            f"{file}: the run has no question {unknown!r}{nearest(unknown, questions)}; use the ids of its "
            "questions.parquet"
        )
    rows = np.array([place.get(question, -1) for question in questions])
    if (rows < 0).all():
        raise UserError(f"{file} holds none of the run's questions; use the ids of its questions.parquet")
    return rows


def _in_order(name: str) -> list[tuple[int, str]]:
    """A key that sorts layers by the numbers in their names, and hooks of one block as the block computes them."""
    for place, hook in enumerate(BLOCK_HOOKS):
        name = name.replace(hook, str(place))
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]


def _safetensors_header(file: Path) -> tuple[list[str], dict[str, tuple[int, ...]]]:
    with safe_open(file, framework="pt") as stored:
        facts = stored.metadata() or {}
        if IDS not in facts:
            raise UserError(f"{file} has no question ids; add {IDS} to its metadata, a JSON list in the order of rows")
        ids = json.loads(facts[IDS])
        if not isinstance(ids, list):
            raise UserError(f"{file}: {IDS} in its metadata is no JSON list of question ids")
        return [str(i) for i in ids], {name: tuple(stored.get_slice(name).get_shape()) for name in stored.keys()}  # noqa: SIM118


def _tensor(file: Path, name: str) -> np.ndarray:
    with safe_open(file, framework="pt") as stored:  # NumPy has no bfloat16
        return stored.get_tensor(name).float().numpy()


def _parquet_header(file: Path) -> tuple[list[str], dict[str, tuple[int, ...]]]:
    stored = pq.ParquetFile(file)
    names = [name for name in stored.schema_arrow.names if not _INDEX.fullmatch(name)]
    if ID not in names:
        raise UserError(f"{file} has no question ids; add a column {ID}")
    ids = pq.read_table(file, columns=[ID])[ID].to_pylist()
    lists = [n for n in names if n != ID and _is_numbers(stored.schema_arrow.field(n).type)]
    other = next((n for n in names if n != ID and n not in lists), None)
    if other is not None:
        kind = stored.schema_arrow.field(other).type
        raise UserError(
            f"{file}: column {other} holds {kind}; expected {ID}, and for each layer a column of lists of numbers"
        )
    return [str(i) for i in ids], {name: (len(ids), _width(file, name)) for name in lists}


def _is_numbers(kind: pa.DataType) -> bool:
    """Whether a column holds lists of numbers."""
    if not (pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)):
        return False
    return pa.types.is_floating(kind.value_type) or pa.types.is_integer(kind.value_type)


def _width(file: Path, name: str) -> int:
    """Of the first list; 0 where there is none."""
    batches = pq.ParquetFile(file).iter_batches(1, columns=[name])
    return next((len(batch[0][0]) for batch in batches if batch[0][0].is_valid), 0)


def _parquet_layer(file: Path, name: str) -> np.ndarray:
    rows = pq.read_table(file, columns=[name])[name].to_pylist()
    if None in rows:
        raise UserError(f"{file}: {name} has no list in row {rows.index(None) + 1}; capture it again, or drop the row")
    lengths = {len(row) for row in rows}
    if len(lengths) > 1:
        raise UserError(f"{file}: lists of {name} have between {min(lengths)} and {max(lengths)} numbers; expected one")
    return np.array(rows, dtype=np.float32)
