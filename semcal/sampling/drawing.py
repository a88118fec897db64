"""From logits to tokens: temperature, top-k, top-p, and one uniform number a draw."""

from __future__ import annotations

import numpy as np
import torch

from semcal.sampling.records import Sampling

_NUMBERS_AT_ONCE = 2**25  # of [row, vocab], so that a large vocabulary does not ask for gigabytes


def token_probabilities(logits: torch.Tensor, settings: Sampling) -> torch.Tensor:
    """[..., vocab] float32 probabilities that a token is drawn with."""
    scaled = logits.float() / settings.temperature
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


def draw(
    logits: torch.Tensor, settings: Sampling, rows: np.ndarray, uniform: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inverse-CDF draws: the token whose stretch of the cumulative distribution holds the uniform number.

    The running sum is in float64, so that a draw hardly ever depends on the batch it happens in.

    Args:
        logits: [row, vocab]; infinite only where a token is impossible.
        settings: Temperature, top-k, top-p.
        rows: [draw] the row that each draw is from, ascending.
        uniform: [draw] in [0, 1).

    Returns:
        (tokens [draw], their log-probabilities [draw] in nats, rows whose logits are NaN or +infinite)
    """
    tokens, logprobs = np.empty(len(rows), dtype=np.int64), np.empty(len(rows))
    bad: list[np.ndarray] = []
    step = max(1, _NUMBERS_AT_ONCE // logits.shape[-1])
    for start in range(0, len(logits), step):
        part = logits[start : start + step]
        these = slice(*np.searchsorted(rows, [start, start + len(part)]))
        part = part.cpu() if part.device.type == "mps" else part  # which has no float64
        drawn = _draw(token_probabilities(part, settings), rows[these] - start, uniform[these])
        tokens[these], logprobs[these] = drawn[:2]
        bad.append(drawn[2] + start)
    return tokens, logprobs, np.concatenate(bad)


def _draw(probabilities: torch.Tensor, rows: np.ndarray, uniform: np.ndarray) -> tuple[np.ndarray, ...]:
    cumulative = probabilities.cumsum(-1, dtype=torch.float64)
    total = cumulative[:, -1:]  # a draw is scaled to it, so the last stretch ends where the sum does
    counts = np.bincount(rows, minlength=len(probabilities))
    column = np.arange(len(rows)) - (np.cumsum(counts) - counts)[rows]
    wanted = np.zeros((len(probabilities), int(counts.max(initial=0))))
    wanted[rows, column] = uniform
    # Rounding must not lead beyond the last token that is possible at all.
    at = torch.minimum(torch.from_numpy(wanted).to(total.device) * total, total.nextafter(torch.zeros_like(total)))
    found = torch.searchsorted(cumulative, at, right=True).clamp(max=probabilities.shape[-1] - 1)
    logprobs = probabilities.gather(-1, found).double().log()
    broken = (~total[:, 0].isfinite()).nonzero().flatten().cpu().numpy()
    return found.cpu().numpy()[rows, column], logprobs.cpu().numpy()[rows, column], broken
