"""Keys and values of a prompt, repeated for M rows, with room for what is still to be generated.

Hugging Face's dynamic cache copies everything it holds at every new token; here a new token is written in place.
"""

from __future__ import annotations

import torch
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """A dynamic layer whose tensors are views into buffers that were allocated once."""

    def __init__(self, prompt: DynamicLayer, repeats: int, room: int) -> None:
        super().__init__()
        assert prompt.keys is not None
        assert prompt.values is not None
        self.lazy_initialization(prompt.keys, prompt.values)
        self._length = prompt.keys.shape[-2]
        self._buffers = [_repeat_with_room(part, repeats, room) for part in (prompt.keys, prompt.values)]
        self._show()

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: object, **__: object
    ) -> tuple[torch.Tensor, torch.Tensor]:
        end = self._length + key_states.shape[-2]
        for buffer, new in zip(self._buffers, (key_states, value_states), strict=True):
            buffer[:, :, self._length : end] = new
        self._length = end
        return self._show()

    def batch_select_indices(self, indices: torch.Tensor) -> None:
        """Keep the rows at `indices`, in that order."""
        self._buffers = [buffer[indices] for buffer in self._buffers]
        self._show()

    def _show(self) -> tuple[torch.Tensor, torch.Tensor]:
        self.keys, self.values = (buffer[:, :, : self._length] for buffer in self._buffers)
        return self.keys, self.values


def repeated(cache: DynamicCache, repeats: int, room: int) -> DynamicCache:
    """The cache of Q prompts as one of Q x repeats rows (those of a prompt side by side) with room for new tokens.

    Layers of another kind than the plain dynamic one (sliding windows, recurrent states) keep their own bookkeeping
    and are repeated as Hugging Face does it.
    """
    for at, layer in enumerate(cache.layers):
        if type(layer) is DynamicLayer and layer.get_seq_length() > 0:
            cache.layers[at] = RoomyLayer(layer, repeats, room)
        else:
            layer.batch_repeat_interleave(repeats)  # pyright: ignore[reportAttributeAccessIssue]
    return cache


def _repeat_with_room(part: torch.Tensor, repeats: int, room: int) -> torch.Tensor:
    """[question, head, position, d] -> [question x repeats, head, position + room, d]."""
    rows, heads, length, width = part.shape
    buffer = part.new_empty(rows, repeats, heads, length + room, width)
    buffer[..., :length, :] = part[:, None]
    return buffer.flatten(0, 1)
