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

from semcal.sampling.decoding.answer_store import AnswerStore, InBin
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
    """Keys and values of each layer for the shared prefix, the questions and the answers."""

    prefix: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)  # [kv head, position, d]
    tails: dict[int, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)  # [slot, kv head, position, d]
    answers: AnswerStore = field(default_factory=AnswerStore)

    @property
    def nbytes(self) -> int:
        places = (self.prefix, self.tails)
        return self.answers.nbytes + sum(part.nbytes for place in places for pair in place.values() for part in pair)

    @property
    def prefix_length(self) -> int:
        return self.prefix[0][0].shape[-2] if self.prefix else 0

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
        self.store, self.slots, self.lengths = store, slots, lengths
        self.tail_lengths = tail_lengths
        self.in_bins = store.answers.make_room(torch.arange(len(slots)) if rows is None else rows, lengths)
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
        key, value = (part[:, :, -self.longest_tail :] for part in self.store.tails[call.layer])
        if index.first_slots:
            key, value = key[: len(self.chunk_slots)], value[: len(self.chunk_slots)]
        else:
            key, value = key[index.chunk_slots], value[index.chunk_slots]
        in_prefix, in_tail = index.bias(call.window, heads // kv, self.store.prefix_length, key.shape[-2])
        parts = [self._over_answers(call, query, index), self._over_tails(call, query, (key, value), in_tail)]
        if self.store.prefix:
            parts.append(self._over_prefix(call, query, in_prefix))
        return merge(parts).reshape(rows, heads, 1, d)

    def _over_answers(self, call: Call, query: torch.Tensor, index: _Indices) -> Part:
        """Attention of each row over the tokens of its own answer, the new one included."""
        outs, denominators = [], []
        for at, own in enumerate(index.bins):
            members = slice(None) if own.all_members else own.members
            new = (call.key[members, :, 0], call.value[members, :, 0])
            key, value = self.store.answers.put(call.layer, self.in_bins[at], *new)
            if own.slots is not None:
                key, value = key[own.slots], value[own.slots]
            asking = query if own.in_order else query[own.asking]
            out, lse = attend_part(call, asking, key, value, index.answer_bias(at, call.window), fused=False)
            outs.append(out)
            denominators.append(lse)
        if len(outs) == 1 and index.bins[0].in_order:
            return outs[0], denominators[0]
        return torch.cat(outs)[index.answer_place], torch.cat(denominators)[index.answer_place]

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

    def _on(self, device: torch.device) -> _Indices:
        if device not in self._index:
            self._index[device] = _Indices(self, device)
        return self._index[device]


class _InBin:
    """The indices of the answers of an `AnswerPass` that lie in one bin.

    Attributes:
        members: [answer] their rows.
        asking: [key row] the row whose query meets each row of keys; any row where a slot is not asked for.
        lengths: [key row] tokens before the new one.
        slots: [key row] slots to take the keys from; None for all that are filled.
        place: [answer] the key row of each.
        in_order: Whether the key rows are the rows of the pass.
        all_members: Whether `members` are the rows of the pass.
    """

    def __init__(self, place: InBin, rows: int, device: torch.device) -> None:
        n = len(place.members)
        few = 2 * n < place.filled
        self.slots = place.slots.to(device) if few else None
        self.place = torch.arange(n) if few else place.slots
        asking = place.members[:1].repeat(n if few else place.filled)
        asking[self.place] = place.members
        lengths = torch.zeros_like(asking)
        lengths[self.place] = place.lengths
        self.all_members = bool(n == rows and (place.members == torch.arange(n)).all())
        self.in_order = bool(len(asking) == rows and (asking == torch.arange(rows)).all())
        self.ragged = bool((lengths != place.longest - 1).any())
        self.members, self.asking, self.lengths = (part.to(device) for part in (place.members, asking, lengths))
        self.token = torch.arange(place.longest, device=device)


class _Indices:
    """The row indices of an `AnswerPass` on one device (layers may be on several)."""

    def __init__(self, of: AnswerPass, device: torch.device) -> None:
        self.slots, self.lengths = of.slots.to(device), of.lengths.to(device)
        self.place, self.chunk_slots = of.place.to(device), of.chunk_slots.to(device)
        self.row_at = torch.zeros(len(of.chunk_slots) * of.width, dtype=torch.long, device=device)  # any row in a gap
        self.row_at[self.place] = torch.arange(len(of.place), device=device)
        self.tail_lengths = of.tail_lengths.to(device)[self.slots]
        self.first_slots = bool((of.chunk_slots == torch.arange(len(of.chunk_slots))).all())  # one chunk each
        self.width = of.width
        self.bins = [_InBin(place, len(of.slots), device) for place in of.in_bins]
        self.answer_place = torch.empty_like(self.slots)  # [row] its place in the bins, one after the other
        first = 0
        for own in self.bins:
            self.answer_place[own.members] = first + own.place.to(device)
            first += len(own.asking)
        self.now = of.store.prefix_length + self.tail_lengths + self.lengths  # [row] position of the new token
        own_tails = of.tail_lengths[of.slots]  # not on the device, which need not be waited for
        self.shortest_tail = int(own_tails.min())
        self.furthest = of.store.prefix_length + int((own_tails + of.lengths).max())
        self._biases: dict[int | None, tuple[torch.Tensor | None, ...]] = {}
        self._answer_biases: dict[tuple[int, int | None], torch.Tensor | None] = {}

    def bias(self, window: int | None, g: int, prefix: int, tail: int) -> tuple[torch.Tensor | None, ...]:
        """What to add to the scores over prefix and tail, given their lengths; None if all is seen."""
        if window not in self._biases:
            self._biases[window] = self._compute(window, g, prefix, tail)
        return self._biases[window]

    def answer_bias(self, at: int, window: int | None) -> torch.Tensor | None:
        """What to add to the scores over the answers of a bin; None if all is seen."""
        if (at, window) not in self._answer_biases:
            own = self.bins[at]
            seen = own.token <= own.lengths[:, None] if own.ragged else None
            if window is not None and self.furthest >= window:
                near = own.lengths[:, None] - own.token < window
                seen = near if seen is None else seen & near
            self._answer_biases[at, window] = None if seen is None else as_bias(seen[:, None, None])
        return self._answer_biases[at, window]

    def _compute(self, window: int | None, g: int, prefix: int, tail: int) -> tuple[torch.Tensor | None, ...]:
        device = self.lengths.device
        early, padding = (torch.arange(n, device=device) for n in (prefix, tail))
        blank = (tail - self.tail_lengths)[:, None]  # tails are aligned to the right
        in_prefix = None
        in_tail = padding >= blank if self.shortest_tail < tail else None
        now = self.now[:, None]
        if window is not None and self.furthest >= window:
            in_prefix = now - early < window
            near = now - (prefix + padding - blank) < window
            in_tail = near if in_tail is None else in_tail & near
        if in_tail is not None:  # [row, tail] -> [chunk, 1, width g, tail]
            spread = in_tail.new_ones(len(self.chunk_slots) * self.width, tail)
            spread[self.place] = in_tail
            in_tail = spread.repeat_interleave(g, 0).view(len(self.chunk_slots), 1, -1, tail)
        return (
            None if in_prefix is None else as_bias(in_prefix.repeat_interleave(g, 0)[None, None]),
            None if in_tail is None else as_bias(in_tail),
        )
