"""From logits to tokens: temperature, top-k, top-p, and one uniform number per draw."""

import numpy as np
import torch

from semcal.sampling.decoding.output_layer import HiddenScores, Scores, whole
from semcal.sampling.exponential import exp_
from semcal.sampling.records import Sampling

_BLOCK = 64  # tokens
NUMBERS_AT_ONCE = 2**25  # of [row, vocab], so that a large vocabulary does not need gigabytes


def token_probabilities(logits: torch.Tensor, settings: Sampling) -> torch.Tensor:
    """[..., vocab] float32 probabilities of drawing each token."""
    scaled = logits.float() / settings.temperature
    if settings.top_k is not None and settings.top_k < scaled.shape[-1]:
        kth = scaled.topk(settings.top_k, dim=-1).values[..., -1:]
        scaled = scaled.masked_fill(scaled < kth, -torch.inf)
    probabilities = scaled.softmax(-1)
    if settings.top_p is not None and settings.top_p < 1:
        ordered, index = probabilities.sort(dim=-1, descending=True)
        before = ordered.cumsum(-1) - ordered  # mass of all likelier tokens
        ordered = ordered.masked_fill(before >= settings.top_p, 0.0)
        probabilities = torch.zeros_like(probabilities).scatter(-1, index, ordered)
        probabilities = probabilities / probabilities.sum(-1, keepdim=True)
    return probabilities


def draw(
    logits: Scores, settings: Sampling, rows: np.ndarray, uniform: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inverse-CDF draws: the token whose interval of the cumulative distribution contains the uniform number.

    The cumulative sum is in float64, so that a draw almost never depends on its batch.

    Args:
        logits: [row, vocab]; infinite only where a token is impossible. Without top-k and top-p, those of an output
            layer that was left out are computed block by block.
        settings: Temperature, top-k, top-p.
        rows: [draw] row of each draw, ascending.
        uniform: [draw] in [0, 1).

    Returns:
        (tokens [draw], their log-probabilities [draw] in nats, rows whose logits are NaN or +infinite)
    """
    if isinstance(logits, HiddenScores):
        if settings.top_k is None and settings.top_p in (None, 1):
            return _draw_by_blocks(logits, settings.temperature, rows, uniform)
        logits = whole(logits)
    device = torch.device("cpu") if logits.device.type == "mps" else logits.device  # MPS has no float64
    row, wanted = torch.from_numpy(rows).to(device), torch.from_numpy(uniform).to(device)
    step, drawn = max(1, NUMBERS_AT_ONCE // logits.shape[-1]), []
    for start in range(0, len(logits), step):
        part = logits[start : start + step].to(device)
        these = slice(*np.searchsorted(rows, [start, start + len(part)]))
        drawn.append(_draw(token_probabilities(part, settings), row[these] - start, wanted[these]))
    # One copy of all, since the host waits for each; float64 holds every token id.
    found = torch.cat([of_part.double() for kind in zip(*drawn, strict=True) for of_part in kind]).cpu().numpy()
    tokens, logprobs, broken = np.split(found, [len(rows), 2 * len(rows)])
    return tokens.astype(np.int64), logprobs, broken.nonzero()[0]


def _draw(probabilities: torch.Tensor, row: torch.Tensor, uniform: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """First the block of tokens, then the token in it, so that only one block per draw is summed token by token.

    Returns:
        (tokens [draw], their log-probabilities [draw], whether a row is broken [row]), where the probabilities are.
    """
    vocabulary = probabilities.shape[-1]
    blocks = torch.nn.functional.pad(probabilities, (0, -vocabulary % _BLOCK)).unflatten(-1, (-1, _BLOCK))
    cumulative = blocks.sum(-1, dtype=torch.float64).cumsum(-1)  # [row, block]
    total = cumulative[:, -1:]
    wanted = uniform[:, None] * total[row]
    block = _search(cumulative[row], wanted)
    before = cumulative[row].gather(-1, (block - 1).clamp(min=0)).masked_fill(block == 0, 0.0)
    inside = blocks[row, block[:, 0]].cumsum(-1, dtype=torch.float64)  # [draw, token of the block]
    token = block * _BLOCK + _search(inside, wanted - before)
    found = token.clamp(max=vocabulary - 1)
    logprobs = probabilities[row, found[:, 0]].double().log()
    return found[:, 0], logprobs, ~total[:, 0].isfinite()


def _draw_by_blocks(
    scores: HiddenScores, temperature: float, rows: np.ndarray, uniform: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The same, without ever having all logits: first the mass of every block, then those blocks that are drawn."""
    blocks = scores.blocks()
    tops = torch.empty(len(scores), len(blocks))
    masses = torch.empty(len(scores), len(blocks), dtype=torch.float64)
    for at, tokens in enumerate(blocks):
        scaled = scores.block(tokens).div_(temperature)
        tops[:, at] = scaled.amax(-1)
        masses[:, at] = exp_(scaled.sub_(tops[:, at, None])).sum(-1)
    top = tops.amax(-1, keepdim=True)
    cumulative = masses.mul_((tops - top).double().exp()).cumsum(-1)  # [row, block]
    total = cumulative[:, -1]
    row = torch.from_numpy(rows)
    wanted = torch.from_numpy(uniform) * total[row]
    drawn = _search(cumulative[row], wanted[:, None])[:, 0]  # [draw] block
    before = torch.where(drawn > 0, cumulative[row, (drawn - 1).clamp(min=0)], 0.0)
    found = torch.empty(len(rows), dtype=torch.long)
    logprobs = torch.empty(len(rows), dtype=torch.float64)
    for at in drawn.unique().tolist():
        these = (drawn == at).nonzero().flatten()
        own = row[these]
        scaled = scores.block(blocks[at], own).div_(temperature).sub_(top[own])
        inside = scaled.double().exp().cumsum(-1)  # [draw, token of the block]
        token = _search(inside, (wanted[these] - before[these])[:, None])
        found[these] = blocks[at].start + token[:, 0]
        logprobs[these] = scaled.gather(-1, token)[:, 0].double() - total[own].log()
    broken = (~total.isfinite()).nonzero().flatten()
    return found.numpy(), logprobs.numpy(), broken.numpy()


def _search(cumulative: torch.Tensor, wanted: torch.Tensor) -> torch.Tensor:
    """[draw, 1] index of the first interval that ends beyond `wanted`, at most the last one that is not empty."""
    total = cumulative[:, -1:]  # rounding must not lead beyond the last possible interval
    at = torch.minimum(wanted, total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, at, right=True).clamp(max=cumulative.shape[-1] - 1)
