"""The output layer of a model, applied block by block of the vocabulary where its logits are drawn from.

The logits of 768 rows over 262,144 tokens are 0.8 GB, which a sampler would write and read several times a step. On a
CPU, the hidden states are kept instead: each block of logits is computed, summed up and forgotten while it is in the
cache, and only the blocks in which a token is drawn are computed a second time.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from semcal.sampling.decoding.products import linear

LARGE = 2**14  # tokens; a smaller vocabulary fits into the cache as it is
BLOCK = 2048  # tokens
_SAME = {torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}  # logits by two products, relative to 1 + size
# What configurations call a transformation of the logits after the output layer.
_AFTERWARDS = ("final_logit_softcapping", "logit_scale", "logits_scaling", "lm_head_multiplier", "output_multiplier")


@dataclass(frozen=True)
class HiddenScores:
    """Logits [row, vocab] that are not computed yet.

    Attributes:
        hidden: [row, d] input of the output layer.
        weight: [vocab, d] of the output layer.
        bias: [vocab], or None.
    """

    hidden: torch.Tensor
    weight: torch.Tensor
    bias: torch.Tensor | None

    def __len__(self) -> int:
        return len(self.hidden)

    @property
    def device(self) -> torch.device:
        return self.hidden.device

    def __getitem__(self, rows: torch.Tensor) -> torch.Tensor:
        """[row, vocab] logits of some rows."""
        return _linear(self.hidden[rows], self.weight, self.bias)

    def blocks(self) -> list[slice]:
        """The parts of the vocabulary."""
        vocabulary = len(self.weight)
        return [slice(at, min(at + BLOCK, vocabulary)) for at in range(0, vocabulary, BLOCK)]

    def block(self, tokens: slice, rows: torch.Tensor | None = None) -> torch.Tensor:
        """[row, token of the block] logits in float32, of all rows or of some."""
        hidden = self.hidden if rows is None else self.hidden[rows]
        bias = None if self.bias is None else self.bias[tokens]
        return _linear(hidden, self.weight[tokens], bias).float()


def _linear(hidden: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """In the dtype of the hidden states, which is not that of the weights in a pass `in_single_precision`."""
    return linear(hidden, weight.to(hidden.dtype), None if bias is None else bias.to(hidden.dtype))


Scores = torch.Tensor | HiddenScores


def whole(scores: Scores) -> torch.Tensor:
    """[row, vocab] logits."""
    return scores if isinstance(scores, torch.Tensor) else scores[torch.arange(len(scores), device=scores.device)]


class OutputLayer:
    """The output layer of a model, left out of its forward pass once it has been seen to be a plain linear layer.

    Args:
        model: Its first pass is made whole, and its logits are compared with those of `HiddenScores`.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        head = model.get_output_embeddings()
        config = model.config.get_text_config()
        plain = type(head) is torch.nn.Linear and all(getattr(config, a, None) in (None, 1) for a in _AFTERWARDS)
        self.head = head if plain and head.weight.device.type == "cpu" and len(head.weight) >= LARGE else None  # pyright: ignore
        self.seen = False

    @contextmanager
    def left_out(self) -> Iterator[list[torch.Tensor]]:
        """A context for one forward pass with `logits_to_keep=1`; the hidden states [row, d] of its last position are
        appended to the list, and after the first pass the logits are left empty."""
        kept: list[torch.Tensor] = []
        if self.head is None:
            yield kept
            return

        def keep(_: torch.nn.Module, args: tuple[torch.Tensor, ...]) -> tuple[torch.Tensor, ...]:
            kept.append(args[0][:, -1])
            return (args[0][:, :0],) if self.seen else args

        hook = self.head.register_forward_pre_hook(keep)
        try:
            yield kept
        finally:
            hook.remove()

    def scores(self, kept: list[torch.Tensor], logits: torch.Tensor) -> Scores:
        """The scores of a pass: its logits [row, position, vocab], or what stands for them."""
        if self.head is None or len(kept) != 1:
            return logits[:, -1]
        bias = self.head.bias
        found = HiddenScores(kept[0], self.head.weight.detach(), None if bias is None else bias.detach())
        if self.seen:
            return found
        again, own = found[torch.tensor([0])][0].float(), logits[0, -1].float()
        apart = float(((again - own).abs() / (1 + own.abs())).max())
        if apart <= _SAME.get(logits.dtype, 1e-4):
            self.seen = True
        elif apart > 0:  # not NaN: something happens to the logits after the output layer
            self.head = None
        return logits[:, -1]
