"""Hidden activations before generation, seen on the very prefill that the samples come from.

`ResidualCapture` is an observer of the sampler: forward hooks (`hooks.py`) read what TransformerLens's names mean,
without replacing any module and with the model's own attention. Tests assert that what it reads equals what
TransformerLens reads. Where to look is given as places of tokens; what the places mean is not known here.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from einops import rearrange
from torch import Tensor
from transformers import PreTrainedModel

from probes.activations.hooks import Hook, choose_hooks
from semcal.errors import NonFiniteError, UserError
from semcal.models.checkpoint import LanguageModel
from semcal.positions import (
    DEFAULT_HOOKS,
    LAST_PROMPT_TOKEN,
    PROMPT_POSITIONS,
    QUESTION_MEAN,
    QUESTION_POSITIONS,
    check_position,
    of_question,
)
from semcal.runs.stored_activations import LARGEST, Activations, too_large
from semcal.sampling.decoding.decoders import PromptBatch
from semcal.sampling.decoding.paths import may_be_padded, observe_all
from semcal.sampling.records import Prompt

# position -> the places of the tokens to read there, from 0; none where a prompt has no such position.
Places = Mapping[str, Sequence[int]]


@dataclass(frozen=True)
class _Plan:
    """What to take from the hidden states of one batch.

    Attributes:
        rows: [row] what is read: (key, position, places), a token or the mean of several.
        question, column: [token] its place in the batch.
        row: [token] which row it belongs to; None where each token is a row.
    """

    rows: list[tuple[str, str, Sequence[int]]]
    question: Tensor
    column: Tensor
    row: Tensor | None

    @classmethod
    def of(cls, batch: PromptBatch, where: Sequence[Places]) -> _Plan:
        """Raises UserError for a place among the tokens that all prompts start with, which were read before."""
        length = (batch.mask.sum(-1) + batch.offset).tolist()
        width, rows, question, column, row = batch.ids.shape[1], [], list[int](), list[int](), list[int]()
        for at, (key, places) in enumerate(zip(batch.keys, where, strict=True)):
            for position, chosen in places.items():
                if min(chosen, default=batch.offset) < batch.offset:
                    raise UserError(
                        f"question {key!r}: {position} lies among the {batch.offset} tokens that all prompts "
                        "start with and that are read once; give the sampler a shorter prefix"
                    )
                for some in (chosen,) if position == QUESTION_MEAN else ((place,) for place in chosen):
                    question += [at] * len(some)
                    column += [width - length[at] + place for place in some]
                    row += [len(rows)] * len(some)
                    rows.append((key, position, some))
        device = batch.ids.device
        averaged = torch.tensor(row, device=device) if len(row) > len(rows) else None
        return cls(rows, torch.tensor(question, device=device), torch.tensor(column, device=device), averaged)

    def take(self, hidden: Tensor) -> Tensor:
        """[question, position, width] -> [row, width] in single precision, on the CPU."""
        device = hidden.device
        found = hidden.detach()[self.question.to(device), self.column.to(device)].float()
        if self.row is not None:
            row = self.row.to(device)
            total = found.new_zeros(len(self.rows), found.shape[-1]).index_add(0, row, found)
            found = total / torch.bincount(row, minlength=len(self.rows))[:, None]
        return found.cpu()


@dataclass(frozen=True)
class _Found:
    """One row: [layer, d_model], [head layer, head, d_head], and its token."""

    values: np.ndarray
    heads: np.ndarray
    token_id: int
    token_index: int


class ResidualCapture:
    """Reads activations at some places of every prompt it watches being prefilled.

    Args:
        hooks: TransformerLens's names, as shell-style patterns.
        where: For each prompt's key, what to read; None reads the last prompt token of all.
        dtype: "float32" or "float16", in which it will be stored: what does not fit is refused when it is seen.
    """

    def __init__(
        self,
        hooks: Sequence[str] = DEFAULT_HOOKS,
        where: Mapping[str, Places] | None = None,
        dtype: str = "float32",
    ) -> None:
        self.patterns, self.where, self.dtype = tuple(hooks), where, dtype
        self._model: PreTrainedModel | None = None
        self._hooks: tuple[Hook, ...] = ()
        self._plan: _Plan | None = None
        self._seen: dict[str, Tensor] = {}
        self._found: dict[tuple[str, str], list[_Found]] = {}  # (position, key), in the order in which they were read

    def choose(self, model: PreTrainedModel) -> None:
        """Find the hooks in this model.

        Raises:
            UserError: it has no hook of that name.
        """
        if self._model is not model:
            self._model, self._hooks = model, choose_hooks(model, self.patterns)

    @contextmanager
    def watching(self, model: PreTrainedModel, batch: PromptBatch) -> Iterator[None]:
        self.choose(model)
        lengths = (batch.mask.sum(-1) + batch.offset).tolist()
        last = [{LAST_PROMPT_TOKEN: (n - 1,)} for n in lengths]
        plan = self._plan = _Plan.of(batch, last if self.where is None else [self.where[key] for key in batch.keys])
        self._seen = {}
        with ExitStack() as attached:
            for hook in self._hooks:
                attached.callback(hook.attach(partial(self._see, plan, hook.name)).remove)
            yield

    def _see(self, plan: _Plan, name: str, hidden: Tensor) -> None:
        self._seen[name] = plan.take(hidden)

    def prefilled(self, batch: PromptBatch) -> None:
        """Keep what the pass showed.

        Raises:
            NonFiniteError: NaN or infinity, naming the question and the first layer that holds it.
            UserError: a number beyond the range of `dtype`, naming the same.
        """
        plan = self._plan
        assert plan is not None
        limit = LARGEST[self.dtype]
        for hook in self._hooks:
            largest = self._seen[hook.name].abs().amax(-1)  # [row], NaN where any is
            beyond = ~(largest <= limit)
            if beyond.any():
                row = int(beyond.nonzero()[0])
                what = f"question {plan.rows[row][0]!r}: activations at {hook.name}"
                if not largest[row].isfinite():
                    raise NonFiniteError(f"{what} are NaN or infinite")
                raise too_large(what, float(largest[row]), self.dtype)
        whole = [self._seen[h.name] for h in self._hooks if not h.heads]
        parted = [rearrange(self._seen[h.name], "row (h d) -> row h d", h=h.heads) for h in self._hooks if h.heads]
        values, heads = (torch.stack(parts, 1).numpy() if parts else None for parts in (whole, parted))
        absent = np.zeros(0, dtype=np.float32)
        ids, question, column = batch.ids.cpu(), plan.question.tolist(), plan.column.tolist()
        found: dict[tuple[str, str], list[_Found]] = {}
        last_token = -1
        for at, (key, position, places) in enumerate(plan.rows):
            last_token += len(places)
            found.setdefault((position, key), []).append(
                _Found(  # copies, so that taking a question frees its memory
                    absent if values is None else values[at].copy(),
                    absent if heads is None else heads[at].copy(),
                    int(ids[question[last_token], column[last_token]]),
                    int(places[-1]),
                )
            )
        self._found |= found  # a question that was restarted is read again
        self._seen, self._plan = {}, None

    def take(self, keys: Sequence[str] | None = None, position: str = LAST_PROMPT_TOKEN) -> Activations:
        """What was captured at a position for these questions (for all, in the order they were read), and forget it.

        Raises:
            KeyError: a question that was to be read there and was not.
        """
        wanted = tuple(k for p, k in self._found if p == position) if keys is None else tuple(keys)
        by_question = [[] if self._has_none(k, position) else self._found.pop((position, k)) for k in wanted]
        rows = [row for found in by_question for row in found]
        layers = tuple(h.name for h in self._hooks if not h.heads)
        head_layers = tuple(h.name for h in self._hooks if h.heads)
        values = np.stack([r.values for r in rows]) if layers and rows else np.zeros((len(rows), len(layers), 0))
        heads = (
            np.stack([r.heads for r in rows]) if head_layers and rows else np.zeros((len(rows), len(head_layers), 0, 0))
        )
        return Activations(
            keys=wanted,
            layers=layers,
            values=values,
            token_ids=np.array([r.token_id for r in rows], dtype=np.int64),
            token_index=np.array([r.token_index for r in rows], dtype=np.int64),
            rows=np.array([len(found) for found in by_question], dtype=np.int64),
            head_layers=head_layers,
            heads=heads,
        )

    def _has_none(self, key: str, position: str) -> bool:
        return self.where is not None and not len(self.where[key].get(position, ()))


def capture(
    model: LanguageModel,
    prompts: Sequence[str] | Sequence[Prompt],
    *,
    hooks: Sequence[str] = DEFAULT_HOOKS,
    position: str = LAST_PROMPT_TOKEN,
    questions: Sequence[str] = (),
    ids: Sequence[str] | None = None,
    batch_size: int = 16,
) -> Activations:
    """Activations at one position of every prompt, without sampling anything:

    >>> model = semcal.LanguageModel.load("atlas:base", device="cpu")
    >>> found = probes.capture(model, ["Question: Who wrote Emma?\\nAnswer:"], ids=["emma"])
    >>> found.keys, found.layers[0], found.values.shape  # [question, layer, d_model]
    (('emma',), 'blocks.0.hook_resid_pre', (1, 5, 128))

    Args:
        prompts: a list of texts or of `Prompt`s.
        hooks: TransformerLens's names, as shell-style patterns.
        position: a position in the prompt.
        questions: for a position in the question: the text of each question as it is in its prompt, which must then be
            text; its last occurrence counts.
        ids: [prompt] question ids, which become the `keys` of the result; None: the prompts themselves (the keys of
            `Prompt`s).

    Raises:
        UserError: a hook that the model does not have; a question that is not in its prompt.
        ValueError: one text instead of a list; no such position, or one in the answer
            (`probes.activations.chains.read_chains` reads those); ids that are too few or duplicated.
    """
    if isinstance(prompts, str):
        raise ValueError(f"prompts is one text, {prompts[:40]!r}; expected a list of prompts, such as [prompt]")
    check_position(position)
    if position not in PROMPT_POSITIONS:
        raise ValueError(f"{position} lies in the answer; read it by probes.activations.chains.read_chains")
    if position in QUESTION_POSITIONS and len(questions) != len(prompts):
        raise ValueError(f"{position} of {len(prompts)} prompts needs as many questions, got {len(questions)}")
    encoded = [p if isinstance(p, Prompt) else model.prompt(p) for p in prompts]
    if ids is not None:
        if len(ids) != len(prompts):
            raise ValueError(f"{len(ids)} ids for {len(prompts)} prompts; expected one id per prompt")
        encoded = [replace(prompt, key=key) for prompt, key in zip(encoded, ids, strict=True)]
    keys = [prompt.key for prompt in encoded]
    if len(set(keys)) < len(keys):
        twice = max(keys, key=keys.count)
        raise ValueError(f"prompt {twice[:40]!r} is duplicated; give each prompt its own id by ids=[...]")
    where = None
    if position in QUESTION_POSITIONS:
        where = {
            e.key: {position: of_question(position, _tokens_of(model, p, q))}
            for e, p, q in zip(encoded, prompts, questions, strict=True)
        }
    observer = ResidualCapture(hooks, where)
    padded = bool(encoded) and may_be_padded(model.model, model.device, max((p.ids for p in encoded), key=len))
    for start in range(0, len(encoded), batch_size):
        observe_all(model.model, model.device, encoded[start : start + batch_size], observer, padded=padded)
    return observer.take(keys, position)


def _tokens_of(model: LanguageModel, prompt: str | Prompt, question: str) -> range:
    if isinstance(prompt, Prompt) or (start := prompt.rfind(question)) < 0:
        raise UserError(f"the question {question!r} is not in its prompt (which must be text)")
    return model.tokens_at(prompt, start, start + len(question))
