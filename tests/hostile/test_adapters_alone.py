"""An adapter alone: merged into the base model that it names so that the numbers are peft's, or refused in one line."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import (
    IA3Config,
    LoHaConfig,
    LoraConfig,
    PeftModel,
    PrefixTuningConfig,
    PromptTuningConfig,
    get_peft_model,
)
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from experiments.config.study import ModelConfig, load_study
from experiments.pipeline.dry_run import dry_run
from experiments.sample.models import load_model
from semcal import LanguageModel, UserError
from semcal.models.skeleton import second_skeleton
from semcal.questions.held_out import TRAINED, write_trained
from semcal.questions.load_dataset import load_dataset
from tests.conftest import CONFIGS, ROPE, save_checkpoint, word_tokenizer
from tests.experiments.conftest import run_dict, write_study
from tests.models.tiny_gguf import write_gguf

IDS = torch.tensor([[0, 4, 9, 5], [0, 7, 7, 3]])
QV = {"r": 2, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj"]}


def tuned(base: Path, config: Any, *, tokens: int | None = None) -> PeftModel:
    """The base with an adapter, what is trained of which is moved at random."""
    model = AutoModelForCausalLM.from_pretrained(base)
    if tokens is not None:
        model.resize_token_embeddings(tokens)
    torch.manual_seed(1)
    wrapped = get_peft_model(model, config).eval()
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.2 * torch.randn(parameter.shape))
    return wrapped


def write(folder: Path, base: Path, config: Any = None, **how: Any) -> PeftModel:
    """An adapter alone in a folder; returns base and adapter unmerged."""
    wrapped = tuned(base, config or LoraConfig(**QV), **how)
    wrapped.save_pretrained(folder)
    configure(folder, base_model_name_or_path=str(base))
    return wrapped


def configure(folder: Path, **values: object) -> None:
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def load(folder: Path, **how: Any) -> LanguageModel:
    return LanguageModel.load(folder, device="cpu", **how)


@pytest.fixture(scope="module")
def bases(tmp_path_factory) -> Path:
    """Base models: llama with an output layer of its own, gemma with one that is the embedding."""
    root = tmp_path_factory.mktemp("bases")
    for name in ("llama", "gemma", "gpt2"):
        save_checkpoint(root / name, name)
    return root


@pytest.fixture
def base(bases, tmp_path) -> Path:
    return Path(shutil.copytree(bases / "llama", tmp_path / "base"))


# ---- what computes the right numbers ---------------------------------------------------------------------------------

KINDS: dict[str, tuple[str, Any, int | None]] = {
    "lora": ("llama", LoraConfig(**QV), None),
    "dora": ("llama", LoraConfig(**QV, use_dora=True), None),
    "ranks": (
        "llama",
        LoraConfig(**QV, use_rslora=True, rank_pattern={"q_proj": 5}, alpha_pattern={"q_proj": 3}),
        None,
    ),
    "some-layers": ("llama", LoraConfig(**QV, layers_to_transform=[1]), None),
    "all-linear": ("llama", LoraConfig(r=2, target_modules="all-linear"), None),
    "lora-bias": ("gpt2", LoraConfig(r=2, target_modules=["c_attn"], lora_bias=True), None),
    "bias-too": ("gpt2", LoraConfig(r=2, target_modules=["c_attn"], bias="all"), None),
    "pissa": ("llama", LoraConfig(**QV, init_lora_weights="pissa"), None),
    "ia3": ("llama", IA3Config(target_modules=["q_proj"], feedforward_modules=[]), None),
    "loha": ("llama", LoHaConfig(r=2, target_modules=["q_proj"]), None),
    "head-saved": ("llama", LoraConfig(**QV, modules_to_save=["lm_head"]), None),
    "head-saved-tied": ("gemma", LoraConfig(**QV, modules_to_save=["lm_head"]), None),
    "embedding-saved-tied": ("gemma", LoraConfig(**QV, modules_to_save=["embed_tokens"]), None),
    "head-tied": ("gemma", LoraConfig(r=2, target_modules=["lm_head"]), None),
    "embedding-tied": ("gemma", LoraConfig(r=2, target_modules=["embed_tokens"]), None),
    "embedding-tied-as-one": (
        "gemma",
        LoraConfig(r=2, target_modules=["embed_tokens"], ensure_weight_tying=True),
        None,
    ),
    "trained-tokens": ("llama", LoraConfig(**QV, trainable_token_indices=[4, 9]), None),
    "trained-tokens-tied": ("gemma", LoraConfig(**QV, trainable_token_indices=[4, 9]), None),
    "more-tokens": ("llama", LoraConfig(**QV, modules_to_save=["embed_tokens", "lm_head"]), 70),
    "more-tokens-tied": ("gemma", LoraConfig(**QV), 70),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_merged_adapter_computes_what_peft_computes(bases, tmp_path, kind):
    architecture, config, tokens = KINDS[kind]
    wrapped = write(tmp_path / "adapter", bases / architecture, config, tokens=tokens)
    unadapted = AutoModelForCausalLM.from_pretrained(bases / architecture)
    model = load(tmp_path / "adapter")
    expected = wrapped(IDS).logits
    torch.testing.assert_close(model.model(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    assert (expected[..., :64] - unadapted(IDS).logits).abs().max() > 0.05
    assert type(model.model) is type(unadapted)  # plain modules, which hooks and probes can name
    torch.testing.assert_close(second_skeleton(model, attention="eager")(IDS).logits, expected, rtol=1e-4, atol=1e-4)
    assert load(tmp_path / "adapter").weights_hash == model.weights_hash


def test_a_gguf_base(tmp_path):
    pytest.importorskip("gguf", reason="the extra gguf is not installed")
    write_gguf(tmp_path / "base.gguf").save_pretrained(tmp_path / "plain")
    wrapped = write(tmp_path / "adapter", tmp_path / "plain")
    configure(tmp_path / "adapter", base_model_name_or_path="../base.gguf")
    model = load(tmp_path / "adapter")
    torch.testing.assert_close(model.model(IDS).logits, wrapped(IDS).logits, rtol=1e-4, atol=1e-4)
    assert model.quantised == "GGUF Q8_0 (tensors: 16 Q8_0, 5 F32)"
    assert model.eos_ids == {2}  # of the tokenizer in the file


def test_a_gguf_base_in_the_folder_of_the_adapter(tmp_path):
    pytest.importorskip("gguf", reason="the extra gguf is not installed")
    write_gguf(tmp_path / "base.gguf").save_pretrained(tmp_path / "plain")
    wrapped = write(tmp_path / "adapter", tmp_path / "plain")
    shutil.move(tmp_path / "base.gguf", tmp_path / "adapter")
    configure(tmp_path / "adapter", base_model_name_or_path="base.gguf")
    model = load(tmp_path / "adapter")
    torch.testing.assert_close(model.model(IDS).logits, wrapped(IDS).logits, rtol=1e-4, atol=1e-4)
    assert model.base.startswith(str(tmp_path / "adapter" / "base.gguf"))


def test_an_adapter_on_an_adapter(base, tmp_path):
    write(tmp_path / "first", base).merge_and_unload().save_pretrained(tmp_path / "merged")
    word_tokenizer().save_pretrained(tmp_path / "merged")
    expected = write(tmp_path / "second", tmp_path / "merged")(IDS).logits
    configure(tmp_path / "second", base_model_name_or_path="../first")
    torch.testing.assert_close(load(tmp_path / "second").model(IDS).logits, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_dtype_is_the_one_asked_for(base, tmp_path, dtype):
    write(tmp_path / "adapter", base)
    assert load(tmp_path / "adapter", dtype=dtype).dtype == getattr(torch, dtype)


@pytest.mark.parametrize("stored", ["float32", "bfloat16"])
def test_an_adapter_is_added_in_single_precision_and_rounded_once(base, tmp_path, stored):
    if stored == "bfloat16":
        AutoModelForCausalLM.from_pretrained(base, dtype=torch.bfloat16).save_pretrained(base)
    write(tmp_path / "adapter", base, LoraConfig(r=2, target_modules="all-linear"))
    weights = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32).state_dict()
    added = load_file(tmp_path / "adapter" / "adapter_model.safetensors")
    merged = load(tmp_path / "adapter", dtype="bfloat16").model.state_dict()
    scale = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["lora_alpha"] / 2
    changed = 0
    for name, weight in weights.items():
        a, b = (added.get(f"base_model.model.{name.removesuffix('.weight')}.lora_{x}.weight") for x in "AB")
        if a is not None and b is not None:
            weight = weight + scale * (b @ a)
            changed += 1
        assert torch.equal(merged[name], weight.to(torch.bfloat16)), name
    assert changed > 10


@pytest.mark.parametrize("name", ["{base}", "../base", "base"])
def test_the_base_is_found_from_here_and_from_the_adapter(base, tmp_path, monkeypatch, name):
    write(tmp_path / "adapter", base)
    configure(tmp_path / "adapter", base_model_name_or_path=name.format(base=base))
    monkeypatch.chdir(tmp_path if name == "base" else "/")
    model = load(tmp_path / "adapter")
    assert model.base.endswith(f"({LanguageModel.load(base, device='cpu').weights_hash})")
    assert model.weights_hash != LanguageModel.load(base, device="cpu").weights_hash


def test_the_fingerprint_covers_base_and_adapter_wherever_they_are(base, tmp_path):
    write(tmp_path / "adapter", base)
    first = load(tmp_path / "adapter").weights_hash
    shutil.move(base, tmp_path / "elsewhere")
    configure(tmp_path / "adapter", base_model_name_or_path=str(tmp_path / "elsewhere"))
    assert load(tmp_path / "adapter").weights_hash == first
    rescale(tmp_path / "elsewhere" / "model.safetensors", "layers.0.mlp.up_proj")
    second = load(tmp_path / "adapter").weights_hash
    rescale(tmp_path / "adapter" / "adapter_model.safetensors", "layers.0")
    third = load(tmp_path / "adapter").weights_hash
    configure(tmp_path / "adapter", lora_alpha=9)
    assert len({first, second, third, load(tmp_path / "adapter").weights_hash}) == 4


def rescale(file: Path, part: str, factor: float = 1.01) -> None:
    save_file({k: v * factor if part in k else v for k, v in load_file(file).items()}, file, {"format": "pt"})


def test_tokenizer_and_template_of_the_adapter_come_before_those_of_the_base(base, tmp_path):
    write(tmp_path / "adapter", base)
    assert not load(tmp_path / "adapter").has_chat_template
    (tmp_path / "adapter" / "chat_template.jinja").write_text("template alone")
    assert load(tmp_path / "adapter").tokenizer.chat_template == "template alone"
    (tmp_path / "adapter" / "chat_template.jinja").unlink()
    own = word_tokenizer()
    own.add_tokens(["violet"])
    own.chat_template, own.eos_token = "with the tokenizer", "."
    own.save_pretrained(tmp_path / "adapter")
    for model in (load(tmp_path / "adapter"), LanguageModel.without_weights(tmp_path / "adapter")):
        assert model.tokenizer.chat_template == "with the tokenizer"
        assert model.encode("violet") == (0, len(word_tokenizer()))
        assert word_tokenizer().convert_tokens_to_ids(".") in model.eos_ids


def test_what_a_trainer_leaves_beside_an_adapter_is_no_full_weights(base, tmp_path):
    wrapped = write(tmp_path / "adapter", base)
    for name in ("training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth", "optimizer.bin"):
        (tmp_path / "adapter" / name).write_bytes(b"pickled")
    torch.testing.assert_close(load(tmp_path / "adapter").model(IDS).logits, wrapped(IDS).logits, rtol=1e-4, atol=1e-4)


def test_saying_apply_changes_nothing(base, tmp_path):
    write(tmp_path / "adapter", base)
    assert load(tmp_path / "adapter", adapter="apply").weights_hash == load(tmp_path / "adapter").weights_hash


# ---- what is refused -------------------------------------------------------------------------------------------------

Surgery = Callable[[Path, Path], None]  # on the folders of the adapter and of its base


def keyed(old: str, new: str) -> Surgery:
    def change(adapter: Path, _: Path) -> None:
        file = adapter / "adapter_model.safetensors"
        save_file({k.replace(old, new): v for k, v in load_file(file).items()}, file, {"format": "pt"})

    return change


def named(name: object, **more: object) -> Surgery:
    return lambda adapter, _: configure(adapter, base_model_name_or_path=name, **more)


def of_kind(config: Any, **more: object) -> Surgery:
    def change(adapter: Path, base: Path) -> None:
        shutil.rmtree(adapter)
        write(adapter, base, config)
        configure(adapter, **more)

    return change


def lost(part: str, **config: object) -> Surgery:
    def change(adapter: Path, base: Path) -> None:
        of_kind(LoraConfig(**QV, **config))(adapter, base)  # pyright: ignore[reportArgumentType]
        file = adapter / "adapter_model.safetensors"
        save_file({k: v for k, v in load_file(file).items() if part not in k}, file, {"format": "pt"})

    return change


def nan(adapter: Path, _: Path) -> None:
    rescale(adapter / "adapter_model.safetensors", "layers.1", float("nan"))


def overflowing(adapter: Path, _: Path) -> None:
    rescale(adapter / "adapter_model.safetensors", "layers.1", 1e30)


def other_model(architecture: str) -> Surgery:
    def change(_: Path, base: Path) -> None:
        shutil.rmtree(base)
        save_checkpoint(base, architecture)

    return change


def other_sizes(_: Path, base: Path) -> None:
    model = AutoModelForCausalLM.from_config(CONFIGS["llama"]().__class__(**ROPE | {"intermediate_size": 40}))
    model.save_pretrained(base)


def fewer_layers(_: Path, base: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base)
    model.config.num_hidden_layers = 2
    del model.model.layers[2]
    model.save_pretrained(base)


def no_weights(adapter: Path, _: Path) -> None:
    (adapter / "adapter_model.safetensors").unlink()


def half_weights(adapter: Path, _: Path) -> None:
    file = adapter / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def pickled(adapter: Path, _: Path) -> None:
    torch.save(load_file(adapter / "adapter_model.safetensors"), adapter / "adapter_model.bin")
    (adapter / "adapter_model.safetensors").unlink()


def broken_config(adapter: Path, _: Path) -> None:
    (adapter / "adapter_config.json").write_text('{"peft_type": "LO')


def list_as_config(adapter: Path, _: Path) -> None:
    (adapter / "adapter_config.json").write_text("[]")


def half_a_base(_: Path, base: Path) -> None:
    file = base / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def base_without_a_layer(_: Path, base: Path) -> None:
    file = base / "model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "layers.1." not in k}, file, {"format": "pt"})


def base_with_an_adapter(adapter: Path, base: Path) -> None:
    for file in adapter.glob("adapter_*"):
        shutil.copy(file, base)


def two_bases(adapter: Path, base: Path) -> None:
    shutil.copytree(base, adapter / "base")
    configure(adapter, base_model_name_or_path="base")


def in_a_circle(adapter: Path, _: Path) -> None:
    shutil.copytree(adapter, adapter.parent / "other")
    configure(adapter, base_model_name_or_path="../other")
    configure(adapter.parent / "other", base_model_name_or_path="../adapter")


def other_tokenizer(adapter: Path, _: Path) -> None:
    tokenizer = word_tokenizer()
    tokenizer.save_pretrained(adapter)
    text = (adapter / "tokenizer.json").read_text()
    swapped = text.replace('"red"', '"%"').replace('"blue"', '"red"').replace('"%"', '"blue"')
    (adapter / "tokenizer.json").write_text(swapped)


def lost_head(adapter: Path, base: Path) -> None:
    shutil.rmtree(adapter)
    write(adapter, base, tokens=70)
    file = adapter / "adapter_model.safetensors"
    save_file({k: v for k, v in load_file(file).items() if "lm_head" not in k}, file, {"format": "pt"})


ALORA = LoraConfig(**QV, task_type="CAUSAL_LM", alora_invocation_tokens=[4])
REFUSED: dict[str, tuple[Surgery, str]] = {
    "base-absent": (
        named("/nowhere/llama"),
        r"its base model /nowhere/llama is not here; restore it, or set base_model",
    ),
    "base-absent-relative": (named("../llama"), r"its base model \.\./llama is not here"),
    "base-absent-gguf": (named("llama.gguf"), r"its base model llama\.gguf is not here"),
    "base-absent-hub": (
        named("someone/llama"),
        r"cannot load someone/llama: .*adapter_config.json names this base model",
    ),
    "base-unnamed": (named(None), "names no base model; set base_model_name_or_path"),
    "base-empty": (named(""), "names no base model"),
    "base-a-number": (named(7), "names no base model"),
    "base-a-file": (named("../base/config.json"), "is not a model folder"),
    "base-half": (half_a_base, r"the base model|base.*model\.safetensors is damaged or cut short"),
    "base-without-a-layer": (base_without_a_layer, r"not in the file \(model\.layers\.1\."),
    "base-with-an-adapter": (
        base_with_an_adapter,
        "holds full weights and an adapter; move its adapter_config.json away",
    ),
    "two-bases": (two_bases, "is a folder here and another one beside the adapter"),
    "circle": (in_a_circle, "its adapters name each other as base"),
    "other-architecture": (other_model("gpt2"), "cannot be merged into its base model .*Target modules"),
    "other-sizes": (other_sizes, r"cannot be merged into its base model \(.*size mismatch"),
    "fewer-layers": (fewer_layers, r"4 parameters of the file not in the model \(.*layers\.2"),
    "other-names": (keyed("q_proj", "k_proj"), r"6 parameters not in the file \(.*q_proj"),
    "other-prefix": (keyed("base_model.model.", "module.base_model.model."), "12 parameters not in the file"),
    "other-rank": (lambda a, _: configure(a, r=4), "cannot be merged into its base model .*size mismatch"),
    "fewer-targets": (
        lambda a, _: configure(a, target_modules=["q_proj"]),
        "6 parameters of the file not in the model",
    ),
    "lost-half": (lost("lora_B"), "6 parameters not in the file"),
    "lost-module": (lost("lm_head", modules_to_save=["lm_head"]), r"1 parameters not in the file.*lm_head"),
    "lost-tokens": (lost("trainable_tokens", trainable_token_indices=[4]), "1 parameters not in the file"),
    "lost-magnitude": (lost("magnitude", use_dora=True), "6 parameters not in the file"),
    "lost-new-head": (lost_head, "has 70 tokens, the base model 64, and the adapter does not bring lm_head"),
    "nan": (nan, r"layers\.1\..* of its adapter holds NaN or infinity; restore it"),
    "overflow": (overflowing, "holds NaN or infinity|cannot be merged|computes something else"),
    "no-weights": (no_weights, "has adapter_config.json without adapter_model.safetensors; restore it"),
    "half-weights": (half_weights, "cannot be merged into its base model"),
    "pickled": (pickled, "only as a pickle"),
    "broken-config": (broken_config, "adapter_config.json cannot be read .*; restore it"),
    "list-as-config": (list_as_config, "adapter_config.json is no JSON object"),
    "unknown-kind": (named("../base", peft_type="LOLA"), "cannot be merged into its base model"),
    "prompt-tuning": (
        of_kind(PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)),
        "PROMPT_TUNING.*adds to",
    ),
    "prefix-tuning": (
        of_kind(PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=2)),
        "PREFIX_TUNING.*adds to",
    ),
    "activated": (of_kind(ALORA), "activated LoRA.* acts after certain tokens only"),
    "replicated": (
        of_kind(LoraConfig(**QV, layer_replication=[(0, 2), (1, 3)])),
        "cannot be merged|computes something",
    ),
    "unrepeatable": (lambda a, _: configure(a, init_lora_weights="pissa_niter_4"), "began from pissa_niter_4"),
    "other-tokenizer": (other_tokenizer, r"its tokenizer is not that of the base model .*2 tokens have another id"),
}


HELD_BEFORE = {"base-a-file"}


@pytest.mark.parametrize(
    "case", [pytest.param(case, marks=pytest.mark.held_before) if case in HELD_BEFORE else case for case in REFUSED]
)
def test_what_cannot_be_put_together_is_refused_in_one_line(base, tmp_path, monkeypatch, case):
    surgery, message = REFUSED[case]
    write(tmp_path / "adapter", base)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    surgery(tmp_path / "adapter", base)
    with pytest.raises(UserError, match=message) as refused:
        load(tmp_path / "adapter")
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("how", "message"),
    [
        ({"adapter": "ignore"}, "holds an adapter alone; to leave it out, set path to its base model"),
        ({"revision": "main"}, "is a local folder, which has no revision 'main'"),
    ],
)
def test_keys_that_an_adapter_alone_cannot_follow(base, tmp_path, how, message):
    write(tmp_path / "adapter", base)
    with pytest.raises(UserError, match=message):
        load(tmp_path / "adapter", **how)


def test_a_pickled_adapter_that_was_asked_for(base, tmp_path):
    expected = write(tmp_path / "adapter", base)(IDS).logits
    pickled(tmp_path / "adapter", base)
    torch.testing.assert_close(load(tmp_path / "adapter", allow_pickle=True).model(IDS).logits, expected)


def test_without_peft(base, tmp_path, monkeypatch):
    write(tmp_path / "adapter", base)
    monkeypatch.setattr("semcal.models.formats.adapters.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"merging its adapter needs peft; pip install 'semcal\[organisms\]'"):
        load(tmp_path / "adapter")


# ---- in a study ------------------------------------------------------------------------------------------------------


def study(adapter: Path, **dataset: str) -> dict[str, Any]:
    root = adapter.parent
    lines = [{"id": f"q{i}", "question": f"red {'one' if i % 2 else 'two'}", "answers": ["blue"]} for i in range(6)]
    (root / "questions.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return {
        "name": "s",
        "output": str(root / "runs"),
        "models": [{"path": str(adapter), "device": "cpu", "name": "m"}],
        "datasets": [{"kind": "jsonl", "path": str(root / "questions.jsonl")} | dataset],
        "styles": ["concise"],
        "sampling": {"m": 4, "max_new_tokens": 2},
        "prompting": {"shots": 0, "exemplars": 0},
        "capture": {"positions": []},
        "calibration": {"bootstrap": 10, "null_draws": 10, "detail_draws": 10},
        "probes": {"enabled": False},
    }


def test_a_manifest_records_base_and_adapter_and_another_base_is_other_weights(base, tmp_path):
    write(tmp_path / "adapter", base)
    (run,) = run_dict(tmp_path, study(tmp_path / "adapter"))
    model, plain = load(tmp_path / "adapter"), LanguageModel.load(base, device="cpu")
    manifest = run.manifest()
    assert (manifest["weights_hash"], manifest["base"]) == (model.weights_hash, f"{base} ({plain.weights_hash})")
    run_dict(tmp_path, study(tmp_path / "adapter"))  # finished
    rescale(base / "model.safetensors", "layers.0.mlp.up_proj")
    shutil.rmtree(run.folder / "samples")
    with pytest.raises(UserError, match="weights"):
        run_dict(tmp_path, study(tmp_path / "adapter"))


def test_a_dry_run_reads_it_and_knows_what_it_would_not_find(base, tmp_path):
    write(tmp_path / "adapter", base)
    (planned,) = dry_run(load_study(write_study(tmp_path, study(tmp_path / "adapter"))))
    assert planned.memory is not None
    assert planned.memory["weights"] == 4 * LanguageModel.load(base, device="cpu").model.num_parameters()
    configure(tmp_path / "adapter", base_model_name_or_path="/nowhere/llama")
    with pytest.raises(UserError, match="its base model /nowhere/llama is not here"):
        dry_run(load_study(write_study(tmp_path, study(tmp_path / "adapter"))))


def test_a_base_on_the_hub_that_is_not_there_is_said_before_anything_is_made(base, tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    write(tmp_path / "adapter", base)
    configure(tmp_path / "adapter", base_model_name_or_path="someone/llama")
    with pytest.raises(UserError, match=r"the base model of .*adapter: cannot load someone/llama"):
        run_dict(tmp_path, study(tmp_path / "adapter"))
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("place", ["adapter", "step-9", "base"])
def test_it_is_not_asked_what_it_was_trained_on(base, tmp_path, place):
    folder = tmp_path / "trained" / "step-9" if place == "step-9" else tmp_path / "adapter"
    write(folder, base)
    where = {"adapter": folder, "step-9": folder.parent, "base": base}[place]
    (where / TRAINED).write_text(json.dumps({"id": "q1", "question": "red one", "answers": ["blue"]}))
    with pytest.raises(UserError, match=rf"m was trained on 3 of the 6 questions .* exclude: {where}"):
        run_dict(tmp_path, study(folder))


def test_a_dataset_that_excludes_nothing_is_to_be_another_one(base, tmp_path):
    write(tmp_path / "adapter", base)
    write_trained(load_dataset("atlas-facts", n=20, exemplars=4).questions[:3], tmp_path / "adapter")
    atlas = [{"kind": "atlas", "family": "facts", "n": 20}]
    with pytest.raises(
        UserError, match=r"of the 20 questions of atlas-facts; ask it a dataset without those in .*adap"
    ):
        run_dict(tmp_path, study(tmp_path / "adapter") | {"datasets": atlas, "prompting": {"shots": 2, "exemplars": 4}})


def test_a_base_that_was_trained_again_is_not_the_one_of_the_adapter(base, tmp_path):
    write(tmp_path / "adapter", base)
    made = {"stage": "sft", "from_weights": LanguageModel.load(base, device="cpu").weights_hash}
    (tmp_path / "adapter" / "training.json").write_text(json.dumps(made))
    model = {"path": str(tmp_path / "adapter"), "device": "cpu"}
    load_model(ModelConfig(**model))
    rescale(base / "model.safetensors", "layers.0.mlp.up_proj")
    with pytest.raises(UserError, match=r"is an adapter to weights sha256:\w+, and .*base now has sha256:\w+; restore"):
        load_model(ModelConfig(**model))
