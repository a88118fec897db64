"""Changing what a model knows before it speaks: ablate, steer or patch its residual stream during the prefill, sample.

`Intervening` is an observer of the sampler that writes. Only prompt tokens are changed, never generated ones, and never
those that all prompts start with, which are read once for all questions. Knows nothing of classes or calibration.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel

from probes.activations.hooks import Hook, choose_hooks
from semcal.errors import UserError
from semcal.models.checkpoint import Answer, LanguageModel
from semcal.sampling.decoding.decoders import PromptBatch, shared_prefix
from semcal.sampling.decoding.paths import REREAD, choose_path
from semcal.sampling.engine import Sampler
from semcal.sampling.records import Prompt, Sampling

# Where a change enters the residual stream. What is written at `hook_resid_mid` would reach the MLP alone.
WRITABLE = ("hook_resid_pre", "hook_resid_post", "hook_attn_out", "hook_mlp_out")


@dataclass(frozen=True)
class Ablate:
    """Sets the component in a subspace to its mean over questions: x becomes x − B Bᵀ (x − mean).

    A plain orthogonal projection, so it takes out what a probe with these weights reads; a probe fitted anew may still
    find something in directions that correlate with them (Belrose et al. 2023, arXiv 2306.03819, take that out, too).

    Attributes:
        hook: TransformerLens's name.
        basis: [d, r] orthonormal columns; r = 0 changes nothing.
        mean: [d] of the activations there.
    """

    hook: str
    basis: np.ndarray
    mean: np.ndarray

    def __post_init__(self) -> None:
        if self.basis.ndim != 2 or self.mean.shape != self.basis.shape[:1]:
            raise ValueError(f"basis is {self.basis.shape} and mean {self.mean.shape}; expected [d, r] and [d]")
        if not np.allclose(self.basis.T @ self.basis, np.eye(self.basis.shape[1]), atol=1e-4):
            raise ValueError(f"the {self.basis.shape[1]} columns of the basis are not orthonormal")

    def applied(self, x: Tensor, keys: Sequence[str]) -> Tensor:  # noqa: ARG002
        """[token, d] -> [token, d]."""
        basis, mean = _like(self.basis, x), _like(self.mean, x)
        return x - (x - mean) @ basis @ basis.T


@dataclass(frozen=True)
class Steer:
    """Adds size × direction.

    Attributes:
        hook: TransformerLens's name.
        direction: [d]; its length is one unit of `size`, by `confidence_direction` one standard deviation of the
            activations along it.
        size: How many of them, of either sign.
    """

    hook: str
    direction: np.ndarray
    size: float

    def applied(self, x: Tensor, keys: Sequence[str]) -> Tensor:  # noqa: ARG002
        """[token, d] -> [token, d]."""
        return x + self.size * _like(self.direction, x)


@dataclass(frozen=True)
class Patch:
    """Puts another question's activation in place of a question's own.

    Attributes:
        hook: TransformerLens's name.
        source: question key -> [d] what it gets; the others keep theirs.
    """

    hook: str
    source: Mapping[str, np.ndarray]

    def applied(self, x: Tensor, keys: Sequence[str]) -> Tensor:
        """[token, d] -> [token, d], of the tokens of these questions."""
        rows = list(x)
        for at, key in enumerate(keys):
            if key in self.source:
                rows[at] = _like(self.source[key], x)
        return torch.stack(rows)


Intervention = Ablate | Steer | Patch


class Intervening:
    """An observer that changes some tokens of every prompt as it is prefilled.

    Args:
        interventions: In the order in which they are made where several name one hook.
        where: For each prompt's key, the places of the tokens to change, from 0; None changes the last prompt token.

    Attributes:
        changes: (question key, hook) -> how far its activations were moved: [token] norms.
    """

    def __init__(self, interventions: Sequence[Intervention], where: Mapping[str, Sequence[int]] | None = None) -> None:
        self.interventions, self.where = tuple(interventions), where
        self.changes: dict[tuple[str, str], list[float]] = {}
        self._model: PreTrainedModel | None = None
        self._hooks: list[Hook] = []

    def choose(self, model: PreTrainedModel) -> None:
        """Find the hooks in this model.

        Raises:
            UserError: it has no hook of that name, or what is written there would not reach the residual stream.
        """
        if self._model is not model:
            self._model, self._hooks = model, [_hook(model, i.hook) for i in self.interventions]

    @contextmanager
    def watching(self, model: PreTrainedModel, batch: PromptBatch) -> Iterator[None]:
        self.choose(model)
        tokens = self._tokens(batch)
        for key in batch.keys:  # a question that was restarted is changed again
            self.changes |= {(key, i.hook): [] for i in self.interventions}
        with ExitStack() as attached:
            for hook, intervention in zip(self._hooks, self.interventions, strict=True):
                attached.callback(hook.attach(partial(self._write, tokens, intervention)).remove)
            yield

    def prefilled(self, batch: PromptBatch) -> None:
        """Nothing is left to do."""

    def _tokens(self, batch: PromptBatch) -> list[tuple[str, int, int]]:
        """(question, row, column) of each token to change; UserError for one that all prompts start with."""
        lengths = (batch.mask.sum(-1) + batch.offset).tolist()
        width, found = batch.ids.shape[1], list[tuple[str, int, int]]()
        for row, (key, length) in enumerate(zip(batch.keys, lengths, strict=True)):
            for place in (length - 1,) if self.where is None else self.where[key]:
                if not batch.offset <= place < length:
                    raise UserError(
                        f"question {key!r}: token {place} cannot be changed; the first {batch.offset} of its {length} "
                        "are read once for all questions"
                    )
                found.append((key, row, width - length + place))
        return found

    def _write(self, tokens: list[tuple[str, int, int]], intervention: Intervention, hidden: Tensor) -> Tensor:
        keys = [key for key, _, _ in tokens]
        at = torch.tensor([place for _, *place in tokens], dtype=torch.long, device=hidden.device).reshape(-1, 2)
        row, column = at.T
        before = hidden[row, column]  # [token, d]
        after = intervention.applied(before.float(), keys).to(hidden.dtype)
        moved = (after - before).float().norm(dim=-1).tolist()
        for key, far in zip(keys, moved, strict=True):
            self.changes[key, intervention.hook].append(far)
        changed = hidden.clone()
        changed[row, column] = after
        return changed


@dataclass(frozen=True)
class Resampled:
    """Answers under one condition.

    Attributes:
        condition: Its name.
        answers: question key -> distinct answers with their counts.
        change: Mean norm of the change over tokens; 0 where nothing was changed.
    """

    condition: str
    answers: dict[str, tuple[Answer, ...]]
    change: float


def intervene(
    model: LanguageModel,
    prompts: Sequence[Prompt],
    settings: Sampling,
    conditions: Mapping[str, Sequence[Intervention]],
    *,
    where: Mapping[str, Sequence[int]] | None = None,
    max_rows: int | None = None,
    on_answered: Callable[[int], None] = lambda _: None,
) -> Iterator[Resampled]:
    """Sample the same prompts with the same seeds under each condition; without interventions the model is left alone.

    Draws are coupled: a token of a sample differs from that under another condition only where the distribution moved
    far enough. So an intervention without effect gives the very same samples.

    Args:
        conditions: name -> what is done during the prefill.
        where, max_rows: as `Intervening` and `Sampler` take them.

    Raises:
        UserError: see `Intervening.choose`; or a model that is sampled without a cache.
    """
    observers = {name: Intervening(made, where) for name, made in conditions.items()}
    for observer in observers.values():
        observer.choose(model.model)
    first = min((p for places in (where or {}).values() for p in places), default=None)
    path = choose_path(model.model, model.device, prompts)
    if path.path == REREAD:  # the prompt would be read again, unchanged, for every token
        raise UserError(f"{model.path} is sampled without a cache, which keeps no intervention: {path.why}")
    sampler = Sampler(
        model.model,
        settings,
        model.stop_rule(settings.stop),
        device=model.device,
        max_rows=max_rows,
        path=path.path,
        prefix=prompts[0].ids[: shared_prefix(prompts)][:first],
    )
    for name, observer in observers.items():
        sampled = sampler.sample(prompts, observer, on_answered)
        answers = {a.key: model.in_words(a, settings.stop) for a in sampled}
        moved = [far for norms in observer.changes.values() for far in norms]
        yield Resampled(name, answers, float(np.mean(moved)) if moved else 0.0)


def _hook(model: PreTrainedModel, name: str) -> Hook:
    if name.rpartition(".")[2] not in WRITABLE:
        raise UserError(f"nothing can be written at {name!r}; one of {', '.join(WRITABLE)} of a block")
    found = choose_hooks(model, [name])
    if len(found) != 1:
        raise UserError(f"an intervention is made at one hook, and {name!r} means {len(found)}")
    return found[0]


def _like(array: np.ndarray, x: Tensor) -> Tensor:
    return torch.as_tensor(array, dtype=x.dtype, device=x.device)
