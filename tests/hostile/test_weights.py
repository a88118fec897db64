"""Checkpoints whose files are not what config.json promises: read to the last parameter, or refused in one line."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import BertConfig, BertForSequenceClassification, BertModel

from semcal import LanguageModel, UserError
from semcal.models.skeleton import second_skeleton
from semcal.models.text_models import Embedder, EntailmentModel
from tests.conftest import save_checkpoint, word_tokenizer

Weights = dict[str, torch.Tensor]
IDS = torch.tensor([[0, 4, 9, 5]])
held = pytest.mark.held_before


def rewrite(folder: Path, change: Callable[[Weights], Weights]) -> None:
    save_file(change(load_file(folder / "model.safetensors")), folder / "model.safetensors", {"format": "pt"})


def configure(folder: Path, **values: object) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def without(part: str) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, lambda w: {k: v for k, v in w.items() if part not in k})


def renamed(old: str, new: str) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, lambda w: {re.sub(old, new, k): v for k, v in w.items()})


def scaled(part: str, factor: float) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, lambda w: {k: v * factor if part in k else v for k, v in w.items()})


def added(*names: str) -> Callable[[Path], None]:
    return lambda folder: rewrite(folder, lambda w: w | {name: torch.ones(1, 32) for name in names})


def configured(**values: object) -> Callable[[Path], None]:
    return lambda folder: configure(folder, **values)


def index_without_a_layer(folder: Path) -> None:
    """An index that still names every parameter, over a shard that lost some."""
    weights = load_file(folder / "model.safetensors")
    without("layers.1.")(folder)
    (folder / "model.safetensors").rename(folder / "model-00001-of-00001.safetensors")
    index = {"metadata": {}, "weight_map": dict.fromkeys(weights, "model-00001-of-00001.safetensors")}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def two_sets(folder: Path) -> None:
    """What is left where a checkpoint was saved in one file first and in shards later."""
    whole = (folder / "model.safetensors").read_bytes()
    index_without_a_layer(folder)
    (folder / "model.safetensors").write_bytes(whole)


def lost_shard(folder: Path) -> None:
    index_without_a_layer(folder)
    (folder / "model-00001-of-00001.safetensors").rename(folder / "other.safetensors")


def cut_short(folder: Path) -> None:
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])


REFUSED = [
    ("lm_head untied and absent", without("lm_head"), r"lm_head.weight.*set tie_word_embeddings: true"),
    ("a layer lost", without("layers.1."), r"9 parameters not in the file.*layer 1 is incomplete"),
    ("one matrix lost", without("layers.1.mlp.up_proj"), r"1 parameter not in the file .model.layers.1.mlp.up_proj"),
    ("the embedding lost", without("embed_tokens"), r"model.embed_tokens.weight.*would be random"),
    ("more layers in the config", configured(num_hidden_layers=5), r"config.json has 5 layers, the file 3"),
    ("fewer layers in the config", configured(num_hidden_layers=2), r"config.json has 2 layers, the file 3"),
    ("compiled", renamed("^", "_orig_mod."), r"from a compiled model: remove '_orig_mod.'"),
    ("compiled inside", renamed(r"^model\.", "model._orig_mod."), r"from a compiled model: remove '_orig_mod.'"),
    ("data-parallel", renamed("^", "module."), r"from a data-parallel model: remove 'module.'"),
    ("compiled, then data-parallel", renamed("^", "module._orig_mod."), r"from a compiled model"),
    ("a wrapper's prefix", renamed("^", "policy."), r"names in the file begin with 'policy.'"),
    ("a part under other names", renamed("mlp", "ffn"), r"9 parameters not in the file.*9 parameters of the file"),
    ("a head of its own", added("v_head.summary.weight"), r"1 parameter of the file not in the model .v_head"),
    ("a bias the config leaves out", added("lm_head.bias"), r"1 parameter of the file not in the model .lm_head.bias"),
    ("another width", configured(intermediate_size=96), r"\[32, 48\] in the file, \[32, 96\] by config.json"),
    ("another vocabulary", configured(vocab_size=80), r"lm_head.weight is \[64, 32\] in the file"),
    ("two output layers", configured(tie_word_embeddings=True), r"config.json ties lm_head.weight"),
    ("an index over a shard that lost some", index_without_a_layer, r"layer 1 is incomplete"),
    ("one file and shards", two_sets, r"holds two sets of weights"),
    ("NaN", scaled("layers.1.mlp.up_proj", float("nan")), r"model.layers.1.mlp.up_proj.weight holds NaN or infinity"),
    ("infinity", scaled("model.norm", float("inf")), r"model.norm.weight holds NaN or infinity"),
]


@pytest.mark.parametrize(("surgery", "message"), [c[1:] for c in REFUSED], ids=[c[0] for c in REFUSED])
def test_weights_that_are_not_what_the_config_says_are_refused(tmp_path, surgery, message):
    folder = save_checkpoint(tmp_path / "m")
    surgery(folder)
    with pytest.raises(UserError, match=message) as refused:
        LanguageModel.load(folder, device="cpu")
    assert "\n" not in str(refused.value)


def test_values_too_large_for_the_dtype_are_refused(tmp_path):
    folder = save_checkpoint(tmp_path / "m")
    scaled("layers.1.mlp.up_proj", 1e7)(folder)
    with pytest.raises(UserError, match=r"NaN or infinity in float16; .* set dtype: bfloat16 or float32"):
        LanguageModel.load(folder, device="cpu", dtype="float16")
    LanguageModel.load(folder, device="cpu", dtype="bfloat16")


@held
@pytest.mark.parametrize("surgery", [lost_shard, cut_short])
def test_files_that_are_lost_or_cut_short_are_refused(tmp_path, surgery):
    folder = save_checkpoint(tmp_path / "m")
    surgery(folder)
    with pytest.raises(UserError, match=r"cannot load .*(model-00001-of-00001|[Ee]rror while deserializing)"):
        LanguageModel.load(folder, device="cpu")


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"num_attention_heads": 0}, "config.json does not describe a model"),
        ({"hidden_act": "nope"}, "config.json does not describe a model .*nope"),
        pytest.param({"model_type": "nope"}, "nope", marks=held),
    ],
    ids=str,
)
def test_a_config_that_describes_no_model_is_refused(tmp_path, values, message):
    folder = save_checkpoint(tmp_path / "m")
    configure(folder, **values)
    with pytest.raises(UserError, match=message):
        LanguageModel.load(folder, device="cpu")


HARMLESS = [
    pytest.param("llama", added("model.layers.0.self_attn.rotary_emb.inv_freq"), id="rotary frequencies", marks=held),
    pytest.param("llama", added("pooler.dense.weight"), id="a pooler", marks=held),
    pytest.param(
        "gpt-neox", added("gpt_neox.layers.0.attention.bias", "gpt_neox.layers.1.attention.masked_bias"),
        id="causal masks of GPT-NeoX", marks=held,
    ),
    pytest.param("gpt2", added("transformer.h.0.attn.masked_bias"), id="causal masks of GPT-2", marks=held),
    pytest.param("gpt2", renamed(r"^transformer\.", ""), id="the base model's names", marks=held),
]  # fmt: skip


@pytest.mark.parametrize(("architecture", "surgery"), HARMLESS)
def test_what_the_model_computes_itself_may_be_in_the_file(tmp_path, architecture, surgery):
    folder = save_checkpoint(tmp_path / "m", architecture)
    before = LanguageModel.load(folder, device="cpu").model(IDS).logits
    surgery(folder)
    assert torch.equal(LanguageModel.load(folder, device="cpu").model(IDS).logits, before)


@held
def test_a_tied_output_layer_need_not_be_in_the_file(tmp_path):
    folder = save_checkpoint(tmp_path / "m")
    embedding = load_file(folder / "model.safetensors")["model.embed_tokens.weight"]
    without("lm_head")(folder)
    configure(folder, tie_word_embeddings=True)
    model = LanguageModel.load(folder, device="cpu").model
    assert torch.equal(model.get_output_embeddings().weight, embedding)


def llama4(folder: Path) -> Path:
    """A checkpoint of text and vision, of which AutoModelForCausalLM takes the text model."""
    from transformers import Llama4Config, Llama4ForConditionalGeneration

    text = {"vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "intermediate_size_mlp": 48, "head_dim": 8}
    text |= {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "num_local_experts": 2}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 8, "patch_size": 4, "vision_output_dim": 16, "projector_input_dim": 16}
    vision |= {"projector_output_dim": 16}
    torch.manual_seed(0)
    config = Llama4Config(text_config=text | {"pad_token_id": 0}, vision_config=vision)
    Llama4ForConditionalGeneration(config).save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@held
def test_the_vision_tower_of_a_text_model_is_left_out(tmp_path):
    folder = llama4(tmp_path / "m")
    assert any("vision_model" in key for key in load_file(folder / "model.safetensors"))
    assert LanguageModel.load(folder, device="cpu").model.config.model_type == "llama4_text"


def test_the_text_model_beside_a_vision_tower_must_be_complete(tmp_path):
    folder = llama4(tmp_path / "m")
    without("language_model.model.layers.1.")(folder)
    with pytest.raises(UserError, match=r"config.json has 2 layers, the file 1"):
        LanguageModel.load(folder, device="cpu")


def test_an_entailment_model_without_its_classifier_is_refused(tmp_path):
    small = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    labels = {0: "entailment", 1: "neutral", 2: "contradiction"}
    BertForSequenceClassification(BertConfig(vocab_size=64, id2label=labels, **small)).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    EntailmentModel.load(str(tmp_path), device="cpu")
    without("classifier")(tmp_path)
    with pytest.raises(UserError, match=r"2 parameters not in the file .classifier.bias, classifier.weight"):
        EntailmentModel.load(str(tmp_path), device="cpu")


def test_an_embedding_model_without_a_layer_is_refused(tmp_path):
    small = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
    BertModel(BertConfig(vocab_size=64, pad_token_id=2, **small)).save_pretrained(tmp_path)
    tokenizer = word_tokenizer()
    tokenizer.pad_token = "<unk>"
    tokenizer.save_pretrained(tmp_path)
    without("pooler")(tmp_path)  # which the mean over tokens does not need
    assert Embedder(str(tmp_path), device="cpu").embed(["red", "blue one"]).shape == (2, 16)
    without("layer.1.attention")(tmp_path)
    with pytest.raises(UserError, match=r"10 parameters not in the file .encoder.layer.1.attention"):
        Embedder(str(tmp_path), device="cpu")


# ---- models in memory ------------------------------------------------------------------------------------------------


def test_a_model_in_memory_that_is_not_finite_is_refused(checkpoint):
    loaded = LanguageModel.load(checkpoint, device="cpu")
    with torch.no_grad():
        loaded.model.get_output_embeddings().weight[3, 5] = torch.nan
    with pytest.raises(UserError, match=r"mine: lm_head.weight holds NaN"):
        LanguageModel.of(loaded.model, loaded.tokenizer, name="mine")


def test_a_second_skeleton_has_the_parameters_of_the_first_or_is_refused(checkpoint):
    loaded = LanguageModel.load(checkpoint, device="cpu")
    same = second_skeleton(loaded, attention="eager")
    torch.testing.assert_close(same(IDS).logits, loaded.model(IDS).logits)
    loaded.model.config.tie_word_embeddings = True  # which its two matrices are not
    with pytest.raises(UserError, match=r"lm_head.weight is not what its configuration says"):
        second_skeleton(loaded, attention="eager")
