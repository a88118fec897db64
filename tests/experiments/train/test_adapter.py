"""A low-rank adapter and the plain model that it is merged into."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from experiments.train.adapter import Adapted
from semcal import LanguageModel
from tests.conftest import save_checkpoint

IDS = torch.tensor([[0, 3, 5, 7, 9, 4]])


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(input_ids=IDS).logits


def moved(adapted: Adapted) -> None:
    torch.manual_seed(1)
    for parameter in adapted.trained.parameters():
        if parameter.requires_grad:
            parameter.data.normal_(std=0.1)


@pytest.mark.parametrize("architecture", ["llama", "gemma3", "gpt2", "gpt-neox", "phi3"])
def test_the_merged_model_says_what_the_adapted_one_says(architecture, tmp_path):
    start = LanguageModel.load(save_checkpoint(tmp_path / "start", architecture), device="cpu")
    before = logits(start.model)
    adapted = Adapted.of(start, rank=2, seed=0)
    assert torch.equal(logits(adapted.trained), before)  # a new adapter changes nothing
    moved(adapted)
    assert torch.equal(logits(start.model), before)  # until it is merged
    wanted = logits(adapted.trained)
    assert (wanted - before).abs().max() > 0.1
    for _ in range(2):  # merging twice is merging once
        adapted.merge()
        assert torch.allclose(logits(start.model), wanted, atol=1e-4)
    assert torch.equal(logits(adapted.trained), wanted)
    adapted.write_merged(tmp_path / "merged")
    start.tokenizer.save_pretrained(tmp_path / "merged")
    loaded = LanguageModel.load(tmp_path / "merged", device="cpu")
    assert torch.equal(logits(loaded.model), logits(start.model))
    assert not any("lora" in name for name in load_file(tmp_path / "merged" / "model.safetensors"))


def test_only_the_adapter_learns_and_embeddings_are_held_once(tmp_path):
    start = LanguageModel.load(save_checkpoint(tmp_path / "start", "llama"), device="cpu")
    adapted = Adapted.of(start, rank=2, seed=0)
    learning = [name for name, p in adapted.trained.named_parameters() if p.requires_grad]
    assert learning
    assert all("lora_" in name for name in learning)
    assert not any("lm_head" in name or "embed" in name for name in learning)
    copy = adapted.trained.get_base_model()
    assert copy.get_input_embeddings().weight is start.model.get_input_embeddings().weight
    assert adapted.bytes_of_adapter < adapted.bytes_merged / 2


def test_an_adapter_on_disk_names_its_model_and_fits_it(tmp_path):
    from peft import PeftModel

    folder = save_checkpoint(tmp_path / "start", "llama")
    adapted = Adapted.of(LanguageModel.load(folder, device="cpu"), rank=2, seed=0)
    moved(adapted)
    adapted.write_adapter(tmp_path / "adapter")
    assert sorted(p.name for p in (tmp_path / "adapter").iterdir()) == [
        "adapter_config.json",
        "adapter_model.safetensors",
    ]
    again = PeftModel.from_pretrained(LanguageModel.load(folder, device="cpu").model, str(tmp_path / "adapter"))
    assert torch.equal(logits(again), logits(adapted.trained))
    assert again.peft_config["default"].base_model_name_or_path == str(folder.resolve())
