"""What rounding explains of the difference between two computations of the same log-probabilities.

Whether a way of decoding computes what a model computes does not depend on the dtype, but in bfloat16 rounding hides a
wrong mask or position. So wherever it can be done, two computations are compared `in_single_precision`, with the same
weights, where right ones agree to 1e-5 nats. In the model's own dtype, in which it is sampled, the limit is measured on
the same tokens: how far plain passes move when each module is rounded once more (`rounding`). docs/sampler.md has the
figures.
"""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from transformers import PreTrainedModel

from semcal.errors import in_short

log = logging.getLogger(__name__)

# Sums over positions and features are accumulated in single precision, in an order that depends on the kernel, which
# may cost half of its digits; and logits of up to 32 are rounded by one spacing each.
SINGLE = math.sqrt(torch.finfo(torch.float32).eps) + 64 * torch.finfo(torch.float32).eps  # nats, 0.00035
ROOM = 2.0  # right paths moved log-probabilities by at most 1.02 times what one more rounding does
_LIKELY = -10.0  # nats; rarer tokens are not compared, but for those as likely as any

T = TypeVar("T")


def difference(plain: torch.Tensor, ours: torch.Tensor) -> float:
    """Largest difference of log-probabilities of likely tokens; 0 if `plain` is NaN, which is reported later.

    Args:
        plain, ours: [..., vocab] logits.
    """
    a, b = plain.float().log_softmax(-1), ours.float().log_softmax(-1).to(plain.device)
    matter = a > (a.amax(-1, keepdim=True) - 1).clamp(max=_LIKELY)
    return float((a - b)[matter].abs().max().nan_to_num(math.inf)) if matter.any() else 0.0


def rounding(model: PreTrainedModel, plain: torch.Tensor, passes: Callable[[], torch.Tensor]) -> float:
    """The largest difference that rounding explains between two exact computations in the model's dtype, in nats.

    Args:
        plain: [..., vocab] logits of plain passes.
        passes: Makes them again; called where the dtype is lower than float32.
    """
    if not is_low(model.dtype):
        return SINGLE
    with rounded_once_more(model):
        return SINGLE + ROOM * difference(plain, passes())


def in_single(model: PreTrainedModel, compute: Callable[[], T]) -> T | None:
    """What is computed where the model computes in single precision; None where it does so anyway, or cannot.

    It cannot where its weights are quantised, where memory is short, or where its attention knows no float32.
    """
    if not is_low(model.dtype) or getattr(model, "is_quantized", False):
        return None
    try:
        with in_single_precision(model):
            return compute()
    except Exception as error:  # of whatever kind
        log.info("not compared in single precision: %s", in_short(error))
        return None


@contextmanager
def in_single_precision(model: PreTrainedModel) -> Iterator[None]:
    """A context in which a model computes in float32 with the weights that it has.

    The weights of a layer are converted while it is called, so that no more than one layer is held twice; those outside
    of the layers (embeddings, the output layer) are converted throughout.
    """
    layers = _layers(model)
    inside = {module for layer in layers for module in layer.modules()}
    outside = _Converted([module for module in model.modules() if module not in inside])
    converted = [_Converted(list(layer.modules())) for layer in layers]
    hooks = []
    for layer, weights in zip(layers, converted, strict=True):
        hooks.append(layer.register_forward_pre_hook(lambda *_, weights=weights: weights.convert()))
        hooks.append(layer.register_forward_hook(lambda *_, weights=weights: weights.restore(), always_call=True))
    try:
        outside.convert()
        yield
    finally:
        for weights in (outside, *converted):
            weights.restore()
        for hook in hooks:
            hook.remove()


class _Converted:
    """The weights directly in some modules, converted to float32 and restored; a tied one is converted once."""

    def __init__(self, modules: list[torch.nn.Module]) -> None:
        self.modules = modules
        self.held: list[tuple[dict[str, torch.nn.Parameter | None], str, torch.nn.Parameter]] = []

    def convert(self) -> None:
        made: dict[torch.nn.Parameter, torch.nn.Parameter] = {}
        for module in self.modules:
            for name, weight in module._parameters.items():
                if weight is not None and is_low(weight.dtype):
                    if weight not in made:
                        made[weight] = torch.nn.Parameter(weight.float(), requires_grad=False)
                    self.held.append((module._parameters, name, weight))
                    module._parameters[name] = made[weight]

    def restore(self) -> None:
        while self.held:
            parameters, name, weight = self.held.pop()
            parameters[name] = weight


def remedy(model: PreTrainedModel) -> str:
    """What may help where two computations of a model differ by more than rounding, beside another model."""
    if getattr(model, "is_quantized", False):
        elsewhere = ", or device cpu, where most methods are dequantised" if model.device.type == "cuda" else ""
        return f"its weights are quantised in memory; use the model before quantisation{elsewhere}"
    return "try dtype float32" if is_low(model.dtype) else "choose another model"


def _layers(module: torch.nn.Module) -> list[torch.nn.Module]:
    """The members of the outermost lists of modules."""
    found = []
    for child in module.children():
        found += list(child) if isinstance(child, torch.nn.ModuleList) else _layers(child)
    return found


@contextmanager
def rounded_once_more(model: PreTrainedModel) -> Iterator[None]:
    """A context in which what each module with weights returns is moved by up to one spacing, at random, and rounded.

    This is two to four times what its own rounding does, since the last bit is off by half a spacing at most; products
    within attention are not moved.
    """
    random = torch.Generator().manual_seed(0)
    drawn: dict[torch.Size, torch.Tensor] = {}  # what is moved by the same shares lies in other layers

    def move(_: torch.nn.Module, __: object, out: object) -> torch.Tensor | None:
        if not isinstance(out, torch.Tensor) or not is_low(out.dtype):
            return None
        if out.shape not in drawn:
            share = torch.rand(out.shape, generator=random).mul_(2).sub_(1)
            drawn[out.shape] = share.mul_(torch.finfo(out.dtype).eps).add_(1).to(out.device)
        return (out.float() * drawn[out.shape]).to(out.dtype)

    hooks = [module.register_forward_hook(move) for module in model.modules() if module._parameters]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def is_low(dtype: torch.dtype) -> bool:
    return dtype.is_floating_point and torch.finfo(dtype).eps > torch.finfo(torch.float32).eps
