"""Softmax attention of one layer, whole or in parts that are merged by their denominators."""

from dataclasses import dataclass

import torch
from torch.nn.functional import scaled_dot_product_attention

from semcal.sampling.exponential import exp_


@dataclass(frozen=True)
class Call:
    """The attention of new tokens in one layer.

    Attributes:
        layer: Index of the layer.
        query: [row, head, new, d]; key, value: [row, kv head, new, d], rotated.
        scaling: Factor applied to the scores.
        window: Number of last positions that a token sees, itself included; None for all.
        softcap: Bound that tanh keeps the scores within; None for no bound.
    """

    layer: int
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scaling: float
    window: int | None
    softcap: float | None


Part = tuple[torch.Tensor, torch.Tensor]  # attention over some of the keys, and the log of its softmax denominator


def as_bias(seen: torch.Tensor) -> torch.Tensor:
    """0 where something is seen, -1e30 elsewhere: finite, so that a row that sees nothing is not NaN."""
    return torch.zeros(seen.shape, device=seen.device).masked_fill_(~seen, -1e30)


def fuses(call: Call) -> bool:
    """Whether the fused kernel that also returns the denominator supports a call."""
    return call.query.device.type == "cpu" and call.softcap is None


def attend_part(
    call: Call, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor | None, *, fused: bool
) -> Part:
    """Softmax attention of [a, b, query, d] over [a, b, position, d]; `fused` is faster for many queries."""
    if fused and fuses(call):
        if bias is not None:  # finite in float16 too
            least = torch.finfo(query.dtype).min
            bias = bias.clamp(min=least).to(query.dtype).expand(len(query), -1, query.shape[2], -1)
        return torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
            query, key, value, 0.0, False, attn_mask=bias, scale=call.scaling
        )
    scores = (query * call.scaling) @ key.mT
    if call.softcap is not None:
        scores = scores.div_(call.softcap).tanh_().mul_(call.softcap)
    scores = scores.float()
    if bias is not None:
        scores += bias
    top = scores.amax(-1, keepdim=True)
    weights = exp_(scores.sub_(top))
    total = weights.sum(-1, keepdim=True)
    return (weights.to(value.dtype) @ value) / total.to(value.dtype), (top + total.log())[..., 0]


def merge(parts: list[Part]) -> torch.Tensor:
    """Attention over all keys from attention over disjoint parts of them: one softmax over all."""
    weights = torch.stack([lse for _, lse in parts]).softmax(0)[..., None]
    return torch.stack([out * weight.to(out.dtype) for (out, _), weight in zip(parts, weights, strict=True)]).sum(0)


def dense(call: Call, key: torch.Tensor, value: torch.Tensor, seen: torch.Tensor) -> torch.Tensor:
    """Ordinary attention of [row, head, new, d] over [row, kv head, position, d] where `seen` is True."""
    g = call.query.shape[1] // key.shape[1]
    key, value = key.repeat_interleave(g, 1), value.repeat_interleave(g, 1)
    if call.softcap is None:
        return scaled_dot_product_attention(call.query, key, value, attn_mask=seen, scale=call.scaling)
    scores = call.query @ key.mT * call.scaling
    scores = (scores / call.softcap).tanh() * call.softcap
    weights = scores.masked_fill(~seen, -torch.inf).softmax(-1, dtype=torch.float32)
    return weights.to(value.dtype) @ value
