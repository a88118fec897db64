"""Exponentials of logits are those of torch, but for terms that no sum in float32 holds."""

import math

import pytest
import torch

from semcal.sampling.exponential import LEAST, exp_, log_sum_exp


def logits() -> torch.Tensor:
    values = torch.randn(5, 300, generator=torch.Generator().manual_seed(0)) * 30
    values[:, ::3] = -1e30  # what is impossible
    return values


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_logarithm_of_a_sum_and_its_gradient_are_those_of_torch(dtype):
    ours, theirs = (logits().to(dtype).requires_grad_() for _ in range(2))
    found, expected = log_sum_exp(ours), torch.logsumexp(theirs, 1)
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad)


def test_what_is_too_small_counts_as_nothing_and_nan_stays():
    found = exp_(torch.tensor([0.0, -1.0, LEAST - 1, -1e30, -math.inf, math.nan]))
    torch.testing.assert_close(found[:2], torch.tensor([1.0, math.exp(-1)]))
    assert (found[2:5] <= 2e-35).all()
    assert torch.equal(found[:5].sum(), torch.tensor([1.0, math.exp(-1)]).sum())
    assert found[5].isnan()
