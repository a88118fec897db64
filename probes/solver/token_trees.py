"""A prompt and the token sequences that may follow it, laid out for one forward pass: what sequences have in common is
read once.

Knows token ids alone. A tree is a row of a batch; each token sees the tokens on its way to the root (`TreeBatch.mask`),
so that every sequence is read as if it stood after the prompt by itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from semcal.arrays import IntArray

_STEP = 8  # lengths are rounded up to a multiple, so that fewer shapes of matrix products occur


@dataclass(frozen=True)
class TokenTree:
    """A prompt, sequences after it, and the end mark after each of them.

    Attributes:
        ids: [node] token ids; the prompt comes first.
        parent: [node] the token before, -1 for the first.
        source: [edge] the node from which a token is predicted.
        token: [edge] the token predicted there, which is the end mark where a sequence ends.
        sequence, edge: [step] which sequence takes which edge; the log-probability of a sequence is the sum of those of
            its edges.
        sequences: their number.
    """

    ids: IntArray
    parent: IntArray
    source: IntArray
    token: IntArray
    sequence: IntArray
    edge: IntArray
    sequences: int

    @classmethod
    def of(cls, prompt: Sequence[int], sequences: Sequence[Sequence[int]], end: int) -> TokenTree:
        """From a prompt of at least one token; `end` occurs in no sequence."""
        ids, parent = list(prompt), list(range(-1, len(prompt) - 1))
        edges: dict[tuple[int, int], int] = {}
        child: dict[int, int] = {}  # edge -> the node that it leads to
        steps: list[tuple[int, int]] = []
        for number, sequence in enumerate(sequences):
            node = len(prompt) - 1
            for token in (*sequence, end):
                edge = edges.setdefault((node, token), len(edges))
                steps.append((number, edge))
                if token == end:
                    break
                if edge not in child:
                    child[edge] = len(ids)
                    ids.append(token)
                    parent.append(node)
                node = child[edge]
        source, token = np.array(list(edges)).T
        sequence, edge = np.array(steps).T
        return cls(np.array(ids), np.array(parent), source, token, sequence, edge, len(sequences))

    def __len__(self) -> int:
        return len(self.ids)

    def weights(self, shares: ArrayLike) -> np.ndarray:
        """[edge] the total share of the sequences that take it, from [sequence]."""
        return np.bincount(self.edge, np.asarray(shares, dtype=float)[self.sequence], len(self.source))

    def totals(self, log_p: np.ndarray) -> np.ndarray:
        """[sequence] log-probabilities, from those of the edges [edge]."""
        return np.bincount(self.sequence, log_p[self.edge], self.sequences)


@dataclass(frozen=True)
class TreeBatch:
    """Some trees as the input of one forward pass, padded on the right.

    Attributes:
        ids, positions: [tree, node]; the first token of a prompt has position 0.
        mask: [tree, 1, node, node], 0 where a token sees another, else the least number of the dtype; or [tree, node],
            1 for a token, where every tree is a single sequence.
        reads: ([read], [read]) tree and node of every place at which tokens are predicted.
        read: [edge of all trees] at which of these places.
        token: [edge of all trees].
    """

    ids: Tensor
    positions: Tensor
    mask: Tensor
    reads: tuple[Tensor, Tensor]
    read: Tensor
    token: Tensor

    @classmethod
    def of(
        cls, trees: Sequence[TokenTree], *, device: torch.device, dtype: torch.dtype, chains: bool = False
    ) -> TreeBatch:
        """With `chains`, trees must hold one sequence each, and the model masks them as any other text."""
        width = -(-max(map(len, trees)) // _STEP) * _STEP
        ids, positions = (np.zeros((len(trees), width), dtype=np.int64) for _ in range(2))
        seen = np.zeros((len(trees), width, width), dtype=bool)
        places, read, first = [], [], 0
        for row, tree in enumerate(trees):
            ids[row, : len(tree)] = tree.ids
            for node, parent in enumerate(tree.parent):
                if parent >= 0:
                    seen[row, node] = seen[row, parent]
                    positions[row, node] = positions[row, parent] + 1
                seen[row, node, node] = True
            nodes, of_edge = np.unique(tree.source, return_inverse=True)
            places.append(np.stack([np.full(len(nodes), row), nodes]))
            read.append(first + of_edge)
            first += len(nodes)
        if chains:
            mask = torch.as_tensor(seen.any(1)).long()
        else:
            seen |= np.eye(width, dtype=bool) & ~seen.any(2, keepdims=True)  # no row of scores is empty
            mask = torch.zeros(seen.shape, dtype=dtype)
            mask = mask.masked_fill_(torch.as_tensor(~seen), torch.finfo(dtype).min)[:, None]
        at, nodes = (torch.as_tensor(part).to(device) for part in np.concatenate(places, 1))
        flat = [np.concatenate(read), np.concatenate([tree.token for tree in trees])]
        read_, token, ids_, positions_ = (torch.as_tensor(part).to(device) for part in (*flat, ids, positions))
        return cls(ids_, positions_, mask.to(device), (at, nodes), read_, token)
