"""Exponentials of logits, without those that float32 cannot hold at full precision.

Below exp(-87) float32 has only subnormal numbers and then 0, which vectorised code leaves to a much slower path. Terms
of a sum whose largest is 1 are lost in its rounding long before, at exp(-17).
"""

from torch import Tensor

LEAST = -80.0  # nats below the largest


def exp_(logits: Tensor) -> Tensor:
    """exp of logits of at most 0, in place; those below `LEAST` count as that."""
    return logits.clamp_(min=LEAST).exp_()


def log_sum_exp(logits: Tensor) -> Tensor:
    """Logarithm of the sum over the last axis, [..., K] to [...]; at least one of K is finite."""
    top = logits.detach().amax(-1, keepdim=True)
    return (logits - top).clamp(min=LEAST).exp().sum(-1).log() + top[..., 0]
