"""From logits to tokens: temperature, top-k, top-p, and one uniform number a draw."""

from __future__ import annotations

import torch

from semcal.sampling.records import Sampling


def token_probabilities(logits: torch.Tensor, settings: Sampling) -> torch.Tensor:
    """[..., vocab] float64 probabilities that a token is drawn with.

    float64 (on a device that has it), so that the running sum over a large vocabulary is exact enough for a draw to
    hardly ever depend on the batch it happens in.
    """
    scaled = (logits if logits.device.type != "mps" else logits.cpu()).double() / settings.temperature
    if settings.top_k is not None and settings.top_k < scaled.shape[-1]:
        kth = scaled.topk(settings.top_k, dim=-1).values[..., -1:]
        scaled = scaled.masked_fill(scaled < kth, -torch.inf)
    probabilities = scaled.softmax(-1)
    if settings.top_p is not None and settings.top_p < 1:
        ordered, index = probabilities.sort(dim=-1, descending=True)
        before = ordered.cumsum(-1) - ordered  # mass of the likelier tokens
        ordered = ordered.masked_fill(before >= settings.top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(-1, index, ordered)
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return probabilities


def draw(probabilities: torch.Tensor, uniform: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Inverse-CDF draws: the token whose stretch of the cumulative distribution holds the uniform number.

    Args:
        probabilities: [row, vocab], rows sum to 1.
        uniform: [row, draw] in [0, 1).

    Returns:
        (tokens [row, draw], their log-probabilities [row, draw] in nats)
    """
    cumulative = probabilities.cumsum(-1)
    cumulative = cumulative / cumulative[..., -1:]  # the last stretch ends at exactly 1
    tokens = torch.searchsorted(cumulative, uniform.to(cumulative).contiguous(), right=True)
    return tokens, probabilities.gather(-1, tokens).log()
