"""Activations as records, and as arrays on disk: one safetensors file a shard, read back whole or layer by layer.

Knows nothing of models. At each position a question has a number of rows: one; none where it has no such place;
several where every token is kept. `last_prompt_token` names an array [row, layer, d_model] of the residual stream and
of what is added to it, `last_prompt_token/attn_z` one [row, layer, head, d_head] of what the heads make.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
import pyarrow.parquet as pq
from safetensors import safe_open
from safetensors.numpy import save_file

from semcal.errors import UserError, nearest
from semcal.positions import in_answer

HEADS = "/attn_z"
ANSWER_ROW = "answer_row"
_DTYPES = {"float32": np.float32, "float16": np.float16}


@dataclass(frozen=True)
class Activations:
    """What was read at one position of some prompts.

    Attributes:
        keys: [question] the prompts' keys.
        layers: [layer] TransformerLens hook names, in the order of the network (the last block is before the final
            norm).
        values: [row, layer, d_model] float32; the rows of a question follow each other.
        token_ids: [row] the token found at that position (of a mean, at its last token).
        token_index: [row] where in the prompt, or in prompt and answer, that token stands; from 0.
        rows: [question] how many rows each has.
        head_layers: [head layer] hook names of `heads`.
        heads: [row, head layer, head, d_head] float32.
    """

    keys: tuple[str, ...]
    layers: tuple[str, ...]
    values: np.ndarray
    token_ids: np.ndarray
    token_index: np.ndarray
    rows: np.ndarray
    head_layers: tuple[str, ...]
    heads: np.ndarray

    def __post_init__(self) -> None:
        n = int(self.rows.sum())
        if len(self.rows) != len(self.keys) or self.values.shape[:2] != (n, len(self.layers)):
            raise ValueError(
                f"values {self.values.shape} do not fit {len(self.keys)} keys, {n} rows, {len(self.layers)} layers"
            )


@dataclass(frozen=True)
class StoredActivations:
    """Activations read back from a run, questions in the order of `Run.questions`.

    Attributes:
        position: Name of the array.
        layers: [layer] hook names.
        values: [row, layer, d_model] or [row, layer, head, d_head], float32. A question has one row at most positions.
        token_ids: [row] the token found at the position.
        token_index: [row] where that token stands in the prompt, or in prompt and answer; -1 in runs that did not say.
        rows: [question] rows of each question: 0 where it has no such place, several where every token was kept.
        samples: [row] for a position in the answer, which row of `Run.samples` that answer is; else -1.
    """

    position: str
    layers: tuple[str, ...]
    values: np.ndarray
    token_ids: np.ndarray
    token_index: np.ndarray
    rows: np.ndarray
    samples: np.ndarray

    @property
    def present(self) -> np.ndarray:
        """[question] whether a question has this place."""
        return self.rows > 0

    @property
    def ragged(self) -> bool:
        """Whether a question may have several rows."""
        return bool((self.rows > 1).any())


# ---- writing -------------------------------------------------------------------------------------------------------


def save(
    path: Path,
    found: Mapping[str, Activations],
    *,
    dtype: str = "float32",
    answer_rows: np.ndarray | None = None,
    tokenizer_hash: str = "",
    shard: str = "",
) -> None:
    """Write what was found at each position of a shard.

    Args:
        shard: Its key, which says what questions it holds and how they were asked.
        answer_rows: [question] which row of the shard's samples the answer is that was read, -1 for none.

    Raises:
        UserError: a value beyond the range of float16, naming question and layer.
    """
    tensors: dict[str, np.ndarray] = {}
    facts = {"tokenizer_hash": tokenizer_hash, "shard": shard}
    for position, at in found.items():
        for name, key, layers, values in (
            (position, "layers", at.layers, at.values),
            (position + HEADS, "head_layers", at.head_layers, at.heads),
        ):
            if layers:
                tensors[name] = _narrowed(values, dtype, layers, at)
                facts[key] = json.dumps(list(layers))
        tensors[f"{position}.token_id"] = np.ascontiguousarray(at.token_ids)
        tensors[f"{position}.token_index"] = np.ascontiguousarray(at.token_index)
        tensors[f"{position}.rows"] = np.ascontiguousarray(at.rows)
    if answer_rows is not None:
        tensors[ANSWER_ROW] = np.ascontiguousarray(answer_rows)
    save_file(tensors, path, metadata=facts)


def _narrowed(values: np.ndarray, dtype: str, layers: Sequence[str], at: Activations) -> np.ndarray:
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(values, dtype=_DTYPES[dtype])
    beyond = ~np.isfinite(narrow)
    if beyond.any():
        row, layer = np.argwhere(beyond)[0][:2]
        question = at.keys[int(np.searchsorted(at.rows.cumsum(), row, side="right"))]
        raise UserError(
            f"question {question!r}: activations at {layers[layer]} go beyond {dtype}; set capture.dtype to float32 in "
            "a study of another name"
        )
    return narrow


# ---- reading -------------------------------------------------------------------------------------------------------


def layers_in(path: Path, array: str) -> tuple[str, ...]:
    """Hook names of the layers of an array of a shard.

    Raises:
        UserError: nothing of that name, naming the nearest.
    """
    with safe_open(path, framework="np") as stored:
        facts = stored.metadata()
        there = [n for n in stored.keys() if "." not in n and n != ANSWER_ROW]  # noqa: SIM118 - not a dict
    if array not in there:
        raise UserError(f"nothing captured at position {array!r}{nearest(array, there)}; there is {', '.join(there)}")
    return tuple(json.loads(facts["head_layers" if array.endswith(HEADS) else "layers"]))


@dataclass(frozen=True)
class Records:
    """What a run says that its activations were read from.

    Attributes:
        tokenizer_hash: Of its manifest.
        prompts: A parquet file, a list of token ids a question; early runs have none.
        samples: [shard] parquet files, a list of token ids an answer; needed for positions in the answer.
    """

    tokenizer_hash: str
    prompts: Path
    samples: Sequence[Path]


def load(
    files: Sequence[Path], array: str, layers: Sequence[str] | None = None, *, records: Records
) -> StoredActivations:
    """One array of all shards, in order; of the layers asked for, nothing else is read.

    Raises:
        UserError: nothing of that name, or no such layer, naming the nearest; activations of other layers, another
            tokenizer or other tokens than the run's; a number that is not finite.
    """
    there = layers_in(files[0], array)
    for layer in layers or ():
        if layer not in there:
            raise UserError(f"nothing captured at layer {layer!r} of {array}{nearest(layer, there)}")
    wanted = there if layers is None else tuple(layers)
    shapes = [_shape(file, array, there, records.tokenizer_hash) for file in files]
    fullest = max(shapes, key=lambda s: s[0])  # a shard in which no question has the position does not know the width
    values = np.empty((sum(s[0] for s in shapes), len(wanted), *fullest[2:]), dtype=np.float32)
    answers = TokenLists.read(records.samples) if in_answer(array.removesuffix(HEADS)) else None
    beside, first = [], 0
    for shard, (file, shape) in enumerate(zip(files, shapes, strict=True)):
        block = values[first : first + shape[0]]
        with safe_open(file, framework="np") as stored:
            if shape[0]:
                _fill(block, stored.get_slice(array), None if layers is None else [there.index(w) for w in wanted])
                _check_finite(block, file, array, wanted)
            beside.append(_beside(stored, array.removesuffix(HEADS), 0 if answers is None else answers.first[shard]))
        first += shape[0]
    token_ids, token_index, rows, samples = (np.concatenate(part) for part in zip(*beside, strict=True))
    found = StoredActivations(array, wanted, values, token_ids, token_index, rows, samples)
    if records.prompts.is_file():
        _check_tokens(found, TokenLists.read([records.prompts]), answers)
    return found


def _shape(file: Path, array: str, layers: tuple[str, ...], tokenizer_hash: str) -> tuple[int, ...]:
    """Of an array in a shard, which is refused if it is of another run."""
    if layers_in(file, array) != layers:
        raise UserError(f"{file} holds other layers of {array} than the shards before it; it is of another run")
    with safe_open(file, framework="np") as stored:
        if (key := stored.metadata().get("shard", file.stem)) != file.stem:  # early runs did not say
            raise UserError(f"{file} holds shard {key}: it is of another run; delete this file and run its study again")
        if stored.metadata().get("tokenizer_hash", tokenizer_hash) != tokenizer_hash:
            raise UserError(f"{file} was captured with another tokenizer than this run's; it is of another run")
        return tuple(stored.get_slice(array).get_shape())


def _fill(block: np.ndarray, stored: Any, layers: Sequence[int] | None) -> None:
    """Fill [row, layer, ...] from an array on disk; with `layers`, only these parts of it are read."""
    if layers is None:
        block[:] = stored[:]
    else:
        for to, layer in enumerate(layers):
            block[:, to] = stored[:, layer : layer + 1][:, 0]


def _check_finite(block: np.ndarray, file: Path, array: str, layers: Sequence[str]) -> None:
    finite = np.isfinite(block)
    if not finite.all():
        row, layer = np.argwhere(~finite)[0][:2]
        raise UserError(
            f"{file}: {array} holds NaN or infinity at {layers[layer]}, row {row}; delete this file and `semcal run` "
            "its study again"
        )


def _beside(stored: Any, position: str, first_answer: int) -> tuple[np.ndarray, ...]:
    """(token ids, their index, rows of each question, row of the answer read) of a shard; early runs know the first."""
    names, token_ids = stored.keys(), stored.get_tensor(f"{position}.token_id")
    if f"{position}.rows" not in names:
        unknown = np.full(len(token_ids), -1)
        return token_ids, unknown, np.ones(len(token_ids), dtype=np.int64), unknown
    rows = stored.get_tensor(f"{position}.rows")
    answer = np.full(len(rows), -1)
    if in_answer(position):
        answer = stored.get_tensor(ANSWER_ROW)
        answer = np.where(answer >= 0, answer + first_answer, -1)
    return token_ids, stored.get_tensor(f"{position}.token_index"), rows, np.repeat(answer, rows)


@dataclass(frozen=True)
class TokenLists:
    """Lists of token ids, laid end to end.

    Attributes:
        flat: [token] all ids.
        offsets: [list + 1] where each begins.
        first: [file] the number of the first list of each file they were read from.
    """

    flat: np.ndarray
    offsets: np.ndarray
    first: np.ndarray

    @classmethod
    def read(cls, files: Sequence[Path]) -> TokenLists:
        """The column `token_ids` of some parquet files."""
        columns = [pq.read_table(file, columns=["token_ids"])["token_ids"] for file in files]
        lengths = np.concatenate([pc.call_function("list_value_length", [c]).to_numpy() for c in columns])
        flat = np.concatenate([pc.call_function("list_flatten", [c]).to_numpy() for c in columns])
        sizes = np.array([len(c) for c in columns])
        return cls(flat, np.concatenate([[0], lengths.cumsum()]), sizes.cumsum() - sizes)

    @property
    def lengths(self) -> np.ndarray:
        return np.diff(self.offsets)

    def at(self, which: np.ndarray, index: np.ndarray) -> np.ndarray:
        """[row] the ids at some places of some lists; -1 outside them."""
        inside = (which >= 0) & (index >= 0) & (index < self.lengths[which])
        return np.where(inside, self.flat[np.where(inside, self.offsets[which] + index, 0)], -1)


def _check_tokens(at: StoredActivations, prompts: TokenLists, answers: TokenLists | None) -> None:
    """Every row must have been read at the token that prompt and answer have there."""
    if len(at.rows) != len(prompts.lengths):
        raise UserError(f"activations of {len(at.rows)} questions, prompts of {len(prompts.lengths)}; of another run")
    question = np.repeat(np.arange(len(at.rows)), at.rows)
    index = np.where(at.token_index < 0, prompts.lengths[question] - 1, at.token_index)  # early runs read the last
    expected = prompts.at(question, index)
    if answers is not None:
        behind = index - prompts.lengths[question]
        expected = np.where(behind >= 0, answers.at(at.samples, behind), expected)
    wrong = np.flatnonzero(expected != at.token_ids)
    if len(wrong):
        row = wrong[0]
        raise UserError(
            f"{at.position} of question {question[row]} was read at token id {at.token_ids[row]}, and this run has "
            f"{expected[row]} there: these activations are of another run; delete its folder and run its study again"
        )
