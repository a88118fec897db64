"""How fast this machine multiplies matrices of a model's own shapes, which bounds every sampler from below."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch.nn.functional import linear
from transformers import PreTrainedModel

from experiments.bench.timing import spent
from semcal.sampling.decoding.products import linear_by_onednn

_CALLS, _TRIES = 4, 5
_MOST_OUTPUTS = 2**14  # of a vocabulary; more need much memory and are no faster

Product = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True)
class Throughput:
    """Floating-point operations per second of wall clock, with all threads, and per CPU second."""

    wall: float
    cpu: float


def token_flops(model: PreTrainedModel) -> tuple[int, int]:
    """Operations of all linear layers for one token, without and of the output layer; a multiply-add counts as two.

    The lookup of embeddings, norms and the products of attention are left out.
    """
    head = model.get_output_embeddings()
    assert head is not None
    head_flops = 2 * next(head.parameters()).numel()
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear) and m is not head]
    return 2 * sum(m.weight.numel() for m in layers), head_flops


@torch.inference_mode()
def matrix_throughput(model: PreTrainedModel, rows: int) -> Throughput:
    """Operations per second of the products of one pass of `rows` tokens through all linear layers.

    Each product alone, by the fastest kernel that torch has for it, the best of some tries.
    """
    flops = wall = cpu = 0.0
    for (outputs, inputs), times in _shapes(model).items():
        weight = torch.randn(min(outputs, _MOST_OUTPUTS), inputs, dtype=model.dtype, device=model.device)
        x = torch.randn(rows, inputs, dtype=model.dtype, device=model.device)
        tries = [_one(product, x, weight) for product in _products(model) for _ in range(_TRIES)]
        scale = times * outputs / len(weight)
        flops += scale * 2 * x.numel() * len(weight)
        wall += scale * min(t[0] for t in tries)
        cpu += scale * min(t[1] for t in tries)
    return Throughput(flops / wall, flops / cpu)


def _shapes(model: PreTrainedModel) -> Counter[tuple[int, int]]:
    """How often each shape [output, input] of a linear layer occurs."""
    layers = [m for m in model.modules() if isinstance(m, torch.nn.Linear)]
    return Counter((m.weight.shape[0], m.weight.shape[1]) for m in layers)


def _products(model: PreTrainedModel) -> list[Product]:
    """The ways to compute x wᵀ."""
    if model.device.type != "cpu" or not torch.backends.mkldnn.is_available():
        return [linear]
    return [linear, linear_by_onednn]


def _one(product: Product, x: torch.Tensor, weight: torch.Tensor) -> tuple[float, float]:
    """Wall and CPU seconds of one product."""
    taken = spent(lambda: [product(x, weight) for _ in range(_CALLS)])
    return taken.wall_s / _CALLS, taken.cpu_s / _CALLS
