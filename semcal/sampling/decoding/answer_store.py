"""Keys and values of the answers so far, those of similar length side by side.

Most answers are short and a few are long. Stored in one table, every answer would take the room of the longest, and
attention would read it; here each lies among answers at most four times as long.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

ROOM = (8, 32, 128, 512, 2048, 8192, 2**62)  # tokens that fit into a bin
_NOWHERE = -1
_SPARE, _FEW = 4, 16  # a bin with more slots than four times those in use, and a few, is made smaller

Pair = tuple[torch.Tensor, torch.Tensor]  # keys and values [slot, kv head, token, d]


@dataclass(frozen=True)
class InBin:
    """Those answers of a pass that lie in one bin.

    Attributes:
        bin: Index of the bin.
        members: [answer] which rows of the pass these are.
        slots: [answer] where each lies in the bin.
        lengths: [answer] tokens before the new one.
        filled: Number of slots in use, or freed since the last move.
    """

    bin: int
    members: torch.Tensor
    slots: torch.Tensor
    lengths: torch.Tensor
    filled: int

    @property
    def longest(self) -> int:
        """Tokens of the longest of them, the new one included."""
        return int(self.lengths.max()) + 1


class AnswerStore:
    """Numbered rows, one for each answer, each with a slot of its own in the bin of its length."""

    def __init__(self) -> None:
        self.layers: dict[int, list[Pair | None]] = {}  # layer -> bin -> keys and values
        self._bin = torch.zeros(0, dtype=torch.long)  # [row]
        self._slot = torch.zeros(0, dtype=torch.long)  # [row]
        self._filled = [0] * len(ROOM)

    @property
    def nbytes(self) -> int:
        return sum(part.nbytes for bins in self.layers.values() for pair in bins if pair for part in pair)

    def move(self, rows: int, target: torch.Tensor, source: torch.Tensor) -> None:
        """From now on there are `rows` rows, and row target[i] continues the former row source[i]."""
        before = self._bin, self._slot
        self._bin, self._slot = (_resized(old, rows) for old in before)
        self._bin[target], self._slot[target] = before[0][source], before[1][source]
        for at in range(len(ROOM)):
            self._close_gaps(at)

    def _close_gaps(self, at: int) -> None:
        """Give the rows of a bin the first slots, one each; a row that has one of them to itself stays there."""
        members = (self._bin == at).nonzero().flatten()
        slots, n = self._slot[members], len(members)
        self._filled[at] = n
        if not n:
            self._release(at, 0)
            return
        first = torch.full((max(n, int(slots.max()) + 1),), n)
        first.scatter_reduce_(0, slots, torch.arange(n), "amin")  # the first member in each slot
        stays = (slots < n) & (first[slots] == torch.arange(n))
        taken = torch.zeros(n, dtype=torch.bool)
        taken[slots[stays]] = True
        to, of = (~taken).nonzero().flatten(), slots[~stays]
        self._slot[members[~stays]] = to
        if len(to):
            self._copy((at, of), (at, to), ROOM[at])
        self._release(at, n)

    def _release(self, at: int, n: int) -> None:
        """Give back a bin of which little is used: answers grow through the bins, and each would keep its peak."""
        for bins in self.layers.values():
            pair = bins[at]
            if pair is None or len(pair[0]) <= _SPARE * n + _FEW:
                continue
            bins[at] = (pair[0][: 2 * n].clone(), pair[1][: 2 * n].clone()) if n else None

    def make_room(self, rows: torch.Tensor, lengths: torch.Tensor) -> list[InBin]:
        """Put rows into the bins that have room for one more token each, and say where they are.

        Args:
            rows: [answer] numbers of the rows.
            lengths: [answer] tokens of each so far.
        """
        most = int(rows.max()) + 1
        if most > len(self._bin):
            self._bin, self._slot = _resized(self._bin, most), _resized(self._slot, most)
        wanted = torch.bucketize(lengths + 1, torch.tensor(ROOM))
        held = self._bin[rows]
        found = []
        for at in wanted.unique().tolist():
            members = (wanted == at).nonzero().flatten()
            self._bring(at, rows[members], lengths[members], held[members])
            slots = self._slot[rows[members]]
            found.append(InBin(at, members, slots, lengths[members], self._filled[at]))
        return found

    def _bring(self, at: int, rows: torch.Tensor, lengths: torch.Tensor, held: torch.Tensor) -> None:
        """Append those of the rows to a bin that are elsewhere or nowhere."""
        new = held != at
        count = int(new.sum())
        if not count:
            return
        slots = self._filled[at] + torch.arange(count)
        came, written, old = rows[new], lengths[new], held[new]
        for source in old[written > 0].unique().tolist():
            these = (old == source) & (written > 0)
            self._copy((source, self._slot[came[these]]), (at, slots[these]), int(written[these].max()))
        self._filled[at] += count
        self._bin[came], self._slot[came] = at, slots

    def _copy(self, of: tuple[int, torch.Tensor], to: tuple[int, torch.Tensor], length: int) -> None:
        """Copy the first tokens of some slots of a bin to slots of a bin, in all layers."""
        slots = int(to[1].max()) + 1
        for bins in self.layers.values():
            source = bins[of[0]]
            if source is None:
                continue
            tokens = min(length, source[0].shape[2])
            bins[to[0]] = made = _roomy(bins[to[0]] or _empty(source), slots, tokens)
            for part, old in zip(made, source if of[0] != to[0] else made, strict=True):
                part[to[1].to(part.device), :, :tokens] = old[of[1].to(part.device), :, :tokens]

    def put(self, layer: int, place: InBin, key: torch.Tensor, value: torch.Tensor) -> Pair:
        """Store the new token of some answers.

        Args:
            layer: Index of the layer.
            place: Where the answers are.
            key, value: [answer, kv head, d], in the order of `place.members`.

        Returns:
            Keys and values [slot, kv head, token, d] of all slots of the bin that are filled.
        """
        bins = self.layers.setdefault(layer, [None] * len(ROOM))
        fresh = (key[:0, :, None], value[:0, :, None])
        bins[place.bin] = made = _roomy(bins[place.bin] or _empty(fresh), place.filled, place.longest)
        slots, lengths = place.slots.to(key.device), place.lengths.to(key.device)
        for part, new in zip(made, (key, value), strict=True):
            part[slots, :, lengths] = new
        return made[0][: place.filled, :, : place.longest], made[1][: place.filled, :, : place.longest]


def _empty(like: Pair) -> Pair:
    key, value = (part.new_zeros(0, part.shape[1], 0, part.shape[-1]) for part in like)
    return key, value


def _roomy(pair: Pair, slots: int, length: int) -> Pair:
    """The pair, with room for at least `slots` answers of `length` tokens; the room is filled with zeros."""
    old_slots, heads, old_length, _ = pair[0].shape
    if slots <= old_slots and length <= old_length:
        return pair
    new_slots = old_slots if slots <= old_slots else max(slots, old_slots + old_slots // 4)
    new_length = old_length if length <= old_length else max(length, 8, old_length * 2)
    grown = []
    for part in pair:
        made = part.new_zeros(new_slots, heads, new_length, part.shape[-1])
        made[:old_slots, :, :old_length] = part
        grown.append(made)
    return grown[0], grown[1]


def _resized(rows: torch.Tensor, n: int) -> torch.Tensor:
    """[n] the first n rows, after which come rows that are nowhere."""
    return torch.cat([rows[:n], torch.full((max(0, n - len(rows)),), _NOWHERE)])
