"""Attention over a tree of answers: what prompts share is stored once, and so is every question.

The keys and values that a new token attends to lie in three places: the tokens that all prompts begin with (`prefix`,
once a run), the rest of its question (`tails`, a slot a question), and its own answer so far (`answers`, a row a
distinct answer). The scores of all three go through one softmax, so the result is that of ordinary attention over
their concatenation, which is never built.

It enters a model through the attention interface of transformers, which passes the keyword `tree` on to every layer.
Keys arrive there already rotated, and position ids are given, so it serves every architecture whose attention is a
softmax over scaled products, with sliding windows and soft-capped scores if it has them. What it cannot serve raises
`Unserved`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, PreTrainedModel

NAME = "semcal_tree"
# What layers pass along that does not change the result.
_HARMLESS = {
    "dropout",
    "position_ids",
    "use_cache",
    "output_attentions",
    "cache_position",
    "is_causal",
    "logits_to_keep",
}
_CHUNK_WIDTHS = (1, 2, 4, 8, 16, 32, 64, 128)


class Unserved(Exception):
    """A layer whose attention is of another kind; says which."""


@dataclass(frozen=True)
class Call:
    """One layer's attention over new tokens.

    Attributes:
        layer: Index of the layer.
        query: [row, head, new, d]; key, value: [row, kv head, new, d], rotated.
        scaling: Factor of the scores.
        window: A token sees only so many last positions, itself included; None sees all.
        softcap: Scores are squeezed to ±softcap by tanh; None leaves them.
    """

    layer: int
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scaling: float
    window: int | None
    softcap: float | None


class Pass(Protocol):
    """One forward pass over the tree: takes the new keys and values of each layer, returns [row, head, new, d]."""

    def attend(self, call: Call) -> torch.Tensor: ...


def tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    tree: Pass | None = None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    **others: object,
) -> tuple[torch.Tensor, None]:
    """The function that transformers calls in every layer; returns ([row, new, head, d], None)."""
    unknown = [k for k, v in others.items() if k not in _HARMLESS and v is not None]
    if tree is None or attention_mask is not None or unknown or not hasattr(module, "layer_idx"):
        raise Unserved(f"{type(module).__name__} ({', '.join(unknown) or 'does not pass the tree on'})")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = tree.attend(Call(int(module.layer_idx), query, key, value, scale, sliding_window, softcap))  # pyright: ignore[reportArgumentType]
    return out.transpose(1, 2), None


AttentionInterface.register(NAME, tree_attention)


@contextmanager
def tree_attention_in(model: PreTrainedModel) -> Iterator[None]:
    """Within it the model attends through the tree; afterwards its own attention is back."""
    own = model.config._attn_implementation or "eager"
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(own)


@dataclass
class TreeStore:
    """The keys and values of a run, by place and layer: (keys, values) with the position before the last axis."""

    prefix: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)  # [kv head, position, d]
    tails: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)  # [slot, kv head, position, d]
    answers: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)  # [row, kv head, token, d]

    def numbers(self, place: str) -> int:
        """How many keys and values a place holds."""
        return sum(part.numel() for pair in getattr(self, place).values() for part in pair)

    @property
    def nbytes(self) -> int:
        places = (self.prefix, self.tails, self.answers)
        return sum(part.nbytes for place in places for pair in place.values() for part in pair)

    @property
    def prefix_length(self) -> int:
        return self.prefix[0][0].shape[-2] if self.prefix else 0

    def move_answers(self, rows: int, length: int, target: torch.Tensor, source: torch.Tensor) -> None:
        """Make room for `rows` answers of `length` tokens; then row target[i] becomes a copy of row source[i]."""
        for layer, pair in self.answers.items():
            pair = tuple(_roomy(part, rows, length) for part in pair)
            for part in pair:
                to, of = target.to(part.device), source.to(part.device)
                part[to, :, :length] = part[of, :, :length]
            self.answers[layer] = pair  # pyright: ignore[reportArgumentType]

    def put_tails(self, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store [question, kv head, position, d], aligned to the right, in these slots."""
        slots = slots.to(key.device)
        needed, length = int(slots.max()) + 1, key.shape[-2]
        old = self.tails.get(layer)
        pair = []
        for at, new in enumerate((key, value)):
            heads, width = new.shape[1], new.shape[-1]
            buffer = old[at] if old is not None else new.new_empty(0, heads, 0, width)
            if needed > len(buffer) or length > buffer.shape[-2]:
                grown = new.new_zeros(max(needed, len(buffer)), heads, max(length, buffer.shape[-2]), width)
                grown[: len(buffer), :, grown.shape[-2] - buffer.shape[-2] :] = buffer
                buffer = grown
            buffer[slots, :, buffer.shape[-2] - length :] = new
            pair.append(buffer)
        self.tails[layer] = (pair[0], pair[1])


class PrefixPass:
    """The tokens that all prompts begin with: one row, read once."""

    def __init__(self, store: TreeStore) -> None:
        self.store = store

    def attend(self, call: Call) -> torch.Tensor:
        self.store.prefix[call.layer] = (call.key[0], call.value[0])
        length = call.query.shape[-2]
        at = torch.arange(length, device=call.query.device)
        seen = at[:, None] >= at
        if call.window is not None:
            seen &= at[:, None] - at < call.window
        return _dense(call, call.key, call.value, seen)


class TailPass:
    """What follows the prefix in some prompts: [question, position], padded on the left.

    Args:
        store: Where keys and values go, and where the prefix lies.
        mask: [question, position] 1 for a token, 0 for padding.
        slots: [question] where each is stored.
    """

    def __init__(self, store: TreeStore, mask: torch.Tensor, slots: torch.Tensor) -> None:
        self.store, self.mask, self.slots = store, mask.bool(), slots

    def attend(self, call: Call) -> torch.Tensor:
        self.store.put_tails(call.layer, self.slots, call.key, call.value)
        mask = self.mask.to(call.query.device)
        questions, length = mask.shape
        at = torch.arange(length, device=mask.device)
        prefix = self.store.prefix_length
        key_at = torch.arange(prefix + length, device=mask.device)
        seen = mask.new_ones(questions, length, prefix + length)
        # A padded query sees its own position alone, so that no row of scores is empty.
        seen[:, :, prefix:] = (mask[:, None] & (at[:, None] >= at)) | torch.eye(
            length, dtype=torch.bool, device=mask.device
        )
        if call.window is not None:
            shift = (~mask).sum(-1)  # padding between the prefix and a tail takes no position
            query_at = prefix + at - shift[:, None]
            real_at = torch.where(key_at < prefix, key_at, key_at - shift[:, None])
            seen &= query_at[:, :, None] - real_at[:, None] < call.window
        key, value = call.key, call.value
        if prefix:
            shared_key, shared_value = self.store.prefix[call.layer]
            key = torch.cat([shared_key.expand(questions, -1, -1, -1), key], -2)
            value = torch.cat([shared_value.expand(questions, -1, -1, -1), value], -2)
        return _dense(call, key, value, seen[:, None])


class AnswerPass:
    """One new token for each of some answers.

    Args:
        store: Where everything lies and the new keys and values go.
        rows: [row] which stored answers these are; None is the first R, in order.
        slots: [row] the question each belongs to.
        lengths: [row] tokens of each answer before the new one.
        tail_lengths: [slot] tokens of each question after the prefix.
    """

    def __init__(
        self,
        store: TreeStore,
        rows: torch.Tensor | None,
        slots: torch.Tensor,
        lengths: torch.Tensor,
        tail_lengths: torch.Tensor,
    ) -> None:
        self.store, self.rows, self.slots, self.lengths = store, rows, slots, lengths
        self.tail_lengths = tail_lengths
        self.longest, self.ragged = int(lengths.max()) + 1, bool((lengths != lengths[0]).any())
        self._chunks()
        self._index: dict[torch.device, _Indices] = {}

    def _chunks(self) -> None:
        """Rows of a question side by side in chunks of one width, so that few large products do for all of them."""
        counts = torch.bincount(self.slots)
        slots, counts = counts.nonzero().flatten(), counts[counts > 0]
        chunks = {w: (counts + w - 1) // w for w in _CHUNK_WIDTHS}
        self.width = min(_CHUNK_WIDTHS, key=lambda w: int(chunks[w].sum()) * (w + 4))  # 4: the price of a chunk
        per_slot = chunks[self.width]
        self.chunk_slots = slots.repeat_interleave(per_slot)
        first = torch.zeros(int(slots[-1]) + 1, dtype=torch.long)
        first[slots] = (per_slot.cumsum(0) - per_slot) * self.width
        order = self.slots.argsort(stable=True)
        within = torch.arange(len(order)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
        self.place = torch.empty_like(order)
        self.place[order] = first[self.slots[order]] + within

    def attend(self, call: Call) -> torch.Tensor:
        rows, heads, _, d = call.query.shape
        kv = call.key.shape[1]
        g, chunks, width = heads // kv, len(self.chunk_slots), self.width
        index = self._on(call.query.device)
        answers = self._stored(call, index)
        tails = self.store.tails[call.layer]
        if not index.every_slot or len(tails[0]) != chunks:
            tails = (tails[0][index.chunk_slots], tails[1][index.chunk_slots])
        query = call.query.view(rows, kv, g, d) * call.scaling

        parts = []
        if self.store.prefix:
            key, prefix_value = self.store.prefix[call.layer]
            flat = query.transpose(0, 1).reshape(kv, rows * g, d) @ key.mT  # [kv, row g, position]
            parts.append(flat.view(kv, rows, g, -1).transpose(0, 1))
        spread = query.new_zeros(chunks * width, kv, g, d)
        spread[index.place] = query
        spread = spread.view(chunks, width, kv, g, d).transpose(1, 2).reshape(chunks, kv, width * g, d)
        scores = (spread @ tails[0].mT).view(chunks, kv, width, g, -1)
        parts.append(scores.transpose(1, 2).reshape(chunks * width, kv, g, -1)[index.place])
        parts.append(query @ answers[0].mT)  # [row, kv, g, token]

        if call.softcap is not None:
            parts = [(part / call.softcap).tanh() * call.softcap for part in parts]
        sizes = [part.shape[-1] for part in parts]
        for part, hidden in zip(reversed(parts), reversed(index.hidden(call.window, *sizes)), strict=False):
            if hidden is not None:
                part.masked_fill_(hidden[:, None, None], -torch.inf)
        scores = torch.cat(parts, -1)
        weights = scores.softmax(-1, dtype=torch.float32).to(call.value.dtype).split(sizes, -1)

        out = weights[-1] @ answers[1]
        spread = weights[-2].new_zeros(chunks * width, kv, g, sizes[-2])
        spread[index.place] = weights[-2]
        spread = spread.view(chunks, width, kv, g, -1).transpose(1, 2).reshape(chunks, kv, width * g, -1)
        mixed = (spread @ tails[1]).view(chunks, kv, width, g, -1)
        out += mixed.transpose(1, 2).reshape(chunks * width, kv, g, -1)[index.place]
        if self.store.prefix:
            flat = weights[0].transpose(0, 1).reshape(kv, rows * g, -1) @ prefix_value  # pyright: ignore[reportPossiblyUnboundVariable]
            out += flat.view(kv, rows, g, -1).transpose(0, 1)
        return out.reshape(rows, heads, 1, -1)

    def _stored(self, call: Call, index: _Indices) -> list[torch.Tensor]:
        """Write the new token of each answer, then show the answers: ([row, kv head, token, d]) twice."""
        if call.layer not in self.store.answers:
            room = (call.key.new_zeros(0, *part.shape[1:2], 0, part.shape[-1]) for part in (call.key, call.value))
            self.store.answers[call.layer] = tuple(room)  # pyright: ignore[reportArgumentType]
        needed = len(self.slots) if self.rows is None else int(self.rows.max()) + 1
        shown, pair = [], []
        for part, new in zip(self.store.answers[call.layer], (call.key, call.value), strict=True):
            part = _roomy(part, needed, self.longest)
            if self.ragged or index.rows is not None:
                part[index.row_numbers, :, index.lengths] = new[:, :, 0]
            else:
                part[:needed, :, self.longest - 1] = new[:, :, 0]
            pair.append(part)
            shown.append((part[:needed] if index.rows is None else part[index.rows])[:, :, : self.longest])
        self.store.answers[call.layer] = (pair[0], pair[1])
        return shown

    def _on(self, device: torch.device) -> _Indices:
        if device not in self._index:
            self._index[device] = _Indices(self, device)
        return self._index[device]


class _Indices:
    """What an `AnswerPass` knows of its rows, on one device (layers may lie on several)."""

    def __init__(self, of: AnswerPass, device: torch.device) -> None:
        self.rows = None if of.rows is None else of.rows.to(device)
        self.row_numbers = torch.arange(len(of.slots), device=device) if self.rows is None else self.rows
        self.slots, self.lengths = of.slots.to(device), of.lengths.to(device)
        self.place, self.chunk_slots = of.place.to(device), of.chunk_slots.to(device)
        self.tail_lengths = of.tail_lengths.to(device)[self.slots]
        self.every_slot = bool((of.chunk_slots == torch.arange(len(of.chunk_slots))).all())
        self.ragged = of.ragged
        self._hidden: dict[int | None, tuple[torch.Tensor | None, ...]] = {}

    def hidden(self, window: int | None, *sizes: int) -> tuple[torch.Tensor | None, ...]:
        """For (prefix, tail, answer): [row, position] True where a row must not look; None where it may everywhere.

        Args:
            sizes: Positions of (prefix, tail, answer), or of (tail, answer) where prompts share nothing.
        """
        if window not in self._hidden:
            prefix, tail, answer = sizes if len(sizes) == 3 else (0, *sizes)
            self._hidden[window] = self._compute(window, prefix, tail, answer)
        return self._hidden[window]

    def _compute(self, window: int | None, prefix: int, tail: int, answer: int) -> tuple[torch.Tensor | None, ...]:
        device = self.lengths.device
        early, padding, token = (torch.arange(n, device=device) for n in (prefix, tail, answer))
        blank = (tail - self.tail_lengths)[:, None]  # tails are aligned to the right
        in_tail = padding < blank if bool((blank > 0).any()) else None
        in_answer = token > self.lengths[:, None] if self.ragged else None
        now = (prefix + self.tail_lengths + self.lengths)[:, None]  # position of the new token
        if window is None or int(now.max()) < window:
            return None, in_tail, in_answer
        in_prefix = now - early >= window
        far = now - (prefix + padding - blank) >= window
        in_tail = far if in_tail is None else in_tail | far
        far = now - (prefix + self.tail_lengths[:, None] + token) >= window
        in_answer = far if in_answer is None else in_answer | far
        return in_prefix, in_tail, in_answer


def _dense(call: Call, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Ordinary attention of [row, head, new, d] over [row, kv head, position, d] where `seen` is True."""
    g = call.query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(g, 1), value.repeat_interleave(g, 1)
    if call.softcap is None:
        return scaled_dot_product_attention(call.query, key, value, attn_mask=seen, scale=call.scaling)
    scores = call.query @ key.mT * call.scaling
    scores = (scores / call.softcap).tanh() * call.softcap
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1, dtype=torch.float32)
    return weights.to(value.dtype) @ value


def _roomy(part: torch.Tensor, rows: int, length: int) -> torch.Tensor:
    """The same [row, kv head, token, d], with room for at least so many rows and tokens."""
    old_rows, heads, old_length, d = part.shape
    if rows <= old_rows and length <= old_length:
        return part
    new_rows = old_rows if rows <= old_rows else max(rows, old_rows + old_rows // 4)
    new_length = old_length if length <= old_length else max(length, 8, old_length * 2)
    grown = part.new_zeros(new_rows, heads, new_length, d)
    grown[:old_rows, :, :old_length] = part
    return grown
