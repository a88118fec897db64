"""Hidden activations before generation, seen on the very prefill that the samples come from.

`ResidualCapture` is an observer of the sampler: forward hooks on the decoder layers read the residual stream under
TransformerLens's names (`blocks.{i}.hook_resid_post`; `blocks.0.hook_resid_pre` is the embedding), without replacing
any module and with the model's own attention. Tests assert that what it reads equals what TransformerLens reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from einops import rearrange
from torch import nn
from transformers import PreTrainedModel

from semcal.errors import NonFiniteError
from semcal.models.load import LanguageModel
from semcal.sampling import Prompt, PromptBatch, pad_left, prefill

LAST_PROMPT_TOKEN = "last_prompt_token"


@dataclass(frozen=True)
class Activations:
    """The residual stream at one position of each prompt.

    Attributes:
        keys: [question] the prompts' keys.
        layers: [layer] TransformerLens hook names, from the embedding to the last block (before the final norm).
        values: [question, layer, d_model] float32.
        token_ids: [question] the token found at that position.
    """

    keys: tuple[str, ...]
    layers: tuple[str, ...]
    values: np.ndarray
    token_ids: np.ndarray

    def __post_init__(self) -> None:
        if self.values.shape[:2] != (len(self.keys), len(self.layers)):
            raise ValueError(f"values {self.values.shape} do not fit {len(self.keys)} keys, {len(self.layers)} layers")


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers of a Hugging Face causal LM, in order.

    Raises:
        TypeError: an architecture without a single stack of decoder layers.
    """
    depth = model.config.get_text_config().num_hidden_layers
    stacks = [m for m in model.modules() if isinstance(m, nn.ModuleList) and len(m) == depth]
    if not stacks:
        raise TypeError(
            f"{type(model).__name__} has no stack of {depth} decoder layers to read the residual stream from"
        )
    return stacks[0]


def layer_names(n_layers: int) -> tuple[str, ...]:
    """TransformerLens's names of what `ResidualCapture` reads, in order."""
    return ("blocks.0.hook_resid_pre", *(f"blocks.{i}.hook_resid_post" for i in range(n_layers)))


class ResidualCapture:
    """Reads the residual stream at the last prompt token of every prefill it watches."""

    def __init__(self) -> None:
        self._layers: tuple[str, ...] = ()
        self._seen: dict[str, torch.Tensor] = {}
        self._found: dict[str, tuple[np.ndarray, int]] = {}  # key -> ([layer, d_model], token id)

    @contextmanager
    def watching(self, model: PreTrainedModel) -> Iterator[None]:
        layers = decoder_layers(model)
        self._layers, self._seen = layer_names(len(layers)), {}

        def before_first(_module: nn.Module, args: tuple, kwargs: dict) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            self._seen[self._layers[0]] = hidden[:, -1].detach().float().cpu()

        def after(name: str):
            def hook(_module: nn.Module, _args: tuple, output: torch.Tensor | tuple) -> None:
                hidden = output[0] if isinstance(output, tuple) else output
                self._seen[name] = hidden[:, -1].detach().float().cpu()

            return hook

        handles = [layers[0].register_forward_pre_hook(before_first, with_kwargs=True)]
        handles += [
            layer.register_forward_hook(after(name)) for layer, name in zip(layers, self._layers[1:], strict=True)
        ]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    def prefilled(self, batch: PromptBatch) -> None:
        """Keep what the pass showed.

        Raises:
            NonFiniteError: NaN or infinity, naming the question and the first layer that holds it.
        """
        values = torch.stack([self._seen[name] for name in self._layers])
        finite = values.isfinite().all(-1)  # [layer, question]
        if not finite.all():
            layer, question = (~finite).nonzero()[0].tolist()
            raise NonFiniteError(
                f"question {batch.keys[question]!r}: activations at {self._layers[layer]} are NaN or infinite"
            )
        by_question = rearrange(values, "layer question d -> question layer d").numpy()
        for key, found, token in zip(batch.keys, by_question, batch.ids[:, -1].tolist(), strict=True):
            self._found[key] = (found.copy(), token)  # a copy, so that a question taken is memory given back

    def take(self, keys: Sequence[str] | None = None) -> Activations:
        """What was captured for these questions (for all, in the order they were read), and forget it."""
        wanted = tuple(self._found if keys is None else keys)
        taken = [self._found.pop(key) for key in wanted]
        values, tokens = np.stack([v for v, _ in taken]), np.array([t for _, t in taken])
        return Activations(wanted, self._layers, values, tokens)


def capture(model: LanguageModel, prompts: Sequence[str] | Sequence[Prompt], *, batch_size: int = 16) -> Activations:
    """The residual stream at the last token of every prompt, without sampling anything."""
    encoded = [p if isinstance(p, Prompt) else Prompt(p, model.encode(p)) for p in prompts]
    observer = ResidualCapture()
    for start in range(0, len(encoded), batch_size):
        prefill(model.model, pad_left(encoded[start : start + batch_size], 0, model.device), observer)
    return observer.take()
