"""Products by the faster library are those of torch, and a model computes by its own again afterwards."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from semcal.sampling.decoding import products
from semcal.sampling.decoding.products import fast_products, linear


@pytest.fixture(autouse=True)
def _on_any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    if not torch.backends.mkldnn.is_available():
        pytest.skip("this torch has no oneDNN")
    monkeypatch.setattr(products, "_FASTER", True)


@pytest.mark.parametrize("rows", [(), (1,), (3, 5), (0,), (700,)])
@pytest.mark.parametrize("biased", [False, True])
def test_a_product_is_that_of_float64(rows: tuple[int, ...], biased: bool) -> None:
    torch.manual_seed(0)
    x, weight = torch.randn(*rows, 512), torch.randn(1024, 512)
    bias = torch.randn(1024) if biased else None
    exact = x.double() @ weight.double().T + (0 if bias is None else bias.double())
    found = linear(x, weight, bias)
    assert found.shape == exact.shape
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-4)


def test_rows_and_weights_that_are_views() -> None:
    torch.manual_seed(0)
    hidden, weight = torch.randn(4, 6, 512), torch.randn(4096, 512)
    found = linear(hidden[:, -1], weight[1024:3072])
    torch.testing.assert_close(found, hidden[:, -1] @ weight[1024:3072].T, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_other_precisions_are_torchs(dtype: torch.dtype) -> None:
    x, weight = torch.randn(3, 512, dtype=dtype), torch.randn(512, 512, dtype=dtype)
    assert torch.equal(linear(x, weight), torch.nn.functional.linear(x, weight))


@torch.inference_mode()
def test_a_model_computes_the_same_and_by_its_own_afterwards() -> None:
    torch.manual_seed(0)
    config = LlamaConfig(
        hidden_size=512, intermediate_size=512, num_hidden_layers=2, num_attention_heads=4, vocab_size=99
    )
    model = LlamaForCausalLM(config).eval()
    weights = copy.deepcopy(model.state_dict())
    ids, forwards = torch.arange(8)[None], [m.forward for m in model.modules()]
    own = model(ids).logits
    with fast_products(model):
        assert any(m.forward != f for m, f in zip(model.modules(), forwards, strict=True))
        torch.testing.assert_close(model(ids).logits, own, rtol=1e-4, atol=1e-4)
    assert all(m.forward == f for m, f in zip(model.modules(), forwards, strict=True))
    assert torch.equal(model(ids).logits, own)
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


def test_layers_that_are_not_plainly_linear_keep_their_own_forward_pass() -> None:
    class Scaled(torch.nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(x)

    layer = Scaled(512, 512)
    with fast_products(torch.nn.Sequential(layer)):
        assert "forward" not in vars(layer)
