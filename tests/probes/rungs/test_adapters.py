from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import nn
from transformers import MixtralConfig, MixtralForCausalLM

from probes.rungs.lora import LoRAProbe, adapted, projections
from semcal import LanguageModel
from semcal.errors import UserError
from tests.conftest import CONFIGS, save_checkpoint


def prompts(n: int, seed: int = 0) -> list[tuple[int, ...]]:
    rng = np.random.default_rng(seed)
    return [tuple(rng.integers(3, 9, rng.integers(3, 7)).tolist()) for _ in range(n)]


def targets(asked: list[tuple[int, ...]]) -> np.ndarray:
    return softmax(2 * np.random.default_rng(0).normal(size=(6, 3)), axis=1)[[prompt[-1] - 3 for prompt in asked]]


def fingerprint(model: nn.Module) -> list[tuple[str, type, torch.Tensor | None]]:
    """Every module with its type, every parameter and buffer with its bits, and whether it is to be trained."""
    modules = [(name, type(module), None) for name, module in model.named_modules()]
    tensors = [*model.named_parameters(), *model.named_buffers()]
    return modules + [(f"{name} {t.requires_grad} {t.dtype}", nn.Module, t.detach().clone()) for name, t in tensors]


@pytest.mark.parametrize("architecture", CONFIGS)
def test_the_model_is_left_as_it_was(architecture: str, tmp_path: Path) -> None:
    model = LanguageModel.load(save_checkpoint(tmp_path / architecture, architecture), device="cpu")
    before, asked = fingerprint(model.model), prompts(24)
    ids = torch.tensor([[3, 4, 5]])
    logits = model.model(ids).logits
    probe = LoRAProbe(model, rank=2, epochs=2, lr=1e-2).fit(asked, targets(asked))
    probe.predict(asked)
    after = fingerprint(model.model)
    assert [(name, kind) for name, kind, _ in after] == [(name, kind) for name, kind, _ in before]
    assert all(a is None or torch.equal(a, b) for (_, _, a), (_, _, b) in zip(after, before, strict=True))
    assert torch.equal(model.model(ids).logits, logits)
    assert not hasattr(model.model, "peft_config")


@pytest.mark.parametrize("architecture", CONFIGS)
def test_every_projection_of_every_layer_is_adapted_and_at_first_to_no_effect(
    architecture: str, tmp_path: Path
) -> None:
    model = LanguageModel.load(save_checkpoint(tmp_path / architecture, architecture), device="cpu")
    twin = adapted(model, 2, seed=0)
    ids = torch.tensor([[3, 4, 5]])
    torch.testing.assert_close(twin(ids).logits, model.model(ids).logits)
    names, _ = projections(model.model)
    trained = [name for name, p in twin.named_parameters() if p.requires_grad]
    assert len(trained) == 2 * len(names)
    assert all("lora" in name for name in trained)
    per_layer = {"llama": 7, "qwen2": 7, "mistral": 7, "gemma": 7, "gpt-neox": 4, "gpt2": 4}
    assert len(names) == 3 * per_layer[architecture]


def test_adapters_share_the_parameters_of_the_model(tiny: LanguageModel) -> None:
    twin = adapted(tiny, 2, seed=0)
    held = {p.data_ptr() for p in tiny.model.parameters()}
    frozen = [p for p in twin.parameters() if not p.requires_grad]
    assert {p.data_ptr() for p in frozen} == held


def test_adapters_learn_what_a_head_alone_does_not(tiny: LanguageModel) -> None:
    """The first of the last three tokens decides: a matter of attention."""
    asked = prompts(300)
    Y = softmax(2 * np.random.default_rng(0).normal(size=(6, 3)), axis=1)[[prompt[-3] - 3 for prompt in asked]]
    frozen = LoRAProbe(tiny, rank=1, epochs=6, lr=1e-9).fit(asked[:200], Y[:200])
    probe = LoRAProbe(tiny, rank=8, epochs=6, lr=2e-2).fit(asked[:200], Y[:200])
    assert abs(frozen.score(asked[200:], Y[200:])) < 0.05
    assert probe.score(asked[:200], Y[:200]) > 0.3


def test_a_mixture_of_experts_is_refused_in_one_line() -> None:
    config = MixtralConfig(
        vocab_size=64, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=2,
    )  # fmt: skip
    with pytest.raises(UserError, match=r"keeps weights in model\.layers\.0\.mlp.*use the rungs below") as error:
        projections(MixtralForCausalLM(config))
    assert "\n" not in str(error.value)


def test_prompts_that_are_no_token_ids_are_refused(tiny: LanguageModel) -> None:
    for bad in [(), (3, 64), (-1,), "red"]:
        with pytest.raises(ValueError, match="prompt 1 is not a sequence of token ids below 64"):
            LoRAProbe(tiny).fit([(3,), bad], np.eye(2))  # pyright: ignore[reportArgumentType]
