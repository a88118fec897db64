"""GGUF files: weights, tokenizer and chat template are the file's, numbers are those of its dequantised weights."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import semcal
from semcal import LanguageModel, UserError
from tests.conftest import word_tokenizer
from tests.models.tiny_gguf import LAYERS, TEMPLATE, WIDTH, write_gguf, write_qwen35

gguf = pytest.importorskip("gguf", reason="the extra gguf is not installed")


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "tiny-q8_0.gguf"
    return path, write_gguf(path)


@pytest.fixture(scope="module")
def loaded(written):
    return LanguageModel.load(written[0], device="cpu")


def test_logits_are_those_of_the_dequantised_weights(written, loaded):
    ids = torch.randint(259, 265, (2, 40), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(loaded.model(ids).logits, written[1](ids).logits, atol=1e-5, rtol=1e-5)


def test_what_was_quantised_and_how_is_known_and_nothing_in_memory_is_marked_so(loaded, tmp_path):
    assert loaded.quantised == "GGUF Q8_0 (tensors: 16 Q8_0, 5 F32)"
    assert loaded.dtype == torch.float32
    assert not loaded.model.is_quantized
    loaded.model.save_pretrained(tmp_path)  # refused for a model marked as quantised
    assert (tmp_path / "model.safetensors").is_file()


def test_tokenizer_and_chat_template_are_those_of_the_file(loaded):
    assert loaded.tokenizer.chat_template == TEMPLATE
    assert loaded.has_chat_template
    assert loaded.eos_ids == {2}
    assert loaded.tokenizer.decode(loaded.encode("ab a b"), skip_special_tokens=True).strip() == "ab a b"


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_the_dtype_is_the_one_asked_for(written, dtype):
    assert LanguageModel.load(written[0], dtype=dtype, device="cpu").dtype == getattr(torch, dtype)


def test_the_fingerprint_is_of_the_file(written, loaded, tmp_path):
    write_gguf(tmp_path / "other.gguf", seed=1)
    other = LanguageModel.load(tmp_path / "other.gguf", device="cpu")
    assert loaded.weights_hash.startswith("sha256:")
    assert other.weights_hash != loaded.weights_hash
    assert other.tokenizer_hash == loaded.tokenizer_hash
    assert LanguageModel.load(written[0], device="cpu").weights_hash == loaded.weights_hash


def test_a_look_at_prompts_loads_no_weights(written, loaded):
    look = LanguageModel.without_weights(written[0])
    assert next(look.model.parameters()).is_meta
    assert look.encode("a b c") == loaded.encode("a b c")


@pytest.mark.long
def test_a_study_runs_on_it_and_the_manifest_says_how_it_was_quantised(written, tmp_path):
    study = {
        "name": "gguf",
        "output": str(tmp_path),
        "models": [{"path": str(written[0]), "device": "cpu"}],
        "datasets": [{"kind": "atlas", "family": "facts", "n": 6}],
        "styles": ["concise"],
        "prompting": {"shots": 0},
        "sampling": {"m": 4, "max_new_tokens": 4},
        "probes": {"enabled": False},
        "calibration": {"bootstrap": 20, "null_draws": 20, "detail_draws": 20},
    }
    (run,) = semcal.run_study(study)
    assert run.manifest()["quantised"] == "GGUF Q8_0 (tensors: 16 Q8_0, 5 F32)"
    assert run.samples()["count"].sum() == 24
    (again,) = semcal.run_study(study)  # a finished run is left as it is
    assert again.manifest() == run.manifest()


def test_what_lies_beside_the_file_is_not_taken_for_its_own(written, loaded, tmp_path):
    peft = pytest.importorskip("peft", reason="the extra organisms is not installed")
    shutil.copy(written[0], tmp_path / "model.gguf")
    stranger = word_tokenizer()
    stranger.chat_template = "{{ messages }}"
    stranger.save_pretrained(tmp_path)  # tokenizer.json, tokenizer_config.json and chat_template.jinja
    config = peft.LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)
    peft.get_peft_model(LanguageModel.load(written[0], device="cpu").model, config).save_pretrained(tmp_path)
    model = LanguageModel.load(tmp_path / "model.gguf", device="cpu")
    ids = torch.tensor([[1, 259, 262, 263, 268]])
    torch.testing.assert_close(model.model(ids).logits, loaded.model(ids).logits, atol=0, rtol=0)
    assert model.tokenizer_hash == loaded.tokenizer_hash
    assert LanguageModel.without_weights(tmp_path / "model.gguf").tokenizer_hash == loaded.tokenizer_hash
    assert model.tokenizer.name_or_path == model.model.config.name_or_path == str(tmp_path / "model.gguf")


def test_a_fetched_model_by_its_name(written, loaded, tmp_path, monkeypatch):
    monkeypatch.setenv("SEMCAL_MODELS", str(tmp_path))
    with pytest.raises(UserError, match=r"real:gemma-3-270m is not here .*; fetch it with"):
        LanguageModel.load("real:gemma-3-270m")
    shutil.copy(written[0], tmp_path / "gemma-3-270m-q4_k_m.gguf")
    model = LanguageModel.load("real:gemma-3-270m", device="cpu")
    assert model.path == str(tmp_path / "gemma-3-270m-q4_k_m.gguf")
    assert model.tokenizer_hash == loaded.tokenizer_hash


def test_an_architecture_of_the_newer_reader_is_dequantised_where_it_could_stay_packed(tmp_path, monkeypatch):
    quantizer = pytest.importorskip("transformers.quantizers.quantizer_gguf", reason="transformers has one reader")
    expected = write_qwen35(tmp_path / "tiny.gguf")
    kernel = SimpleNamespace(supports=lambda _: True)  # as where the package kernels is installed
    monkeypatch.setattr(quantizer, "get_gguf_kernel", lambda: kernel)
    model = LanguageModel.load(tmp_path / "tiny.gguf", device="cpu")
    assert {parameter.dtype for parameter in model.model.parameters()} == {torch.float32}
    ids = torch.tensor([[1, 259, 262, 263, 268]])
    torch.testing.assert_close(model.model(ids).logits, expected(ids).logits, atol=1e-5, rtol=1e-5)
    assert model.quantised == "GGUF Q8_0 (tensors: 17 Q8_0, 11 F32)"


def test_transformer_lens_reads_the_same_residual_stream(loaded):
    from semcal.models.skeleton import bridge

    ids = torch.tensor([[1, 259, 262, 263, 268]])
    expected = loaded.model(ids, output_hidden_states=True).hidden_states[1]
    _, cache = bridge(loaded).run_with_cache(ids)
    torch.testing.assert_close(cache["blocks.0.hook_resid_post"], expected, atol=1e-5, rtol=1e-5)


# ---- what cannot be read -----------------------------------------------------------------------------------------


def test_an_architecture_that_transformers_cannot_read(tmp_path):
    write_gguf(tmp_path / "odd.gguf", architecture="quokka")
    for load in (LanguageModel.load, LanguageModel.without_weights):
        with pytest.raises(
            UserError, match=r"architecture 'quokka', which transformers cannot read.*safetensors$"
        ) as e:
            load(tmp_path / "odd.gguf")
        assert "\n" not in str(e.value)


HALVES = np.array([1, 1, 1, 1, 2, 2, 2, 2], dtype=np.float32)
OTHERWISE = {
    "a-bias": (
        lambda w: w.add_tensor("blk.0.attn_q.bias", np.ones(WIDTH, np.float32)),
        r"leaves out 1 of its tensors \(blk\.0\.attn_q\.bias\)",
    ),
    "more-layers": (
        lambda w: w.add_tensor(f"blk.{LAYERS}.attn_norm.weight", np.ones(WIDTH, np.float32)),
        r"leaves out 1 of its tensors \(blk\.2\.attn_norm\.weight\)",
    ),
    "frequencies": (
        lambda w: w.add_tensor("rope_freqs.weight", HALVES),
        r"leaves out 1 of its tensors \(rope_freqs\.weight\)",
    ),
    "yarn": (
        lambda w: (w.add_rope_scaling_type(gguf.RopeScalingType.YARN), w.add_rope_scaling_factor(4.0)),
        r"scales its rotary positions \(llama\.rope\.scaling: yarn, factor 4\)",
    ),
    "a-factor-alone": (
        lambda w: w.add_rope_scaling_factor(8.0),
        r"scales its rotary positions \(llama\.rope\.scaling: linear, factor 8\)",
    ),
}


@pytest.mark.parametrize("kind", OTHERWISE)
def test_a_model_that_transformers_would_compute_otherwise(tmp_path, kind):
    more, message = OTHERWISE[kind]
    write_gguf(tmp_path / "odd.gguf", more=more)
    with pytest.raises(
        UserError, match=rf"odd\.gguf.*{message}.*use the original checkpoint in safetensors$"
    ) as caught:
        LanguageModel.load(tmp_path / "odd.gguf", device="cpu")
    assert "\n" not in str(caught.value)


def same_after_all(writer) -> None:
    """What changes nothing in what the model computes from text."""
    writer.add_tensor("rope_freqs.weight", np.ones(8, np.float32))
    writer.add_tensor("v.blk.0.attn_q.weight", np.ones((WIDTH, WIDTH), np.float32))
    writer.add_rope_scaling_type(gguf.RopeScalingType.LINEAR)
    writer.add_rope_scaling_factor(1.0)


LLAMA3 = {"rope_type": "llama3", "rope_theta": 10_000.0, "factor": 32.0}
LLAMA3 |= {"low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}


def divisors(writer, *, factor=32.0, low=1.0, high=4.0, context=8192.0) -> None:
    """What llama.cpp's converter writes for a Llama 3.1 or later with heads of 16 dimensions and a base of 10,000."""
    wavelength = 2 * np.pi * 10_000.0 ** (np.arange(8) / 8)
    smooth = np.clip((context / wavelength - low) / (high - low), 0, 1)
    writer.add_tensor("rope_freqs.weight", (1 / ((1 - smooth) / factor + smooth)).astype(np.float32))


def test_the_rotary_frequencies_of_llama_3(loaded, tmp_path):
    expected = write_gguf(tmp_path / "llama3.gguf", rope=LLAMA3, more=divisors)
    model = LanguageModel.load(tmp_path / "llama3.gguf", device="cpu")
    ids = torch.randint(259, 265, (1, 200), generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(model.model(ids).logits, expected(ids).logits, atol=1e-5, rtol=1e-5)
    assert (loaded.model(ids).logits - expected(ids).logits).abs().max() > 0.01  # the same weights, not scaled
    model.model.save_pretrained(tmp_path / "saved")
    model.tokenizer.save_pretrained(tmp_path / "saved")
    again = LanguageModel.load(tmp_path / "saved", device="cpu")
    torch.testing.assert_close(again.model(ids).logits, expected(ids).logits, atol=1e-5, rtol=1e-5)


def test_rotary_frequencies_scaled_by_another_rule_than_that_of_llama_3(tmp_path):
    write_gguf(tmp_path / "odd.gguf", more=lambda writer: divisors(writer, context=4096.0))
    with pytest.raises(UserError, match=r"leaves out 1 of its tensors \(rope_freqs\.weight\)"):
        LanguageModel.load(tmp_path / "odd.gguf", device="cpu")


def test_what_changes_nothing_is_not_refused(loaded, tmp_path):
    write_gguf(tmp_path / "same.gguf", more=same_after_all)
    model = LanguageModel.load(tmp_path / "same.gguf", device="cpu")
    ids = torch.tensor([[1, 259, 262, 263, 268]])
    torch.testing.assert_close(model.model(ids).logits, loaded.model(ids).logits, atol=0, rtol=0)


def test_another_base_of_rotation_that_transformers_does_not_read(tmp_path, monkeypatch):
    from transformers.modeling_gguf_pytorch_utils import GGUF_TO_TRANSFORMERS_MAPPING

    monkeypatch.setitem(GGUF_TO_TRANSFORMERS_MAPPING["config"]["llama"], "rope.freq_base", None)  # as of starcoder2
    write_gguf(tmp_path / "same.gguf")
    assert LanguageModel.load(tmp_path / "same.gguf", device="cpu").context == 256
    write_gguf(tmp_path / "odd.gguf", rope_base=500_000.0)
    with pytest.raises(UserError, match=r"base 500000 \(llama\.rope\.freq_base\), which transformers does not read"):
        LanguageModel.load(tmp_path / "odd.gguf", device="cpu")


@pytest.mark.parametrize("number", [0, 1])
def test_a_part_of_a_split_file(tmp_path, number):
    def split(writer):
        writer.add_uint16("split.no", number)
        writer.add_uint16("split.count", 2)

    write_gguf(tmp_path / "part.gguf", more=split)
    for load in (LanguageModel.load, LanguageModel.without_weights):
        with pytest.raises(UserError, match=rf"part\.gguf is part {number + 1} of 2; join them with `llama-gguf-split"):
            load(tmp_path / "part.gguf")


def test_a_file_that_lacks_a_tensor_is_not_told_of_a_config_json(tmp_path):
    write_gguf(tmp_path / "lacking.gguf", without=("blk.1.attn_q.weight",))
    with pytest.raises(
        UserError, match=r"1 parameter not in the file .*; download the file again, or use the"
    ) as caught:
        LanguageModel.load(tmp_path / "lacking.gguf", device="cpu")
    assert "config.json" not in str(caught.value)


@pytest.mark.parametrize("share", [0.0005, 0.05, 0.5, 0.95])
def test_a_file_cut_anywhere(written, tmp_path, share):
    whole = written[0].read_bytes()
    (tmp_path / "cut.gguf").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(UserError, match=r"cut\.gguf is damaged or cut short .*download it again$") as caught:
        LanguageModel.load(tmp_path / "cut.gguf")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("body", [b"", b"<html>not found</html>", b"version https://git-lfs.github.com/spec/v1\n"])
def test_a_file_that_is_no_gguf(tmp_path, body):
    (tmp_path / "page.gguf").write_bytes(body)
    with pytest.raises(UserError, match=r"page\.gguf is not a GGUF file.*download it again"):
        LanguageModel.load(tmp_path / "page.gguf")


def test_a_file_that_is_not_there_and_keys_that_a_file_has_not(written, tmp_path):
    with pytest.raises(UserError, match=r"no file .*none\.gguf"):
        LanguageModel.load(tmp_path / "none.gguf")
    with pytest.raises(UserError, match="is a file, which has no revision 'main'"):
        LanguageModel.load(written[0], revision="main")
    with pytest.raises(UserError, match="is a file, which has no adapter 'apply'"):
        LanguageModel.load(written[0], adapter="apply")


def test_without_the_extra(written, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "gguf", None)
    with pytest.raises(UserError, match=r"pip install 'semcal\[gguf\]'"):
        LanguageModel.load(written[0])
