"""The sampler: token ids in, distinct token sequences with counts out.

One prefill a question, its keys and values repeated for M rows, every row decoded to its end. The prefill can be
watched by an observer (`probes.capture` is one), so that activations and samples come from the same forward pass over
the same token ids.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from einops import rearrange
from transformers import DynamicCache, PreTrainedModel

from semcal.errors import NonFiniteError
from semcal.sampling.cache import repeated
from semcal.sampling.drawing import draw, token_probabilities
from semcal.sampling.records import LENGTH, STOP, Answered, Prompt, Sample, Sampling
from semcal.sampling.stopping import StopRule
from semcal.seeds import keyed_generator


@dataclass(frozen=True)
class PromptBatch:
    """Prompts padded on the left to one length.

    Attributes:
        keys: [question].
        ids: [question, position] token ids.
        mask: [question, position] 1 for a token, 0 for padding.
        positions: [question, position] position ids; the first token of a prompt has 0.
    """

    keys: tuple[str, ...]
    ids: torch.Tensor
    mask: torch.Tensor
    positions: torch.Tensor


class Observer(Protocol):
    """Sees every prefill; knows nothing of sampling, and the sampler nothing of it."""

    def watching(self, model: PreTrainedModel) -> AbstractContextManager[object]:
        """Entered around the forward pass of a prefill."""
        ...

    def prefilled(self, batch: PromptBatch) -> None:
        """Called after that pass, before anything is drawn."""
        ...


def pad_left(prompts: Sequence[Prompt], pad_id: int, device: torch.device) -> PromptBatch:
    """Prompts as one batch; padding is masked out, so `pad_id` may be any token."""
    length = max(len(p.ids) for p in prompts)
    ids = torch.full((len(prompts), length), pad_id)
    mask = torch.zeros(len(prompts), length, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, length - len(prompt.ids) :] = torch.tensor(prompt.ids)
        mask[row, length - len(prompt.ids) :] = 1
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    return PromptBatch(tuple(p.key for p in prompts), ids.to(device), mask.to(device), positions.to(device))


@torch.inference_mode()
def prefill(
    model: PreTrainedModel, batch: PromptBatch, observer: Observer | None = None
) -> tuple[torch.Tensor, DynamicCache]:
    """One forward pass over the prompts.

    Returns:
        (logits of the next token [question, vocab], the cache)
    """
    cache = DynamicCache(config=model.config)
    with observer.watching(model) if observer else nullcontext():
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


def generate(
    model: PreTrainedModel,
    prompts: Sequence[Prompt],
    settings: Sampling,
    stop_rule: StopRule,
    *,
    device: torch.device,
    batch_size: int = 16,
    observer: Observer | None = None,
    on_answered: Callable[[int], None] = lambda _: None,
) -> Iterator[Answered]:
    """Sample M answers to every prompt, in the order of the prompts.

    Args:
        batch_size: Prompts a batch; batch_size x m rows are decoded together. It does not change the samples beyond
            rounding: each question draws from its own generator, seeded by (settings.seed, key).
        on_answered: Called with the number of questions just finished.

    Raises:
        NonFiniteError: the model returned NaN or infinity, naming the question and the token.
    """
    for start in range(0, len(prompts), batch_size):
        part = prompts[start : start + batch_size]
        answered = _sample_batch(model, pad_left(part, 0, device), settings, stop_rule, observer)
        on_answered(len(part))
        yield from answered


@torch.inference_mode()
def _sample_batch(
    model: PreTrainedModel, batch: PromptBatch, settings: Sampling, stop_rule: StopRule, observer: Observer | None
) -> list[Answered]:
    m, n = settings.m, len(batch.keys)
    logits, cache = prefill(model, batch, observer)
    uniforms = _uniforms(batch.keys, settings)  # [question, step, m]

    # The M rows of a question start from the same logits.
    _check_finite(logits, [(k, 0) for k in batch.keys])
    tokens, logprobs = draw(token_probabilities(logits, settings), uniforms[:, 0])
    tokens, total = rearrange(tokens, "q m -> (q m)").to(batch.mask.device), rearrange(logprobs, "q m -> (q m)").cpu()
    rows: list[list[int]] = [[t] for t in tokens.tolist()]
    finish = [LENGTH] * (n * m)
    alive = torch.arange(n * m)  # rows still being decoded, and the order they stand in the cache
    cache = repeated(cache, m, settings.max_new_tokens)
    mask = batch.mask.repeat_interleave(m, 0)
    position = batch.positions[:, -1].repeat_interleave(m)  # of the latest token

    for step in range(1, settings.max_new_tokens + 1):
        done = stop_rule.finished(tokens.cpu(), [rows[r] for r in alive.tolist()])
        for r in alive[done].tolist():
            finish[r] = STOP
        going = ~done
        if step == settings.max_new_tokens or not going.any():
            break
        if done.any():
            keep = going.nonzero().flatten()  # on the CPU, which every device a layer may lie on takes as an index
            alive, tokens, mask, position = alive[going], tokens[keep], mask[keep], position[keep]
            cache.batch_select_indices(keep)
        mask = torch.cat([mask, mask.new_ones(len(mask), 1)], 1)
        position = position + 1
        logits = model(
            input_ids=tokens[:, None],
            attention_mask=mask,
            position_ids=position[:, None],
            past_key_values=cache,
            use_cache=True,
        ).logits[:, -1]
        _check_finite(logits, [(batch.keys[r // m], step) for r in alive.tolist()])
        uniform = uniforms[:, step].flatten()[alive]
        tokens, logprobs = draw(token_probabilities(logits, settings), uniform[:, None])
        tokens, logprobs = tokens[:, 0].to(mask.device), logprobs[:, 0].cpu()
        total[alive] += logprobs
        for r, token in zip(alive.tolist(), tokens.tolist(), strict=True):
            rows[r].append(token)
    return [
        Answered(
            key, _merge(rows[q * m : (q + 1) * m], total[q * m : (q + 1) * m].tolist(), finish[q * m : (q + 1) * m])
        )
        for q, key in enumerate(batch.keys)
    ]


def _uniforms(keys: Sequence[str], settings: Sampling) -> torch.Tensor:
    """[question, step, m] uniform numbers; a question's depend on the seed and its key alone."""
    shape = (settings.max_new_tokens, settings.m)
    return torch.from_numpy(np.stack([keyed_generator(settings.seed, key, "sampling").random(shape) for key in keys]))


def _merge(rows: Sequence[list[int]], logprobs: Sequence[float], finish: Sequence[str]) -> tuple[Sample, ...]:
    """The distinct sequences among the rows of one question, with their counts."""
    counts: dict[tuple[int, ...], int] = {}
    facts: dict[tuple[int, ...], tuple[float, str]] = {}
    for ids, logprob, end in zip(map(tuple, rows), logprobs, finish, strict=True):
        counts[ids] = counts.get(ids, 0) + 1
        facts.setdefault(ids, (logprob, end))
    order = sorted(counts, key=lambda ids: (-counts[ids], ids))
    return tuple(Sample(ids, counts[ids], *facts[ids]) for ids in order)


def _check_finite(logits: torch.Tensor, rows: Sequence[tuple[str, int]]) -> None:
    bad = (logits.isnan() | (logits == torch.inf)).any(-1)
    if bad.any():
        key, step = rows[int(bad.nonzero()[0])]
        raise NonFiniteError(f"question {key!r}: logits of new token {step} (output layer) are NaN or infinite")
