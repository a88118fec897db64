"""Activations as records, and as arrays on disk: one safetensors file per shard, read back layer by layer.

Knows nothing of models. At each position a question has a number of rows: one; none where it has no such position;
several where every token is kept. `last_prompt_token` names an array [row, layer, d_model] of the residual stream and
of what is added to it, `last_prompt_token/attn_z` an array [row, layer, head, d_head] of the heads' outputs.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

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
LARGEST = {name: float(np.finfo(dtype).max) for name, dtype in _DTYPES.items()}


def too_large(what: str, largest: float, dtype: str) -> UserError:
    """The error for activations that a dtype cannot hold."""
    return UserError(
        f"{what} reach {largest:,.0f}, and {dtype} holds at most {LARGEST[dtype]:,.0f}; set capture.dtype to float32 "
        "in a study with another name"
    )


@dataclass(frozen=True)
class Activations:
    """What was read at one position of some prompts.

    Attributes:
        keys: [question] the prompts' keys.
        layers: [layer] TransformerLens hook names, in the order of the network (the last block is before the final
            norm).
        values: [row, layer, d_model] float32; the rows of a question follow each other.
        token_ids: [row] the token found at that position (of a mean, at its last token).
        token_index: [row] index of that token in the prompt, or in prompt and answer together; from 0.
        rows: [question] how many rows each question has.
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


def joined(parts: Sequence[Activations], keys: Sequence[str]) -> Activations:
    """What was read at one position of some prompts in several parts, with the questions in the order of `keys`."""
    first = parts[0]
    where = {key: (part, i) for part in parts for i, key in enumerate(part.keys)}
    chosen = [where[key] for key in keys]
    starts = {id(part): part.rows.cumsum() - part.rows for part in parts}
    slices = [(part, slice(starts[id(part)][i], starts[id(part)][i] + part.rows[i])) for part, i in chosen]
    slices = [(part, these) for part, these in slices if these.stop > these.start]  # without rows, no width is known

    def column(name: str) -> np.ndarray:
        return np.concatenate([getattr(part, name)[these] for part, these in slices] or [getattr(first, name)[:0]])

    return replace(
        first,
        keys=tuple(keys),
        values=column("values"),
        token_ids=column("token_ids"),
        token_index=column("token_index"),
        rows=np.array([part.rows[i] for part, i in chosen], dtype=np.int64),
        heads=column("heads"),
    )


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
        shard: its key, which covers the questions it holds and how they were asked.
        answer_rows: [question] row, among the shard's samples, of the answer that was read; -1 for none.

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
    path.touch()
    mode = path.stat().st_mode  # as the umask has it; safetensors would leave 0600
    save_file(tensors, path, metadata=facts)
    path.chmod(mode)


def load(path: Path, keys: Sequence[str], shard: str = "") -> dict[str, Activations]:
    """What `save` wrote of these questions, in float32, by position; nothing if it was another shard."""
    with safe_open(path, framework="np") as stored:
        facts, names = stored.metadata() or {}, set(stored.keys())
        if facts.get("shard") != shard:
            return {}
        layers, head_layers = (tuple(json.loads(facts.get(n, "[]"))) for n in ("layers", "head_layers"))

        def values(name: str, absent: np.ndarray) -> np.ndarray:
            return stored.get_tensor(name).astype(np.float32) if name in names else absent

        found = {}
        for position in sorted(n.removesuffix(".rows") for n in names if n.endswith(".rows")):
            rows = stored.get_tensor(f"{position}.rows")
            n = int(rows.sum())
            found[position] = Activations(
                keys=tuple(keys),
                layers=layers,
                values=values(position, np.zeros((n, 0, 0), dtype=np.float32)),
                token_ids=stored.get_tensor(f"{position}.token_id"),
                token_index=stored.get_tensor(f"{position}.token_index"),
                rows=rows,
                head_layers=head_layers,
                heads=values(position + HEADS, np.zeros((n, 0, 0, 0), dtype=np.float32)),
            )
        return found


def _narrowed(values: np.ndarray, dtype: str, layers: Sequence[str], at: Activations) -> np.ndarray:
    with np.errstate(over="ignore"):
        narrow = np.ascontiguousarray(values, dtype=_DTYPES[dtype])
    beyond = ~np.isfinite(narrow)
    if beyond.any():
        row, layer = np.argwhere(beyond)[0][:2]
        question = at.keys[int(np.searchsorted(at.rows.cumsum(), row, side="right"))]
        raise too_large(
            f"question {question!r}: activations at {layers[layer]}", float(np.abs(values[row, layer]).max()), dtype
        )
    return narrow


# ---- reading -------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StoredActivations:
    """The activations of a run at one position, checked when opened and read from disk when asked for.

    Opening reads headers, tokens and row counts, each shard once; `layer` and `values` read activations, each shard
    once per call, and check that they are finite.

    Attributes:
        position: name of the array.
        layers: [layer] hook names, in the order of the network.
        questions: [question] ids, in the order of `Run.questions`.
        rows: [question] rows of each question: 1 at most positions, 0 where a question has no such position, several
            where every token was kept.
        token_ids: [row] the token found at the position (of a mean, at its last token).
        token_index: [row] index of that token in the prompt, or in prompt and answer together; from 0.
        samples: [row] at a position in the answer, the row of `Run.samples` that holds this answer; else -1.
        width: (d_model,) or (head, d_head).
    """

    position: str
    layers: tuple[str, ...]
    questions: tuple[str, ...]
    rows: np.ndarray
    token_ids: np.ndarray
    token_index: np.ndarray
    samples: np.ndarray
    width: tuple[int, ...]
    _stored_layers: tuple[str, ...] = field(repr=False)
    _shards: tuple[tuple[Path, int], ...] = field(repr=False)  # file, rows

    @classmethod
    def open(
        cls,
        files: Sequence[Path],
        position: str,
        *,
        questions: tuple[str, ...],
        tokenizer_hash: str,
        prompts: Path,
        samples: Sequence[Path],
    ) -> StoredActivations:
        """Check the headers and tokens of all shards against what the run records.

        Args:
            questions: [question] ids, in order.
            prompts: A parquet file with one list of token ids per question.
            samples: [shard] parquet files with one list of token ids per answer; read for positions in the answer only.

        Raises:
            UserError: nothing captured at this position, naming the nearest; activations of other layers, another
                tokenizer or other tokens than the run's.
        """
        answers = TokenLists.read(samples) if in_answer(position.removesuffix(HEADS)) else None
        firsts = [0] * len(files) if answers is None else answers.first.tolist()
        shards = [_Shard.open(file, position, first) for file, first in zip(files, firsts, strict=True)]
        for shard in shards:
            shard.check(shards[0].layers, tokenizer_hash)
        columns = ((s.rows, s.token_ids, s.token_index, s.samples) for s in shards)
        rows, token_ids, token_index, answer_rows = (np.concatenate(column) for column in zip(*columns, strict=True))
        widest = max(shards, key=lambda s: s.shape[0])  # a shard without rows does not know the width
        found = cls(
            position=position,
            layers=shards[0].layers,
            questions=questions,
            rows=rows,
            token_ids=token_ids,
            token_index=token_index,
            samples=answer_rows,
            width=widest.shape[2:],
            _stored_layers=shards[0].layers,
            _shards=tuple((s.file, s.shape[0]) for s in shards),
        )
        _check_tokens(found, TokenLists.read([prompts]), answers)
        return found

    def only(self, layers: Sequence[str]) -> StoredActivations:
        """Some of the layers, in the order given.

        Raises:
            UserError: a layer that was not captured, naming the nearest.
        """
        for layer in layers:
            if layer not in self._stored_layers:
                raise UserError(
                    f"nothing captured at layer {layer!r} of {self.position}{nearest(layer, self._stored_layers)}; "
                    f"captured are {', '.join(self._stored_layers)}"
                )
        return replace(self, layers=tuple(layers))

    @property
    def present(self) -> np.ndarray:
        """[question] whether a question has this position."""
        return self.rows > 0

    @property
    def ragged(self) -> bool:
        """Whether a question has several rows."""
        return bool((self.rows > 1).any())

    @cached_property
    def values(self) -> np.ndarray:
        """[row, layer, d_model] or [row, layer, head, d_head], float32: all of `layers`, kept once read."""
        return self._read(self.layers)

    def layer(self, name: str) -> np.ndarray:
        """[row, d_model] or [row, head, d_head], float32: one layer, read from disk at every call.

        Raises:
            UserError: no such layer, naming the nearest; NaN or infinity, naming file, layer and row.
        """
        return self.only([name])._read([name])[:, 0]

    def _read(self, layers: Sequence[str]) -> np.ndarray:
        columns = [self._stored_layers.index(name) for name in layers]
        values = np.empty((sum(n for _, n in self._shards), len(columns), *self.width), dtype=np.float32)
        first = 0
        for file, n in self._shards:
            block = values[first : first + n]
            if n:
                with safe_open(file, framework="np") as stored:
                    array = stored.get_slice(self.position)
                    for to, column in enumerate(columns):
                        block[:, to] = array[:, column : column + 1][:, 0]
                _check_finite(block, file, self.position, layers)
            first += n
        return values


@dataclass(frozen=True)
class _Shard:
    """What one file says of an array, without its values."""

    file: Path
    array: str
    layers: tuple[str, ...]
    shape: tuple[int, ...]
    key: str
    tokenizer_hash: str
    rows: np.ndarray
    token_ids: np.ndarray
    token_index: np.ndarray
    samples: np.ndarray

    @classmethod
    def open(cls, file: Path, array: str, first_answer: int) -> _Shard:
        """`first_answer`: the row of `Run.samples` at which the samples of this shard begin."""
        position = array.removesuffix(HEADS)
        with safe_open(file, framework="np") as stored:
            facts, names = stored.metadata() or {}, list(stored.keys())
            there = [n for n in names if "." not in n and n != ANSWER_ROW]
            if array not in there:
                raise UserError(
                    f"nothing captured at position {array!r}{nearest(array, there)}; captured are {', '.join(there)}"
                )
            if "shard" not in facts or f"{position}.rows" not in names:
                raise UserError(
                    f"{file} was written by an early version of semcal; delete the run's folder and run its study again"
                )
            rows = stored.get_tensor(f"{position}.rows")
            answer = stored.get_tensor(ANSWER_ROW) if in_answer(position) else np.full(len(rows), -1)
            return cls(
                file=file,
                array=array,
                layers=tuple(json.loads(facts["head_layers" if array.endswith(HEADS) else "layers"])),
                shape=tuple(stored.get_slice(array).get_shape()),
                key=facts["shard"],
                tokenizer_hash=facts.get("tokenizer_hash", ""),
                rows=rows,
                token_ids=stored.get_tensor(f"{position}.token_id"),
                token_index=stored.get_tensor(f"{position}.token_index"),
                samples=np.repeat(np.where(answer >= 0, answer + first_answer, -1), rows),
            )

    def check(self, layers: tuple[str, ...], tokenizer_hash: str) -> None:
        """Refuse a file of another run."""
        if self.layers != layers:
            problem = f"holds other layers of {self.array} than the first shard"
        elif self.key != self.file.stem:
            problem = f"holds shard {self.key}"
        elif self.tokenizer_hash != tokenizer_hash:
            problem = "was captured with another tokenizer than this run's"
        else:
            return
        raise UserError(
            f"{self.file} {problem}, so it belongs to another run; delete this file and run its study again"
        )


def _check_finite(block: np.ndarray, file: Path, array: str, layers: Sequence[str]) -> None:
    finite = np.isfinite(block)
    if not finite.all():
        row, layer = np.argwhere(~finite)[0][:2]
        raise UserError(
            f"{file}: {array} holds NaN or infinity at {layers[layer]}, row {row}; delete this file and `semcal run` "
            "its study again"
        )


@dataclass(frozen=True)
class TokenLists:
    """Lists of token ids, laid end to end.

    Attributes:
        flat: [token] all ids.
        offsets: [list + 1] where each list begins.
        first: [file] the number of the first list of each file.
    """

    flat: np.ndarray
    offsets: np.ndarray
    first: np.ndarray

    @classmethod
    def read(cls, files: Sequence[Path]) -> TokenLists:
        """The column `token_ids` of some parquet files.

        Raises:
            UserError: a file is missing.
        """
        if (missing := next((f for f in files if not f.is_file()), None)) is not None:
            raise UserError(f"{missing} is missing; delete the run's folder and run its study again")
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
    if not len(at.rows) == len(prompts.lengths) == len(at.questions):
        raise UserError(
            f"activations of {len(at.rows)} questions, but prompts of {len(prompts.lengths)} and "
            f"{len(at.questions)} ids: these files belong to another run; delete its folder and run its study again"
        )
    if not int(at.rows.sum()) == len(at.token_ids) == len(at.token_index):
        raise UserError(
            f"{at.position} has {int(at.rows.sum())} rows and {len(at.token_ids)} token ids: these files are damaged; "
            "delete the folder of the run and run its study again"
        )
    question = np.repeat(np.arange(len(at.rows)), at.rows)
    expected = prompts.at(question, at.token_index)
    if answers is not None:
        behind = at.token_index - prompts.lengths[question]
        expected = np.where(behind >= 0, answers.at(at.samples, behind), expected)
    wrong = np.flatnonzero(expected != at.token_ids)
    if len(wrong):
        row = wrong[0]
        raise UserError(
            f"{at.position} of question {at.questions[question[row]]!r} was read at token id {at.token_ids[row]}, but "
            f"this run has {expected[row]} there: these activations belong to another run; delete its folder and run "
            "its study again"
        )
