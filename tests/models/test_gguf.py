"""GGUF files: weights, tokenizer and chat template are the file's, numbers are those of its dequantised weights."""

from __future__ import annotations

import pytest
import torch

import semcal
from semcal import LanguageModel, UserError
from tests.models.tiny_gguf import TEMPLATE, write_gguf

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
