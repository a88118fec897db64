"""Activations of many layers, read a few at a time, so that those of a large run are never in memory together.

Knows names and how to read an array; nothing of models or probes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from probes.activations.foreign import ForeignActivations
from semcal.errors import nearest
from semcal.runs.stored_activations import StoredActivations

BYTES = 2**21  # activations that are worked on together; a single layer may be more


@dataclass(frozen=True)
class Block:
    """Some layers of all questions in memory: [layer, question, d], in the precision they have, single at least."""

    values: Tensor
    standardise: bool = True

    def __len__(self) -> int:
        return len(self.values)

    def split(self, train: np.ndarray, test: np.ndarray) -> tuple[Tensor, Tensor]:
        """([L, n_train, d], [L, n_test, d])."""
        return self.values[:, train], self.values[:, test]


@dataclass(frozen=True)
class Layers:
    """Activations by layer.

    Attributes:
        names: [layer] of the layers, TransformerLens's where they have some.
        read: index of a layer -> [question, d], of any float type. It is called once per layer; what it returns is
            copied and released before the next layer is read.
        row_bytes: of one question at one layer, in the precision in which it is worked on.
    """

    names: tuple[str, ...]
    read: Callable[[int], np.ndarray]
    row_bytes: int

    @classmethod
    def of(cls, activations: np.ndarray, names: Sequence[str]) -> Layers:
        """From an array in memory.

        Args:
            activations: [question, layer, d].
            names: [layer].

        Raises:
            ValueError: the shapes disagree.
        """
        if activations.ndim != 3 or activations.shape[1] != len(names):
            raise ValueError(
                f"activations have shape {activations.shape} and there are {len(names)} layer names; expected "
                "[question, layer, d_model] and one name per layer"
            )
        row_bytes = activations.shape[2] * _precision(activations).itemsize
        return cls(tuple(names), lambda index: activations[:, index], row_bytes)

    @classmethod
    def stored(cls, activations: StoredActivations | ForeignActivations) -> Layers:
        """From those of a run, or of a file, at a position with at most one row per question, read from disk layer by
        layer."""
        names = activations.layers
        return cls(names, lambda index: activations.layer(names[index]), 4 * activations.width[0])

    def only(self, wanted: Sequence[str]) -> Layers:
        """Some of the layers, in the order asked for.

        Raises:
            ValueError: a layer that is missing, naming the nearest.
        """
        for name in wanted:
            if name not in self.names:
                raise ValueError(
                    f"there are no activations of layer {name!r}{nearest(name, self.names)}; "
                    f"captured are {', '.join(self.names)}"
                )
        index = [self.names.index(name) for name in wanted]
        return Layers(tuple(wanted), lambda i: self.read(index[i]), self.row_bytes)

    def layer(self, index: int, n: int) -> np.ndarray:
        """One layer, checked: [question, d].

        Raises:
            ValueError: not n questions, or a number that is not finite.
        """
        return checked_layer(self.read(index), self.names[index], n)

    def parts(self, n: int) -> list[slice]:
        """Which layers are worked on together: as many as fit in `BYTES`, at least one."""
        count = max(1, BYTES // (self.row_bytes * n))
        return [slice(first, first + count) for first in range(0, len(self.names), count)]

    def block(self, part: slice, n: int, device: str) -> Block:
        """The layers of a part.

        Raises:
            ValueError: as `layer`; or layers of different widths.
        """
        own = range(len(self.names))[part]
        values = torch.empty(0)
        for to, index in enumerate(own):
            read = self.layer(index, n)
            if not to:
                values = torch.empty((len(own), *read.shape), dtype=_precision(read), device=device)
            elif read.shape[1] != values.shape[2]:
                raise ValueError(
                    f"layer {self.names[index]} is {read.shape[1]} wide and {self.names[own[0]]} {values.shape[2]}; "
                    "evaluate layers of one width at a time"
                )
            values[to] = torch.as_tensor(read)
            del read  # or it would stay while the next one is read
        return Block(values)


def _precision(values: np.ndarray) -> torch.dtype:
    return torch.float64 if values.dtype == np.float64 else torch.float32


def checked_layer(values: np.ndarray, name: str, n: int) -> np.ndarray:
    """Activations [question, d] of n questions.

    Raises:
        ValueError: another shape, or a number that is not finite.
    """
    values = np.asarray(values)
    if values.ndim != 2 or len(values) != n:
        raise ValueError(
            f"activations of layer {name} have shape {values.shape}, but there are {n} targets; expected [question, d]"
        )
    finite = np.isfinite(values).all(1)
    if not finite.all():
        raise ValueError(
            f"activations of layer {name} at question {int(np.argmin(finite))} are not finite; capture them again, or "
            "leave the question out"
        )
    return values
