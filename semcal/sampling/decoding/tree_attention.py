"""Attention over a tree of answers: the shared prefix is stored once, and so is each question.

A new token attends to keys and values in three places: the tokens that all prompts begin with (`prefix`, once per run),
the rest of its question (`tails`, one slot per question), and its own answer so far (`answers`, one row per distinct
answer). The scores of all three go through one softmax, so the result is that of ordinary attention over their
concatenation, which is never built.

A model uses it through the attention interface of transformers, which passes the keyword `tree` to every layer. Keys
arrive already rotated and position ids are given, so every architecture is supported whose attention is a softmax over
scaled products, with or without sliding windows and soft-capped scores. Any other raises `Unserved`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import AttentionInterface, PreTrainedModel

from semcal.sampling.decoding.softmax import Call, Part, as_bias, attend_part, dense, fuses, merge

NAME = "semcal_tree"
# Options that layers pass and that do not change the result.
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
    """A layer has a kind of attention that is not supported; the message names it."""


def tree_attention(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    *,
    tree: PrefixPass | TailPass | AnswerPass | None = None,
    scaling: float | None = None,
    **options: Any,
) -> tuple[torch.Tensor, None]:
    """The function that transformers calls in every layer; returns ([row, new, head, d], None).

    `tree` is one forward pass over the tree: it stores the new keys and values of each layer and attends to them.

    Of `options`, sliding_window and softcap change the result and are followed; any other that might is refused.
    """
    sliding_window, softcap = options.pop("sliding_window", None), options.pop("softcap", None)
    unknown = [k for k, v in options.items() if k not in _HARMLESS and v is not None]
    if tree is None or attention_mask is not None or unknown or not hasattr(module, "layer_idx"):
        raise Unserved(f"{type(module).__name__} ({', '.join(unknown) or 'does not pass the tree on'})")
    scale = query.shape[-1] ** -0.5 if scaling is None else scaling
    out = tree.attend(Call(int(module.layer_idx), query, key, value, scale, sliding_window, softcap))  # pyright: ignore[reportArgumentType]
    return out.transpose(1, 2), None


AttentionInterface.register(NAME, tree_attention)


@contextmanager
def tree_attention_in(model: PreTrainedModel) -> Iterator[None]:
    """A context in which the model attends through the tree; its own attention is restored afterwards."""
    own = model.config._attn_implementation or "eager"
    model.set_attn_implementation(NAME)
    try:
        yield
    finally:
        model.set_attn_implementation(own)


@dataclass
class TreeStore:
    """(keys, values) of each layer for the shared prefix, the questions and the answers."""

    prefix: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)  # [kv head, position, d]
    tails: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)  # [slot, kv head, position, d]
    answers: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)  # [row, kv head, token, d]

    @property
    def nbytes(self) -> int:
        places = (self.prefix, self.tails, self.answers)
        return sum(part.nbytes for place in places for pair in place.values() for part in pair)

    @property
    def prefix_length(self) -> int:
        return self.prefix[0][0].shape[-2] if self.prefix else 0

    def move_answers(self, rows: int, length: int, target: torch.Tensor, source: torch.Tensor) -> None:
        """Make room for `rows` answers of `length` tokens, then copy row source[i] to row target[i]."""
        for layer, pair in self.answers.items():
            pair = tuple(roomy(part, rows, length) for part in pair)
            for part in pair:
                to, of = target.to(part.device), source.to(part.device)
                part[to, :, :length] = part[of, :, :length]
            self.answers[layer] = pair  # pyright: ignore[reportArgumentType]

    def put_tails(self, layer: int, slots: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
        """Store [question, kv head, position, d] in these slots, aligned to the right."""
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


def roomy(part: torch.Tensor, rows: int, length: int) -> torch.Tensor:
    """[row, kv head, token, d] with room for at least `rows` rows and `length` tokens."""
    old_rows, heads, old_length, d = part.shape
    if rows <= old_rows and length <= old_length:
        return part
    new_rows = old_rows if rows <= old_rows else max(rows, old_rows + old_rows // 4)
    new_length = old_length if length <= old_length else max(length, 8, old_length * 2)
    grown = part.new_zeros(new_rows, heads, new_length, d)
    grown[:old_rows, :, :old_length] = part
    return grown


class PrefixPass:
    """The shared prefix of all prompts: one row, read once."""

    def __init__(self, store: TreeStore) -> None:
        self.store = store

    def attend(self, call: Call) -> torch.Tensor:
        self.store.prefix[call.layer] = (call.key[0], call.value[0])
        at = torch.arange(call.query.shape[-2], device=call.query.device)
        seen = at[:, None] >= at
        if call.window is not None:
            seen &= at[:, None] - at < call.window
        return dense(call, call.key, call.value, seen)


class TailPass:
    """The rest of some prompts after the prefix: [question, position], padded on the left.

    Args:
        store: Holds the prefix, and receives the new keys and values.
        mask: [question, position] 1 for a token, 0 for padding.
        slots: [question] slot of each.
    """

    def __init__(self, store: TreeStore, mask: torch.Tensor, slots: torch.Tensor) -> None:
        self.store, self.mask, self.slots = store, mask.bool(), slots
        self._seen: dict[tuple[torch.device, int | None], torch.Tensor] = {}

    def attend(self, call: Call) -> torch.Tensor:
        self.store.put_tails(call.layer, self.slots, call.key, call.value)
        seen = self._what_is_seen(call.query.device, call.window)
        if not self.store.prefix:
            return dense(call, call.key, call.value, seen[:, None])
        shared_key, shared_value = self.store.prefix[call.layer]
        if fuses(call):
            return self._attend_in_parts(call, shared_key, shared_value, seen)
        questions = len(self.slots)
        key = torch.cat([shared_key.expand(questions, -1, -1, -1), call.key], -2)
        value = torch.cat([shared_value.expand(questions, -1, -1, -1), call.value], -2)
        return dense(call, key, value, seen[:, None])

    def _attend_in_parts(
        self, call: Call, shared_key: torch.Tensor, shared_value: torch.Tensor, seen: torch.Tensor
    ) -> torch.Tensor:
        """The same, with all queries of all questions in one row, so that the prefix's keys are read only once."""
        questions, heads, length, d = call.query.shape
        kv, prefix = call.key.shape[1], shared_key.shape[-2]
        grouped = call.query.reshape(questions, kv, -1, d)  # [question, kv head, g position, d]
        g = heads // kv
        seen = seen.repeat(1, g, 1)  # [question, g position, prefix + position]
        flat = grouped.transpose(0, 1).reshape(1, kv, -1, d)
        far = None if call.window is None else as_bias(seen[None, None, ..., :prefix].flatten(2, 3))
        over_prefix, lse = attend_part(call, flat, shared_key[None], shared_value[None], far, fused=True)
        over_prefix = over_prefix.view(kv, questions, -1, d).transpose(0, 1)
        own = attend_part(call, grouped, call.key, call.value, as_bias(seen[:, None, :, prefix:]), fused=True)
        merged = merge([(over_prefix, lse.view(kv, questions, -1).transpose(0, 1)), own])
        return merged.reshape(questions, heads, length, d)

    def _what_is_seen(self, device: torch.device, window: int | None) -> torch.Tensor:
        """[question, position, prefix + position] whether a query sees a key; one mask for all layers with a window."""
        if (device, window) not in self._seen:
            self._seen[device, window] = self._compute(self.mask.to(device), window)
        return self._seen[device, window]

    def _compute(self, mask: torch.Tensor, window: int | None) -> torch.Tensor:
        questions, length = mask.shape
        at = torch.arange(length, device=mask.device)
        prefix = self.store.prefix_length
        key_at = torch.arange(prefix + length, device=mask.device)
        seen = mask.new_ones(questions, length, prefix + length)
        # A padded query sees only its own position, so that no row of scores is empty.
        seen[:, :, prefix:] = (mask[:, None] & (at[:, None] >= at)) | torch.eye(
            length, dtype=torch.bool, device=mask.device
        )
        if window is not None:
            shift = (~mask).sum(-1)  # padding between the prefix and a tail has no position
            query_at = prefix + at - shift[:, None]
            real_at = torch.where(key_at < prefix, key_at, key_at - shift[:, None])
            seen &= query_at[:, :, None] - real_at[:, None] < window
        return seen


class AnswerPass:
    """One new token for each of some answers.

    Args:
        store: Holds all keys and values, and receives the new ones.
        rows: [row] stored answers to extend; None for the first R, in order.
        slots: [row] slot of the question of each.
        lengths: [row] number of tokens before the new one.
        tail_lengths: [slot] number of tokens of each question after the prefix.
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
        self.longest_tail = int(tail_lengths[self.chunk_slots].max())
        self._index: dict[torch.device, _Indices] = {}

    def _chunks(self) -> None:
        """Put the rows of a question side by side in chunks of one width, so that few large products suffice."""
        counts = torch.bincount(self.slots)
        slots, counts = counts.nonzero().flatten(), counts[counts > 0]
        chunks = {w: (counts + w - 1) // w for w in _CHUNK_WIDTHS}
        self.width = min(_CHUNK_WIDTHS, key=lambda w: int(chunks[w].sum()) * (w + 4))  # 4: the overhead of a chunk
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
        index = self._on(call.query.device)
        query = call.query.view(rows, kv, heads // kv, d)
        answers = self._stored(call, index)
        key, value = (part[:, :, -self.longest_tail :] for part in self.store.tails[call.layer])
        if index.first_slots:
            key, value = key[: len(self.chunk_slots)], value[: len(self.chunk_slots)]
        else:
            key, value = key[index.chunk_slots], value[index.chunk_slots]
        in_prefix, in_tail, in_answer = index.bias(
            call.window, heads // kv, self.store.prefix_length, key.shape[-2], answers[0].shape[-2]
        )
        parts = [
            attend_part(call, query, *answers, in_answer, fused=False),
            self._over_tails(call, query, (key, value), in_tail),
        ]
        if self.store.prefix:
            parts.append(self._over_prefix(call, query, in_prefix))
        return merge(parts).reshape(rows, heads, 1, d)

    def _over_prefix(self, call: Call, query: torch.Tensor, bias: torch.Tensor | None) -> Part:
        """Attention over the prefix, with all rows as queries of one row, so that its keys are read once."""
        rows, kv, g, d = query.shape
        key, value = self.store.prefix[call.layer]
        flat = query.transpose(0, 1).reshape(1, kv, rows * g, d)
        out, lse = attend_part(call, flat, key[None], value[None], bias, fused=True)
        return out.view(kv, rows, g, d).transpose(0, 1), lse.view(kv, rows, g).transpose(0, 1)

    def _over_tails(
        self, call: Call, query: torch.Tensor, tails: tuple[torch.Tensor, torch.Tensor], bias: torch.Tensor | None
    ) -> Part:
        """Attention over the tails, with the rows of a question side by side."""
        _, kv, g, d = query.shape
        chunks, width, index = len(self.chunk_slots), self.width, self._on(query.device)
        place = index.place
        spread = query[index.row_at].view(chunks, width, kv, g, d).transpose(1, 2).reshape(chunks, kv, width * g, d)
        out, lse = attend_part(call, spread, *tails, bias, fused=True)
        out = out.view(chunks, kv, width, g, d).transpose(1, 2).reshape(chunks * width, kv, g, d)
        lse = lse.view(chunks, kv, width, g).transpose(1, 2).reshape(chunks * width, kv, g)
        return out[place], lse[place]

    def _stored(self, call: Call, index: _Indices) -> tuple[torch.Tensor, torch.Tensor]:
        """Store the new token of each answer; keys and values [row, kv head, token, d] of all its tokens."""
        if call.layer not in self.store.answers:
            empty = [new.new_zeros(0, new.shape[1], 0, new.shape[-1]) for new in (call.key, call.value)]
            self.store.answers[call.layer] = (empty[0], empty[1])
        needed = len(self.slots) if self.rows is None else int(self.rows.max()) + 1
        shown, pair = [], []
        for part, new in zip(self.store.answers[call.layer], (call.key, call.value), strict=True):
            part = roomy(part, needed, self.longest)
            if self.ragged or index.rows is not None:
                part[index.row_numbers, :, index.lengths] = new[:, :, 0]
            else:
                part[:needed, :, self.longest - 1] = new[:, :, 0]
            pair.append(part)
            shown.append((part[:needed] if index.rows is None else part[index.rows])[:, :, : self.longest])
        self.store.answers[call.layer] = (pair[0], pair[1])
        return shown[0], shown[1]

    def _on(self, device: torch.device) -> _Indices:
        if device not in self._index:
            self._index[device] = _Indices(self, device)
        return self._index[device]


class _Indices:
    """The row indices of an `AnswerPass` on one device (layers may be on several)."""

    def __init__(self, of: AnswerPass, device: torch.device) -> None:
        self.rows = None if of.rows is None else of.rows.to(device)
        self.row_numbers = torch.arange(len(of.slots), device=device) if self.rows is None else self.rows
        self.slots, self.lengths = of.slots.to(device), of.lengths.to(device)
        self.place, self.chunk_slots = of.place.to(device), of.chunk_slots.to(device)
        self.row_at = torch.zeros(len(of.chunk_slots) * of.width, dtype=torch.long, device=device)  # any row in a gap
        self.row_at[self.place] = torch.arange(len(of.place), device=device)
        self.tail_lengths = of.tail_lengths.to(device)[self.slots]
        self.first_slots = bool((of.chunk_slots == torch.arange(len(of.chunk_slots))).all())  # one chunk each
        self.ragged = of.ragged
        self.width = of.width
        self._biases: dict[int | None, tuple[torch.Tensor | None, ...]] = {}

    def bias(self, window: int | None, g: int, prefix: int, tail: int, answer: int) -> tuple[torch.Tensor | None, ...]:
        """What to add to the scores over prefix, tail and answer, given their lengths; None if all is seen."""
        if window not in self._biases:
            self._biases[window] = self._compute(window, g, prefix, tail, answer)
        return self._biases[window]

    def _compute(
        self, window: int | None, g: int, prefix: int, tail: int, answer: int
    ) -> tuple[torch.Tensor | None, ...]:
        device = self.lengths.device
        early, padding, token = (torch.arange(n, device=device) for n in (prefix, tail, answer))
        blank = (tail - self.tail_lengths)[:, None]  # tails are aligned to the right
        in_prefix = None
        in_tail = padding >= blank if bool((blank > 0).any()) else None
        in_answer = token <= self.lengths[:, None] if self.ragged else None
        now = (prefix + self.tail_lengths + self.lengths)[:, None]  # position of the new token
        if window is not None and int(now.max()) >= window:
            in_prefix = now - early < window
            near = now - (prefix + padding - blank) < window
            in_tail = near if in_tail is None else in_tail & near
            near = now - (prefix + self.tail_lengths[:, None] + token) < window
            in_answer = near if in_answer is None else in_answer & near
        if in_tail is not None:  # [row, tail] -> [chunk, 1, width g, tail]
            spread = in_tail.new_ones(len(self.chunk_slots) * self.width, tail)
            spread[self.place] = in_tail
            in_tail = spread.repeat_interleave(g, 0).view(len(self.chunk_slots), 1, -1, tail)
        return (
            None if in_prefix is None else as_bias(in_prefix.repeat_interleave(g, 0)[None, None]),
            None if in_tail is None else as_bias(in_tail),
            None if in_answer is None else as_bias(in_answer[:, None, None]),
        )
