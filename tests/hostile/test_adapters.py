"""An adapter beside full weights is never applied, nor left out, without being asked for."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from semcal import LanguageModel, Run, UserError
from semcal.models.skeleton import second_skeleton
from tests.conftest import save_checkpoint
from tests.experiments.conftest import run_dict

IDS = torch.tensor([[0, 4, 9, 5], [0, 7, 7, 3]])


def lora(folder: Path) -> PeftModel:
    """A LoRA adapter that changes what the model in this folder says; on the model as it is without any adapter."""
    torch.manual_seed(1)
    plain = AutoModelForCausalLM.from_pretrained(folder)
    wrapped = get_peft_model(plain, LoraConfig(r=2, lora_alpha=8, target_modules=["q_proj", "down_proj"]))
    with torch.no_grad():
        for name, parameter in wrapped.named_parameters():
            if "lora_" in name:
                parameter.normal_(std=0.3)
    return wrapped


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Full weights and an adapter in one folder."""
    path = save_checkpoint(tmp_path / "both")
    adapter = lora(path)
    adapter.save_pretrained(tmp_path / "adapter")
    for file in (tmp_path / "adapter").glob("adapter_*"):
        shutil.copy(file, path)
    return path


def load(folder: Path, adapter: str) -> LanguageModel:
    """The model, which cannot be had without a word on its adapter."""
    with pytest.raises(UserError, match="full weights and an adapter"):
        LanguageModel.load(folder, device="cpu")
    return LanguageModel.load(folder, device="cpu", adapter=adapter)


def test_nothing_is_guessed(folder):
    with pytest.raises(
        UserError, match=r"full weights and an adapter, .* adapter: ignore .* adapter: apply"
    ) as refused:
        LanguageModel.load(folder, device="cpu")
    assert "\n" not in str(refused.value)


def test_an_ignored_adapter_changes_nothing(folder):
    model = load(folder, "ignore")
    plain = folder.parent / "plain"
    shutil.copytree(folder, plain, ignore=shutil.ignore_patterns("adapter_*"))
    assert torch.equal(model.model(IDS).logits, AutoModelForCausalLM.from_pretrained(plain)(IDS).logits)
    assert model.weights_hash == LanguageModel.load(plain, device="cpu").weights_hash


def test_an_applied_adapter_is_applied_once(folder):
    plain = folder.parent / "plain"
    shutil.copytree(folder, plain, ignore=shutil.ignore_patterns("adapter_*"))
    base = AutoModelForCausalLM.from_pretrained(plain)
    unadapted = base(IDS).logits
    expected = PeftModel.from_pretrained(base, folder.parent / "adapter")(IDS).logits
    model = load(folder, "apply")
    torch.testing.assert_close(model.model(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    assert (expected - unadapted).abs().max() > 0.05
    assert model.weights_hash != LanguageModel.load(folder, device="cpu", adapter="ignore").weights_hash
    assert type(model.model) is type(base)  # plain modules, which hooks and probes can name
    torch.testing.assert_close(second_skeleton(model, attention="eager")(IDS).logits, expected, rtol=1e-4, atol=1e-4)


def test_a_merged_model_does_not_get_its_adapter_twice(tmp_path):
    path = save_checkpoint(tmp_path / "m")
    adapter = lora(path)
    expected = adapter(IDS).logits
    adapter.save_pretrained(tmp_path / "adapter")
    adapter.merge_and_unload().save_pretrained(path)  # the merged weights, and the adapter that they contain
    for file in (tmp_path / "adapter").glob("adapter_*"):
        shutil.copy(file, path)
    torch.testing.assert_close(load(path, "ignore").model(IDS).logits, expected, rtol=1e-4, atol=1e-4)


def lost_matrix(folder: Path) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    weights.pop(next(k for k in weights if "lora_B" in k))
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})


def other_target(folder: Path) -> None:
    weights = load_file(folder / "adapter_model.safetensors")
    save_file(
        {k.replace("q_proj", "o_proj"): v for k, v in weights.items()},
        folder / "adapter_model.safetensors", {"format": "pt"},
    )  # fmt: skip


def other_rank(folder: Path) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"r": 4}))


def no_adapter_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def not_mergeable(folder: Path) -> None:
    base = folder.parent / "base"
    shutil.copytree(folder, base, ignore=shutil.ignore_patterns("adapter_*"))
    settings = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)
    get_peft_model(AutoModelForCausalLM.from_pretrained(base), settings).save_pretrained(folder.parent / "prompt")
    for file in (folder.parent / "prompt").glob("adapter_*"):
        shutil.copy(file, folder)


@pytest.mark.parametrize(
    ("surgery", "message"),
    [
        (lost_matrix, r"does not fit its adapter_config.json .*1 parameters not in the file.*lora_B"),
        (other_target, "the adapter's file does not fit its adapter_config.json"),
        (other_rank, "its adapter cannot be merged"),
        (no_adapter_weights, "has adapter_config.json without adapter_model.safetensors; restore it"),
        (not_mergeable, "its adapter .PROMPT_TUNING. cannot be merged"),
    ],
)
def test_an_adapter_that_would_be_applied_in_part_is_refused(folder, surgery, message):
    surgery(folder)
    with pytest.raises(UserError, match=message) as refused:
        load(folder, "apply")
    assert "\n" not in str(refused.value)


def test_a_repository_of_the_hub_with_both_is_refused(folder, tmp_path, monkeypatch):
    """transformers would load the adapter's base model instead of the weights of the repository."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("transformers.utils.hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    repository = tmp_path / "cache/models--someone--both"
    shutil.copytree(folder, repository / "snapshots" / ("0" * 40))
    (repository / "refs").mkdir()
    (repository / "refs/main").write_text("0" * 40)
    with pytest.raises(UserError, match="someone/both holds an adapter, which is handled in a local folder only"):
        LanguageModel.load("someone/both", device="cpu")


def test_an_adapter_in_memory_is_no_plain_model(checkpoint):
    plain = LanguageModel.load(checkpoint, device="cpu")
    plain.model.add_adapter(LoraConfig(r=2, target_modules=["q_proj"]))
    adapted = LanguageModel.of(plain.model, plain.tokenizer)
    with pytest.raises(UserError, match="merge its adapters into it"):
        second_skeleton(adapted, attention="eager")


def run_one(folder: Path, tmp_path: Path, **model: str) -> Run:
    questions = tmp_path / "questions.jsonl"
    lines = [{"id": f"q{i}", "question": f"red {'one' if i % 2 else 'two'}", "answers": ["blue"]} for i in range(6)]
    questions.write_text("\n".join(map(json.dumps, lines)))
    study = {
        "name": "s",
        "output": str(tmp_path / "runs"),
        "models": [{"path": str(folder), "device": "cpu", "name": "m"} | model],
        "datasets": [{"kind": "jsonl", "path": str(questions)}],
        "styles": ["concise"],
        "sampling": {"m": 4, "max_new_tokens": 2},
        "prompting": {"shots": 0, "exemplars": 0},
        "capture": {"positions": []},
        "calibration": {"bootstrap": 10, "null_draws": 10, "detail_draws": 10},
        "probes": {"enabled": False},
    }
    return run_dict(tmp_path, study)[0]


def test_a_study_asks_and_its_manifest_records_the_answer(folder, tmp_path):
    with pytest.raises(UserError, match="full weights and an adapter"):
        run_one(folder, tmp_path)
    assert run_one(folder, tmp_path, adapter="apply").manifest()["adapter"] == "apply"
    with pytest.raises(UserError, match=r"model.adapter was 'apply', is now 'ignore'"):
        run_one(folder, tmp_path, adapter="ignore")
