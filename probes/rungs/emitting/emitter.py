"""A model with adapters as a distribution over strings: log-probabilities of token sequences after prompts.

Knows token ids. The output layer is applied only where a token of a sequence is predicted and, on a CPU, block by block
of the vocabulary, forwards and backwards in one go, so that logits over 262,144 tokens are never held.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from probes.rungs.lora import adapted
from probes.solver.token_trees import TokenTree, TreeBatch
from semcal.models.checkpoint import LanguageModel
from semcal.sampling.decoding.output_layer import LARGE, HiddenScores, OutputLayer
from semcal.sampling.decoding.products import fast_products, linear
from semcal.sampling.exponential import exp_

_TOKENS, _LEARNT_TOKENS = 2048, 512  # of a pass without and with gradients, padding included
_LOGITS = 2**27  # of a pass where they must be held
_SAME = 1e-3  # nats by which two layouts of the same sequences may differ, relative to 1 + their size
_TREES = ("sdpa", "eager")  # attention that follows any mask


class Emitter:
    """A model with LoRA adapters that emits a sequence of tokens and an end mark after a prompt.

    Args:
        model: it is left as it is.
        rank: of the adapters, which at first do nothing.
        end: token id that ends a sequence and is in none.
        seed: of their initial values.

    Attributes:
        adapters: name -> parameter, in float32 whatever the dtype of the model.
        trees: whether what sequences share is read once; else each sequence is read by itself (`check`).

    Raises:
        UserError: as `adapted`.
    """

    def __init__(self, model: LanguageModel, rank: int, end: int, *, seed: int) -> None:
        self.end, self.device, self.dtype = end, model.device, model.dtype
        self.skeleton = adapted(model, rank, seed=seed)
        self.adapters = {name: p for name, p in self.skeleton.named_parameters() if p.requires_grad}
        for parameter in self.adapters.values():
            parameter.data = parameter.data.float()
        self._initial = self.get()
        self.vocabulary = model.output_size
        self.output = OutputLayer(self.skeleton)
        self.trees = self.skeleton.config._attn_implementation in _TREES

    def get(self) -> dict[str, Tensor]:
        """A copy of the adapters."""
        return {name: parameter.detach().clone() for name, parameter in self.adapters.items()}

    @torch.no_grad()
    def set(self, adapters: Mapping[str, Tensor]) -> None:
        """Go on with these adapters."""
        for name, parameter in self.adapters.items():
            parameter.copy_(adapters[name])

    def initial(self) -> dict[str, Tensor]:
        """A copy of the adapters as they were at first, when they did nothing."""
        return {name: value.clone() for name, value in self._initial.items()}

    @torch.no_grad()
    def check(self, prompt: Sequence[int], sequences: Sequence[Sequence[int]]) -> None:
        """Read some sequences together and one by one, and go on one by one if that is not the same.

        So it is where the model attends within a window that is shorter than a sequence, or reckons distances from
        places in the batch. Give the longest prompt.
        """
        self.log_p([TokenTree.of(prompt, sequences[:1], self.end)])  # the output layer is looked at, too
        together = self.scores(prompt, sequences)
        trees, self.trees = self.trees, False
        alone = self.scores(prompt, sequences)
        self.trees = trees and bool(np.all(np.abs(together - alone) <= _SAME * (1 + np.abs(alone))))

    def scores(self, prompt: Sequence[int], sequences: Sequence[Sequence[int]]) -> np.ndarray:
        """[sequence] log-probabilities, end marks included, in nats, of some sequences after one prompt."""
        return self.score_all([(prompt, sequences)])[0]

    @torch.no_grad()
    def score_all(self, asked: Sequence[tuple[Sequence[int], Sequence[Sequence[int]]]]) -> list[np.ndarray]:
        """The same for several prompts, each with sequences of its own."""
        grown = [self.grown(prompt, sequences) for prompt, sequences in asked]
        trees = [tree for some in grown for tree in some]
        found = [np.zeros(0)] * len(trees)
        for batch in self.passes(trees):
            log_p = self.log_p([trees[i] for i in batch]).double().cpu().numpy()
            ends = np.cumsum([len(trees[i].token) for i in batch])
            for i, part in zip(batch, np.split(log_p, ends[:-1]), strict=True):
                found[i] = trees[i].totals(part)
        ends = np.cumsum([len(some) for some in grown])
        return [np.concatenate(found[end - len(some) : end]) for end, some in zip(ends, grown, strict=True)]

    def grown(self, prompt: Sequence[int], sequences: Sequence[Sequence[int]]) -> list[TokenTree]:
        """The sequences as trees that a pass can hold, in order."""
        if not self.trees:
            return [TokenTree.of(prompt, [sequence], self.end) for sequence in sequences]
        parts: list[list[Sequence[int]]] = [[]]
        room = self._tokens - len(prompt)
        for sequence in sequences:
            room -= len(sequence)
            if room < 0 and parts[-1]:
                parts.append([])
                room = self._tokens - len(prompt) - len(sequence)
            parts[-1].append(sequence)
        return [TokenTree.of(prompt, part, self.end) for part in parts]

    @property
    def _tokens(self) -> int:
        if torch.is_grad_enabled():
            return _LEARNT_TOKENS
        held = self.output.head is None and self.vocabulary >= LARGE
        return min(_TOKENS, max(64, _LOGITS // self.vocabulary)) if held else _TOKENS

    def passes(self, trees: Sequence[TokenTree]) -> Iterator[list[int]]:
        """Indices of trees of about the same size, as many as fit into a pass."""
        batch: list[int] = []
        for i in sorted(range(len(trees)), key=lambda i: -len(trees[i])):
            if batch and (len(batch) + 1) * len(trees[batch[0]]) > self._tokens:
                yield batch
                batch = []
            batch.append(i)
        if batch:
            yield batch

    def log_p(self, trees: Sequence[TokenTree]) -> Tensor:
        """[edge of all trees] log-probabilities in float32, with gradients to the adapters."""
        batch = TreeBatch.of(trees, device=self.device, dtype=self.dtype, chains=not self.trees)
        with self._reading(batch.reads), self.output.left_out() as kept, self._products():
            logits = self.skeleton(
                input_ids=batch.ids, attention_mask=batch.mask, position_ids=batch.positions, use_cache=False
            ).logits
        scores = self.output.scores(kept, logits)
        if isinstance(scores, HiddenScores):
            return _BlockwiseLogSoftmax.apply(scores.hidden, scores, batch.read, batch.token)  # pyright: ignore
        return torch.log_softmax(scores.float(), 1)[batch.read, batch.token]

    def _products(self) -> Any:
        return fast_products(self.skeleton, gradients=torch.is_grad_enabled())

    @contextmanager
    def _reading(self, places: tuple[Tensor, Tensor]) -> Iterator[None]:
        """A context in which the output layer is given only what stands at these places: [read, 1, d]."""
        head = self.skeleton.get_output_embeddings()
        assert isinstance(head, nn.Module)
        hook = head.register_forward_pre_hook(lambda _, args: (args[0][places][:, None], *args[1:]))
        try:
            yield
        finally:
            hook.remove()


class _BlockwiseLogSoftmax(torch.autograd.Function):
    """[edge] log-probabilities of tokens from hidden states [read, d], block by block of the vocabulary.

    The gradient of a log-normaliser is the mean output vector under the softmax, which is summed up beside it with a
    running maximum: one pass over the vocabulary serves both.
    """

    @staticmethod
    def forward(ctx: Any, hidden: Tensor, scores: HiddenScores, read: Tensor, token: Tensor) -> Tensor:
        learning = ctx.needs_input_grad[0]
        top = hidden.new_full((len(hidden), 1), -torch.inf, dtype=torch.float32)
        total, mean = torch.zeros_like(top), torch.zeros_like(hidden)
        for block in scores.blocks():
            logits = scores.block(block)
            higher = torch.maximum(top, logits.amax(1, keepdim=True))
            fade = torch.exp(top - higher)
            share = exp_(logits.sub_(higher))
            total = total * fade + share.sum(1, keepdim=True)
            if learning:
                mean = mean * fade + linear(share.to(hidden.dtype), scores.weight[block].T)
            top = higher
        normaliser = (top + total.log())[:, 0]
        own = (hidden[read] * scores.weight[token]).sum(1).float()
        if scores.bias is not None:
            own = own + scores.bias[token].float()
        if learning:
            ctx.save_for_backward(mean / total, read, token)
            ctx.weight = scores.weight
        return own - normaliser[read]

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None, None]:
        mean, read, token = ctx.saved_tensors
        towards = upstream[0][:, None] * (ctx.weight[token] - mean[read])
        return torch.zeros_like(mean).index_add_(0, read, towards.to(mean.dtype)), None, None, None
