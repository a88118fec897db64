"""Three ways to decode a tree of answers, behind one interface, from fast to slow.

`TreeDecoder` stores the shared prefix once and each question once (`tree_attention.py`); questions come and go while
others are being decoded. `ExpandedDecoder` is plain Hugging Face with its own cache and one row per distinct answer, in
batches of questions. `RereadDecoder` has no cache: it reads each sequence again for every token. Which of them computes
what a model computes is found out by `paths.py`.
"""

import inspect
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from transformers import DynamicCache, PreTrainedModel

from semcal.sampling.decoding.output_layer import OutputLayer, Scores
from semcal.sampling.decoding.products import fast_products
from semcal.sampling.decoding.tree_attention import AnswerPass, PrefixPass, TailPass, TreeStore, tree_attention_in
from semcal.sampling.records import Prompt

PREFILL_TOKENS = 8192  # in one pass, padding included


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
    """One forward pass over whole prompts, padded, that fills a cache.

    Returns:
        (logits of the next token [question, vocab], the cache)
    """
    cache = DynamicCache(config=model.config)
    with observer.watching(model, batch) if observer else nullcontext():
        out = model(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            use_cache=True,
            logits_to_keep=1,
            **_cached(model, cache),
        )
    if observer:
        observer.prefilled(batch)
    return out.logits[:, -1], cache


def _cached(model: PreTrainedModel, cache: DynamicCache) -> dict[str, Any]:
    """The cache under the name by which a model takes it."""
    return {"cache_params" if _has_state(model) else "past_key_values": cache}


def _has_state(model: PreTrainedModel) -> bool:
    """Whether the cache is the state of a state-space model, in which padding has left no trace to be masked."""
    return _takes(model, "cache_params")


def _takes(model: PreTrainedModel, name: str) -> bool:
    return name in inspect.signature(model.forward).parameters


@torch.inference_mode()
def plain_pass(
    model: PreTrainedModel,
    rows: Sequence[Sequence[int]],
    device: torch.device,
    *,
    keep: int = 1,
) -> torch.Tensor:
    """A forward pass over whole sequences of one length, without cache and padding: the reference for every path.

    Args:
        rows: [row, position] token ids.
        keep: Number of last positions to return; 0 returns all.

    Returns:
        [row, position, vocab] logits.
    """
    return unpadded_pass(model, pad_left([Prompt("", tuple(row)) for row in rows], 0, device), keep)


@torch.inference_mode()
def padded_pass(model: PreTrainedModel, batch: PromptBatch, observer: Observer | None = None) -> torch.Tensor:
    """A forward pass over padded prompts, without a cache: [question, vocab] logits of the next token."""
    options = {"logits_to_keep": 1} if _takes(model, "logits_to_keep") else {}
    with observer.watching(model, batch) if observer else nullcontext():
        out = model(
            input_ids=batch.ids,
            attention_mask=batch.mask,
            position_ids=batch.positions,
            use_cache=False,
            **options,
        )
    if observer:
        observer.prefilled(batch)
    return out.logits[:, -1]


@torch.inference_mode()
def unpadded_pass(
    model: PreTrainedModel, batch: PromptBatch, keep: int, observer: Observer | None = None
) -> torch.Tensor:
    """`plain_pass` over a batch that needs no padding, watched by an observer."""
    options = {"logits_to_keep": keep} if _takes(model, "logits_to_keep") else {}
    with observer.watching(model, batch) if observer else nullcontext():
        logits = model(input_ids=batch.ids, use_cache=False, **options).logits
    if observer:
        observer.prefilled(batch)
    return logits[:, -keep:]


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
        self.output = OutputLayer(model)
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
    def read(self, prompts: Sequence[Prompt], slots: torch.Tensor, observer: Observer | None) -> Scores:
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
    ) -> Scores:
        """One more token for rows 0..R-1, or for `rows`, with these lengths so far; [row, vocab] logits of the next."""
        positions = (self.offset + self.tail_lengths[slots] + lengths)[:, None]
        answers = AnswerPass(self.store, rows, slots, lengths, self.tail_lengths)
        return self._forward(answers, tokens[:, None].to(self.device), positions.to(self.device))

    @torch.inference_mode()
    def move(self, rows: int, target: torch.Tensor, source: torch.Tensor) -> None:
        """From now on there are `rows` rows, and row target[i] continues the former row source[i]."""
        self.store.answers.move(rows, target, source)

    @property
    def nbytes(self) -> int:
        return self.store.nbytes

    @torch.inference_mode()
    def _forward(self, tree: object, ids: torch.Tensor, positions: torch.Tensor) -> Scores:
        with tree_attention_in(self.model), fast_products(self.model), self.output.left_out() as kept:
            out = self.model(input_ids=ids, position_ids=positions, use_cache=False, logits_to_keep=1, tree=tree)
        return self.output.scores(kept, out.logits)


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
            attention_mask=None if _has_state(self.model) else self.mask,
            position_ids=self.position,
            use_cache=True,
            **_cached(self.model, self.cache),
        ).logits[:, -1]

    @torch.inference_mode()
    def move(self, rows: int, target: torch.Tensor, source: torch.Tensor) -> None:
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


class RereadDecoder:
    """The same methods without any cache or padding: every sequence is read again for each of its tokens.

    Sequences of one length are read together. It supports whatever computes a causal language model, slowly.
    """

    joins = False
    nbytes = 0

    def __init__(self, model: PreTrainedModel, device: torch.device) -> None:
        self.model, self.device = model, device
        self.rows: list[tuple[int, ...]] = []

    @torch.inference_mode()
    def read(self, prompts: Sequence[Prompt], slots: torch.Tensor, observer: Observer | None) -> torch.Tensor:  # noqa: ARG002
        self.rows = [p.ids for p in prompts]
        return self._logits([p.key for p in prompts], observer)

    def extend(self, tokens: torch.Tensor, slots: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:  # noqa: ARG002
        self.rows = [(*row, token) for row, token in zip(self.rows, tokens.tolist(), strict=True)]
        return self._logits([""] * len(self.rows), None)

    def move(self, rows: int, target: torch.Tensor, source: torch.Tensor) -> None:
        order = torch.arange(rows)
        order[target] = source
        self.rows = [self.rows[i] for i in order.tolist()]

    @torch.inference_mode()
    def _logits(self, keys: Sequence[str], observer: Observer | None) -> torch.Tensor:
        """[row, vocab] logits of the next token."""
        found: dict[int, torch.Tensor] = {}
        for some in _of_one_length(self.rows):
            batch = pad_left([Prompt(keys[i], self.rows[i]) for i in some], 0, self.device)
            found |= zip(some, unpadded_pass(self.model, batch, 1, observer)[:, -1], strict=True)
        return torch.stack([found[i] for i in range(len(self.rows))])


def _of_one_length(rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
    """The indices of sequences of one length, at most so many at once as fit into one pass."""
    by_length: dict[int, list[int]] = {}
    for at, row in enumerate(rows):
        by_length.setdefault(len(row), []).append(at)
    for length, these in by_length.items():
        step = max(1, PREFILL_TOKENS // length)
        yield from (these[i : i + step] for i in range(0, len(these), step))
