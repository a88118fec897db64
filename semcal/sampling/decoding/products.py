"""Matrix products in float32 on a CPU, by the faster of the two libraries that torch carries.

torch multiplies float32 matrices by MKL, which does not use AVX-512 on AMD's processors; oneDNN does. It prepares a
kernel for each shape that it meets, so small products stay as they are.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch.nn.functional import linear as plain_linear

_SMALL = 2**17  # weights of a layer
_FASTER = torch.backends.mkldnn.is_available() and torch.backends.cpu.get_cpu_capability() == "AVX512"


def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """x [..., in] by weight [out, in], plus bias [out]: [..., out]. Without gradients."""
    if _FASTER and _is_large(weight) and x.dtype == torch.float32 and x.numel():
        return linear_by_onednn(x, weight, bias)
    return plain_linear(x, weight, bias)


def linear_by_onednn(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """The same by oneDNN, which torch calls in float32 only by this name."""
    return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")


class FrozenLinear(torch.autograd.Function):
    """`linear` by a weight that is not learnt: gradients reach x alone. Use `FrozenLinear.apply(x, weight, bias)`."""

    @staticmethod
    def forward(ctx: Any, x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
        ctx.weight = weight  # frozen, so it need not be watched for changes
        return linear(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, *upstream: torch.Tensor) -> tuple[torch.Tensor, None, None]:
        return linear(upstream[0].contiguous(), ctx.weight.T), None, None


def _is_large(weight: torch.Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.float32 and weight.numel() >= _SMALL


@contextmanager
def fast_products(model: torch.nn.Module, *, gradients: bool = False) -> Iterator[None]:
    """A context in which the linear layers of a model compute by `linear`, where their own forward pass is torch's.

    With `gradients`, these reach what the layers read, and layers that are learnt compute as they are.
    """
    layers = [m for m in model.modules() if type(m) is torch.nn.Linear and _is_large(m.weight)] if _FASTER else []
    for layer in layers:
        if gradients and layer.weight.requires_grad:
            continue
        weight, bias = layer.weight.detach(), None if layer.bias is None else layer.bias.detach()
        if gradients:
            layer.forward = lambda x, weight=weight, bias=bias: FrozenLinear.apply(x, weight, bias)  # pyright: ignore
        else:
            layer.forward = partial(linear, weight=weight, bias=bias)  # pyright: ignore[reportAttributeAccessIssue]
    try:
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)
