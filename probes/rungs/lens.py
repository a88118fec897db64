"""The model's own next-token distribution as a free prediction of its class distribution, layer by layer.

The logit lens (nostalgebraist 2020): whatever the model does to the residual stream after its last block, done to the
residual after an earlier one. Nothing is learnt. Knows token ids of classes; nothing of B.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from probes.activations.hooks import decoder_layers
from probes.rungs.rung import Rung
from semcal.models.checkpoint import LanguageModel

_BATCH = 64


class LensProbe(Rung):
    """p(class) ∝ probability that the next token is a first token of the class, through the logit lens.

    X is the residual stream [question, d] at one layer. `fit` learns nothing but the baseline of `score`: there is no
    parameter. A token that begins several classes is shared among them equally, and a class without first tokens (an
    unparsed answer, a pool of rare classes) gets the probability of all tokens that begin no class. A class that the
    model names after some words of its own ("It is ...") is not seen: a low score says that first tokens do not name
    the class, not that the model does not know it.

    Args:
        model: whose residual stream it is.
        first: [class] the token ids with which an answer of that class can begin (`first_tokens`).
    """

    def __init__(self, model: LanguageModel, first: Sequence[Sequence[int]]) -> None:
        self.model = model
        self.first = first

    def __sklearn_clone__(self) -> LensProbe:
        return LensProbe(self.model, self.first)

    def _learn(self, inputs: np.ndarray, Y: Tensor, group: Sequence[str]) -> None:  # noqa: ARG002 - free of charge
        if Y.shape[1] != len(self.first):
            raise ValueError(
                f"Y has {Y.shape[1]} classes, but first tokens are given for {len(self.first)}; give both for all"
            )

    def _log_probabilities(self, inputs: np.ndarray) -> np.ndarray:
        shares = _shares(self.first, self.model.output_size)  # [vocabulary, class]
        tokens = lens_log_probabilities(self.model, inputs)
        mass = np.concatenate([np.exp(batch) @ shares for batch in tokens])
        mass = np.maximum(mass, np.finfo(np.float64).tiny)
        return np.log(mass / mass.sum(1, keepdims=True))


def first_tokens(model: LanguageModel, forms: Sequence[Sequence[str]], *, context: str) -> list[tuple[int, ...]]:
    """The token ids with which each class can begin in context: [class], sorted.

    Args:
        forms: [class] surface forms of its answers; none for a class that has no text.
        context: what comes before an answer at the end of a prompt, e.g. "Answer:". A form is encoded after it,
            and its first token is the first one in which the two encodings differ.
    """
    alone = model.encode(context)
    found = []
    for own in forms:
        firsts = set()
        for form in own:
            ids = model.encode(context + form)
            parted = next((i for i, (a, b) in enumerate(zip(alone, ids, strict=False)) if a != b), len(alone))
            if parted < len(ids):
                firsts.add(ids[parted])
        found.append(tuple(sorted(firsts)))
    return found


def first_token_facts(model: LanguageModel, residual: np.ndarray) -> np.ndarray:
    """Entropy of the next token and the logarithm of its greatest probability, through the lens: [question, 2], nats.

    Args:
        residual: [question, d].

    At the last layer the first is the plain entropy of the first token, the cheapest guess at semantic entropy.
    """
    batches = lens_log_probabilities(model, residual)
    return np.concatenate([np.stack([-(np.exp(b) * b).sum(1), b.max(1)], axis=1) for b in batches])


def lens_log_probabilities(model: LanguageModel, residual: np.ndarray) -> Iterator[np.ndarray]:
    """Log-probabilities of the next token [some questions, vocabulary] through the lens, from a residual [question, d]:
    batch by batch, because over a large vocabulary those of all questions would fill the memory.

    The residual is put in place of the last block's output, before the final norm, in a pass over one token; so the
    norm, the unembedding and any scaling or capping of logits are the model's own code.

    Raises:
        TypeError: an architecture whose final norm is not found.
    """
    for part in torch.as_tensor(residual).to(model.device, model.dtype).split(_BATCH):
        ids = torch.zeros(len(part), 1, dtype=torch.long, device=model.device)
        with torch.inference_mode(), _entering(final_norm(model.model), part[:, None]):
            logits = model.model(input_ids=ids, use_cache=False).logits[:, -1]
            found = torch.log_softmax(logits.double(), 1).cpu().numpy()
        yield found


def final_norm(model: PreTrainedModel) -> nn.Module:
    """The norm between the last block and the unembedding: next to the stack of decoder layers, with vectors only.

    Raises:
        TypeError: none or several such modules.
    """
    layers = decoder_layers(model)
    parent = next(m for m in model.modules() if any(child is layers for child in m.children()))
    norms = [
        child
        for child in parent.children()
        if (shapes := [p.ndim for p in child.parameters()]) and all(ndim == 1 for ndim in shapes)
    ]
    if len(norms) != 1:
        raise TypeError(
            f"{type(model).__name__} has {len(norms)} norms next to its decoder layers; the lens needs exactly one"
        )
    return norms[0]


@contextmanager
def _entering(module: nn.Module, value: Tensor) -> Iterator[None]:
    """Let `value` enter the module, whatever it is given."""
    handle = module.register_forward_pre_hook(lambda _module, args: (value, *args[1:]))
    try:
        yield
    finally:
        handle.remove()


def _shares(first: Sequence[Sequence[int]], vocabulary: int) -> np.ndarray:
    """[vocabulary, class]: which share of a token's probability goes to a class. Rows sum to 1 or, if nothing takes
    the tokens that begin no class, 0."""
    shares = np.zeros((vocabulary, len(first)))
    for label, tokens in enumerate(first):
        shares[list(tokens), label] = 1
    wordless = np.array([not tokens for tokens in first], dtype=float)
    unnamed = shares.sum(1) == 0
    shares[unnamed] = wordless
    return shares / np.maximum(shares.sum(1, keepdims=True), 1)
