"""The two ways to decode a tree of answers, behind one interface.

`TreeDecoder` stores the shared prefix once and each question once (`tree_attention.py`); questions come and go while
others are being decoded. `ExpandedDecoder` is plain Hugging Face with its own cache and one row per distinct answer: it
supports any causal LM, in batches of questions.
"""

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import torch
from transformers import DynamicCache, PreTrainedModel

from semcal.sampling.records import Prompt
from semcal.sampling.tree_attention import AnswerPass, PrefixPass, TailPass, TreeStore, tree_attention_in


@dataclass(frozen=True)
class PromptBatch:
    """The prompts of one forward pass, padded on the left to one length.

    Attributes:
        keys: [question].
        ids: [question, position] token ids after the first `offset`; the last column is the last prompt token.
        mask: [question, position] 1 for a token, 0 for padding.
        positions: [question, position] position ids; the first token of a prompt has position 0.
        offset: Length of the shared prefix, which was read before and is not part of this pass.
    """

    keys: tuple[str, ...]
    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor
    offset: int = 0


class Observer(Protocol):
    """Sees every prefill. It knows nothing of sampling, and the sampler nothing of it.

    It may also write: what its hooks change in the model's stream reaches later layers, the stored keys and values, and
    the logits of the first new token. It neither sees nor changes the shared prefix (`PromptBatch.offset`), which is
    read once beforehand, nor generated tokens.
    """

    def watching(self, model: PreTrainedModel, batch: PromptBatch) -> AbstractContextManager[object]:
        """Entered around the forward pass of this batch; hooks are active within it."""
        ...

    def prefilled(self, batch: PromptBatch) -> None:
        """Called after the pass, before any token is drawn."""
        ...


def pad_left(prompts: Sequence[Prompt], pad_id: int, device: torch.device, offset: int = 0) -> PromptBatch:
    """The prompts as one batch. Padding is masked, so `pad_id` may be any token."""
    tails = [p.ids[offset:] for p in prompts]
    length = max(map(len, tails))
    ids = torch.full((len(prompts), length), pad_id)
    mask = torch.zeros(len(prompts), length, dtype=torch.long)
    for row, tail in enumerate(tails):
        ids[row, length - len(tail) :] = torch.tensor(tail)
        mask[row, length - len(tail) :] = 1
    positions = offset + (mask.cumsum(-1) - 1).clamp(min=0)
    return PromptBatch(tuple(p.key for p in prompts), ids.to(device), mask.to(device), positions.to(device), offset)


@torch.inference_mode()
def prefill(
    model: PreTrainedModel, batch: PromptBatch, observer: Observer | None = None
) -> tuple[torch.Tensor, DynamicCache]:
    """One plain forward pass over whole prompts.

    Returns:
        (logits of the next token [question, vocab], the cache)
    """
    cache = DynamicCache(config=model.config)
    with observer.watching(model, batch) if observer else nullcontext():
        out = model(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            past_key_values=cache,
            use_cache=True,
            logits_to_keep=1,
        )
    if observer:
        observer.prefilled(batch)
    return out.logits[:, -1], cache


def shared_prefix(prompts: Sequence[Prompt]) -> int:
    """Length of the longest prefix of all prompts, without the last token of any."""
    first, shortest = min(prompts, key=lambda p: p.ids).ids, min(len(p.ids) for p in prompts)
    last = max(prompts, key=lambda p: p.ids).ids
    limit = min(shortest - 1, len(first), len(last))
    return next((i for i in range(limit) if first[i] != last[i]), limit)


class TreeDecoder:
    """A shared prefix, one slot per question, and one row per distinct answer; memory is reused by later questions.

    New questions may be read while answers of others are being decoded (`joins`).

    Args:
        model: Its attention must be supported, see `tree_attention.py`.
        device: The device of the token ids.
    """

    joins = True

    def __init__(self, model: PreTrainedModel, device: torch.device) -> None:
        self.model, self.device = model, device
        self.store = TreeStore()
        self.prefix: tuple[int, ...] = ()
        self.tail_lengths = torch.zeros(0, dtype=torch.long)  # [slot]

    @property
    def offset(self) -> int:
        return len(self.prefix)

    @torch.inference_mode()
    def share(self, prefix: Sequence[int]) -> None:
        """Set the token ids, possibly none, that every prompt begins with; they are read if they have changed."""
        if self.prefix == tuple(prefix):
            return
        self.prefix, self.store.prefix = (), {}
        if prefix:
            ids = torch.tensor([list(prefix)], device=self.device)
            self._forward(PrefixPass(self.store), ids, torch.arange(len(prefix), device=self.device)[None])
        self.prefix = tuple(prefix)

    @torch.inference_mode()
    def read(self, prompts: Sequence[Prompt], slots: torch.Tensor, observer: Observer | None) -> torch.Tensor:
        """Prefill prompts into slots; [question, vocab] logits of their first new token."""
        batch = pad_left(prompts, 0, self.device, self.offset)
        if int(slots.max()) >= len(self.tail_lengths):
            grown = torch.zeros(int(slots.max()) + 1, dtype=torch.long)
            grown[: len(self.tail_lengths)] = self.tail_lengths
            self.tail_lengths = grown
        self.tail_lengths[slots] = batch.mask.sum(-1).cpu()
        with observer.watching(self.model, batch) if observer else nullcontext():
            logits = self._forward(TailPass(self.store, batch.mask, slots), batch.ids, batch.positions)
        if observer:
            observer.prefilled(batch)
        return logits

    @torch.inference_mode()
    def extend(
        self, tokens: torch.Tensor, slots: torch.Tensor, lengths: torch.Tensor, rows: torch.Tensor | None = None
    ) -> torch.Tensor:
        """One more token for rows 0..R-1, or for `rows`, with these lengths so far; [row, vocab] logits of the next."""
        positions = (self.offset + self.tail_lengths[slots] + lengths)[:, None]
        answers = AnswerPass(self.store, rows, slots, lengths, self.tail_lengths)
        return self._forward(answers, tokens[:, None].to(self.device), positions.to(self.device))

    @torch.inference_mode()
    def move(self, rows: int, lengths: int, target: torch.Tensor, source: torch.Tensor) -> None:
        """From now on there are `rows` rows, and row target[i] continues the former row source[i]."""
        self.store.move_answers(rows, lengths, target, source)

    @property
    def nbytes(self) -> int:
        return self.store.nbytes

    @torch.inference_mode()
    def _forward(self, tree: object, ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        with tree_attention_in(self.model):
            out = self.model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=1, tree=tree)
        return out.logits[:, -1]


class ExpandedDecoder:
    """The same methods with Hugging Face's own attention and cache: each distinct answer has a copy of its prompt."""

    joins = False

    def __init__(self, model: PreTrainedModel, device: torch.device) -> None:
        self.model, self.device = model, device

    @torch.inference_mode()
    def read(self, prompts: Sequence[Prompt], slots: torch.Tensor, observer: Observer | None) -> torch.Tensor:  # noqa: ARG002
        batch = pad_left(prompts, 0, self.device)
        logits, self.cache = prefill(self.model, batch, observer)
        self.mask, self.position = batch.mask, batch.positions[:, -1:]
        return logits

    @torch.inference_mode()
    def extend(self, tokens: torch.Tensor, slots: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        self.mask = torch.cat([self.mask, self.mask.new_ones(len(self.mask), 1)], 1)
        self.position = self.position + 1
        return self.model(
            input_ids=tokens[:, None].to(self.device),
            attention_mask=self.mask,
            position_ids=self.position,
            past_key_values=self.cache,
            use_cache=True,
        ).logits[:, -1]

    @torch.inference_mode()
    def move(self, rows: int, lengths: int, target: torch.Tensor, source: torch.Tensor) -> None:  # noqa: ARG002
        order = torch.arange(rows)
        order[target] = source
        if rows == len(self.mask) and bool((order == torch.arange(rows)).all()):
            return
        self.cache.reorder_cache(order.to(self.device))  # pyright: ignore[reportArgumentType]
        self.mask, self.position = self.mask[order.to(self.device)], self.position[order.to(self.device)]

    @property
    def nbytes(self) -> int:
        held = (part for layer in self.cache.layers for part in vars(layer).values())
        return sum(part.nbytes for part in held if isinstance(part, torch.Tensor))
