"""Storage of the keys and values of a tree of answers."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch


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
