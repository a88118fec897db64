"""Which way of decoding computes what a model computes, found out on the prompts at hand before anything is sampled.

The reference is the plain forward pass over one whole sequence: no cache, no padding, no other row. The ways are tried
from fast to slow, and the first that agrees with the reference is taken. Nothing is concluded from the name of an
architecture. In bfloat16 and float16 a way must agree twice: in single precision, and in the model's own dtype within
what rounding explains (`rounding.py`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from transformers import PreTrainedModel

from semcal.errors import UserError, in_short
from semcal.sampling.decoding.decoders import (
    ExpandedDecoder,
    Observer,
    RereadDecoder,
    TreeDecoder,
    pad_left,
    padded_pass,
    plain_pass,
    shared_prefix,
)
from semcal.sampling.decoding.output_layer import whole
from semcal.sampling.decoding.rounding import SINGLE, difference, in_single, remedy, rounding
from semcal.sampling.records import Prompt

SHARED, EXPANDED, REREAD = "shared-prefix", "expanded", "reread"
_NEW_TOKENS = 3
_FEW_TOKENS = 16  # of a prompt, in the check of padding
_WINDOWS = ("sliding_window", "attention_chunk_size", "attention_window_size", "window_size")


@dataclass(frozen=True)
class ChosenPath:
    """A way of decoding that agrees with plain forward passes.

    Attributes:
        path: "shared-prefix", "expanded" or "reread".
        why: Why no faster path was chosen; empty if there is none.
        apart: Largest difference from plain forward passes, in nats.
        limit: The largest difference that rounding explains in the model's dtype, in nats.
        single: Largest difference where the model computes in single precision, at most `rounding.SINGLE`; None if the
            model is in float32 itself, or cannot be compared so.
    """

    path: str
    why: str
    apart: float
    limit: float
    single: float | None = None


@dataclass(frozen=True)
class _Reference:
    """Plain passes over prompts and three more tokens each: [row, 4, vocab] logits of what follows.

    The rows are the prompts, and one more that continues the first prompt with the same first token and other ones
    after it, as when two samples part.
    """

    prompts: tuple[Prompt, ...]
    new: tuple[tuple[int, ...], ...]
    logits: torch.Tensor

    @classmethod
    def of(cls, model: PreTrainedModel, device: torch.device, prompts: tuple[Prompt, ...]) -> _Reference:
        ends = [_cycled(p.ids) for p in prompts]
        straight = ends[::-1]  # each continues with the tokens at the end of the other
        new = (*straight, _parted(straight[0], ends[0]))
        read = [p.ids + more for p, more in zip((*prompts, prompts[0]), new, strict=True)]
        first, *others = (
            plain_pass(model, rows, device, keep=_NEW_TOKENS + 1)
            for rows in ([read[0], read[-1]], *([r] for r in read[1:-1]))
        )
        return cls(prompts, new, torch.cat([first[:1], *others, first[1:]]))

    def again(self, model: PreTrainedModel, device: torch.device) -> torch.Tensor:
        """The first row and the last one, computed once more."""
        read = [self.prompts[0].ids + self.new[row] for row in (0, -1)]
        return plain_pass(model, read, device, keep=_NEW_TOKENS + 1)


def choose_path(model: PreTrainedModel, device: torch.device, prompts: Sequence[Prompt]) -> ChosenPath:
    """The fastest path that agrees with plain forward passes.

    Two of the prompts, of different length, are continued in one batch by three tokens, with rows that part.

    Raises:
        UserError: the model is not causal, takes a token for padding, or no path agrees, with the difference in nats.
    """
    name, some = type(model).__name__, _two_lengths(prompts)
    try:
        reference = _Reference.of(model, device, some)
    except torch.OutOfMemoryError:
        raise
    except Exception as error:
        raise UserError(
            f"{name} cannot be read as a causal language model: {in_short(error)}; choose a decoder-only model"
        ) from error
    limit = rounding(model, reference.logits[[0, -1]], lambda: reference.again(model, device))
    exact = in_single(model, lambda: _Reference.of(model, device, _brief(model, some)))
    if too_far := _too_far(_moved_by_later_tokens(reference), limit, exact and _moved_by_later_tokens(exact)):
        raise UserError(
            f"{name} is not a causal language model: another last token moves the log-probabilities at earlier "
            f"positions by {too_far}; choose a decoder-only model"
        )
    why = []
    for path in (SHARED, EXPANDED, REREAD):
        if kinds := _untried(model) if path == SHARED else "":
            why.append(kinds)
            continue
        try:
            apart = _apart(reference, path, model, device)
        except torch.OutOfMemoryError:
            raise
        except Exception as error:  # whatever goes wrong in this trial, a slower path may be right
            why.append(f"{path}: {in_short(error)}")
            continue
        single = in_single(model, partial(_apart, exact, path, model, device)) if exact else None
        if not (too_far := _too_far(apart, limit, single)):
            if path == REREAD:
                _check_padding(model, device, some[-1].ids)
            return ChosenPath(path, "; ".join(why), apart, limit, single)
        why.append(f"{path}: log-probabilities differ by {too_far} from those of plain forward passes")
    raise UserError(
        f"{name} cannot be sampled: no way of decoding agrees with plain forward passes within {limit:.2g} nats "
        f"({'; '.join(why)}); {remedy(model)}"
    )


def _too_far(apart: float, limit: float, single: float | None) -> str:
    """A difference that rounding does not explain, in words; empty if it explains both, in nats."""
    if single is not None and single > SINGLE:
        return f"{single:.2g} nats in single precision (at most {SINGLE:.2g} is rounding)"
    return f"{apart:.2g} nats (at most {limit:.2g} is rounding)" if apart > limit else ""


def observe_all(
    model: PreTrainedModel, device: torch.device, prompts: Sequence[Prompt], observer: Observer, *, padded: bool
) -> None:
    """One forward pass over all prompts for an observer; without padding, those of one length together."""
    if padded:
        padded_pass(model, pad_left(prompts, 0, device), observer)
    else:
        RereadDecoder(model, device).read(prompts, torch.arange(len(prompts)), observer)


def may_be_padded(model: PreTrainedModel, device: torch.device, ids: Sequence[int]) -> bool:
    """Whether padding on the left changes nothing that a model computes, tried on two beginnings of a prompt."""
    long = Prompt("", tuple(ids[:_FEW_TOKENS]))
    two = (Prompt("", long.ids[: -(-len(long.ids) // 2)]), long)

    def plain() -> torch.Tensor:
        return torch.cat([plain_pass(model, [p.ids], device)[:, -1] for p in two])

    def apart(unpadded: torch.Tensor) -> float:
        try:
            return difference(unpadded, padded_pass(model, pad_left(two, 0, device)))
        except torch.OutOfMemoryError:
            raise
        except Exception:  # whatever goes wrong, passes without padding are right
            return math.inf

    single = in_single(model, lambda: apart(plain()))
    unpadded = plain()
    return not _too_far(apart(unpadded), rounding(model, unpadded, plain), single)


def _untried(model: PreTrainedModel) -> str:
    """Kinds of layers that the shared path does not know: their masks may agree on short prompts alone."""
    kinds = set(getattr(model.config.get_text_config(), "layer_types", None) or ())
    kinds -= {"full_attention", "sliding_attention"}
    return f"layers of kind {', '.join(sorted(kinds))}" if kinds else ""


def _two_lengths(prompts: Sequence[Prompt]) -> tuple[Prompt, ...]:
    """The shortest prompt and the longest one; where all have one length, one of them without its last token."""
    short, long = min(prompts, key=lambda p: len(p.ids)), max(prompts, key=lambda p: len(p.ids))
    if len(short.ids) < len(long.ids):
        return short, long
    return (Prompt(short.key, short.ids[:-1]), long) if len(long.ids) > 1 else (long,)


def _brief(model: PreTrainedModel, prompts: tuple[Prompt, ...]) -> tuple[Prompt, ...]:
    """Prompts with their first and their last tokens alone, where no layer has a window that would then not end within
    them: in single precision, half precision is converted for each pass, and any error shows on few tokens."""
    config, longest = model.config.get_text_config(), max(len(p.ids) for p in prompts)
    windows = [getattr(config, name, None) for name in _WINDOWS]
    if any(isinstance(window, int) and window <= longest + _NEW_TOKENS for window in windows):
        return prompts
    # Other lengths stay other lengths.
    least = min(len(p.ids) for p in prompts)
    ends = [min(_FEW_TOKENS + len(p.ids) - least, 2 * _FEW_TOKENS) for p in prompts]
    if least <= 4 * _FEW_TOKENS:
        return prompts
    return tuple(Prompt(p.key, p.ids[: 2 * _FEW_TOKENS] + p.ids[-end:]) for p, end in zip(prompts, ends, strict=True))


def _cycled(ids: Sequence[int]) -> tuple[int, ...]:
    """The last three token ids, from the start again if there are fewer."""
    return tuple(ids[i % len(ids)] for i in range(len(ids) - _NEW_TOKENS, len(ids)))


def _parted(straight: Sequence[int], end: Sequence[int]) -> tuple[int, ...]:
    """Other tokens than these after the first of them: those at the end of a prompt, backwards."""
    parted = (straight[0], *end[:0:-1])
    if parted != tuple(straight):
        return parted
    return (*parted[:-1], next(i for i in (*end, 0, 1) if i != parted[-1]))


def _moved_by_later_tokens(reference: _Reference) -> float:
    """How far other tokens move the log-probabilities at the positions before them, in nats.

    The first row and the last one have the prompt and one more token in common.
    """
    return difference(reference.logits[0, :2], reference.logits[-1, :2])


@torch.inference_mode()
def _check_padding(model: PreTrainedModel, device: torch.device, ids: Sequence[int]) -> None:
    """Whether the padding token is a token like any other where a model sees nothing but token ids.

    Any other token that is given its embedding must have the same effect. XLM leaves out as many tokens at the end as
    there are padding tokens, RoBERTa does not count them as positions: after one is drawn, both compute something else.

    Raises:
        UserError: it is not.
    """
    config = model.config.get_text_config()
    embedding = model.get_input_embeddings()
    named = [getattr(config, name, None) for name in ("pad_token_id", "pad_index")]
    size = next(embedding.parameters()).shape[0]
    pads = {pad for pad in named if isinstance(pad, int) and 0 <= pad < size}  # some configurations say -1
    for pad in sorted(pads):
        other = next(i for i in (*ids, 0, 1) if i not in pads)
        start, end = ((*(i if i not in pads else other for i in some),) for some in (ids[:2], ids[2:_FEW_TOKENS]))
        as_it_is = partial(plain_pass, model, [(*start, pad, *end)], device)
        written = embedding(torch.tensor([pad], device=device))

        def embed(*called: Any, place: int = len(start), row: torch.Tensor = written) -> torch.Tensor:
            found = called[-1].clone()
            found[:, place] = row
            return found

        hook = embedding.register_forward_hook(embed)
        try:
            by_embedding = plain_pass(model, [(*start, other, *end)], device)
        finally:
            hook.remove()
        plain = as_it_is()
        if too_far := _too_far(difference(by_embedding, plain), rounding(model, plain, as_it_is), None):
            raise UserError(
                f"{type(model).__name__} takes token {pad} for padding wherever it stands, which moves the "
                f"log-probabilities after it by {too_far}; choose another one"
            )


def _apart(reference: _Reference, path: str, model: PreTrainedModel, device: torch.device) -> float:
    """How far a path is from the reference, in nats."""
    prompts, new = reference.prompts, torch.tensor(reference.new)
    n = len(prompts)
    slots = torch.tensor([*range(n), 0])
    if path == SHARED:
        decoder = TreeDecoder(model, device)
        decoder.share(prompts[0].ids[: shared_prefix(prompts)])
    else:
        decoder = (ExpandedDecoder if path == EXPANDED else RereadDecoder)(model, device)
    steps = [whole(decoder.read(prompts, slots[:n], None))]
    for at in range(_NEW_TOKENS):
        rows = n + (at > 0)
        if at == 1:
            decoder.move(rows, torch.tensor([n]), torch.tensor([0]))
        steps.append(whole(decoder.extend(new[:rows, at], slots[:rows], torch.full((rows,), at))))
    return max(difference(reference.logits[: len(ours), at], ours) for at, ours in enumerate(steps))
