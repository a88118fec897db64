"""Checkpoints load from disk as they are, with one BOS and every end-of-sequence token known."""

from __future__ import annotations

import pytest
import torch

from semcal import LanguageModel, UserError
from semcal.models.checkpoint import pick_device
from semcal.models.weights import check_path, weights_fingerprint
from tests.conftest import data_folder, needs, save_checkpoint, word_tokenizer


def test_dtype_device_and_context(checkpoint):
    model = LanguageModel.load(checkpoint, dtype="bfloat16", device="cpu")
    assert model.dtype == torch.bfloat16
    assert model.device.type == "cpu"
    assert model.context == 256
    assert not any(p.requires_grad for p in model.model.parameters())
    assert not model.model.training


def test_device_map_loads_through_accelerate(checkpoint):
    spread = LanguageModel.load(checkpoint, device="balanced")
    plain = LanguageModel.load(checkpoint, device="cpu")
    ids = torch.tensor([[0, 4, 5]])
    torch.testing.assert_close(spread.model(ids.to(spread.device)).logits.cpu(), plain.model(ids).logits)


def test_one_bos_and_no_eos_in_a_prompt(tiny, tmp_path):
    assert tiny.encode("red blue") == (0, *tiny.tokenizer("red blue")["input_ids"][1:])
    with pytest.raises(UserError, match="cannot write '<s>'"):
        tiny.encode("<s> red")  # which is a word of its vocabulary
    closing = word_tokenizer()
    from tokenizers import processors

    closing.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    path = save_checkpoint(tmp_path / "closing")
    closing.save_pretrained(path)
    assert LanguageModel.load(path, device="cpu").encode("red blue") == tiny.encode("red blue")


def test_every_end_of_sequence_token_is_known(tmp_path):
    path = save_checkpoint(tmp_path / "m")
    model = LanguageModel.load(path, device="cpu")
    model.model.generation_config.eos_token_id = [1, 7]
    model.model.generation_config.save_pretrained(path)
    assert LanguageModel.load(path, device="cpu").eos_ids == {1, 7}


def test_the_fingerprint_follows_the_weights(tmp_path):
    one = weights_fingerprint(str(save_checkpoint(tmp_path / "one", seed=1)), None)
    same = weights_fingerprint(str(save_checkpoint(tmp_path / "same", seed=1)), None)
    other = weights_fingerprint(str(save_checkpoint(tmp_path / "other", seed=2)), None)
    assert one == same != other


def test_what_cannot_be_a_model(tmp_path):
    for path, message in ((str(tmp_path), "no config.json"), ("./nope", "no folder"), ("a/b/c", "no folder")):
        with pytest.raises(UserError, match=message):
            check_path(path)
    check_path("gpt2")
    check_path("owner/name")
    with pytest.raises(UserError, match="unknown dtype 'float23', did you mean 'float32'"):
        LanguageModel.load("gpt2", dtype="float23")
    with pytest.raises(UserError, match="unknown device 'gpu'"):
        pick_device("gpu")
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="this machine has 0 CUDA devices"):
            pick_device("cuda")


def test_pickled_weights_load_only_when_asked_for(tmp_path):
    path = save_checkpoint(tmp_path / "m")
    state = LanguageModel.load(path, device="cpu").model.state_dict()
    (path / "model.safetensors").unlink()
    torch.save(state, path / "pytorch_model.bin")
    with pytest.raises(UserError, match="set allow_pickle: true"):
        LanguageModel.load(path, device="cpu")
    assert LanguageModel.load(path, device="cpu", allow_pickle=True).weights_hash.startswith("sha256:")


def test_a_checkpoint_that_others_trained():
    path = needs(data_folder().parent / "checkpoints/stories260K")
    model = LanguageModel.load(path, device="cpu")
    ids = model.encode("Once upon a time, there was")
    assert ids[0] == model.tokenizer.bos_token_id
    assert ids.count(ids[0]) == 1
    assert model.decode(ids) == "Once upon a time, there was"


def test_tokenizers_are_alike_that_encode_alike(tmp_path):
    path = save_checkpoint(tmp_path / "model")
    own = LanguageModel.load(path, device="cpu")
    tokenizer = word_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(256)
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.save_pretrained(path)
    same = LanguageModel.without_weights(path)
    assert same.tokenizer_hash != own.tokenizer_hash
    assert same.encodes_like(own)
    tokenizer.add_tokens(["five"])
    tokenizer.save_pretrained(path)
    assert not LanguageModel.without_weights(path).encodes_like(own)


def test_an_adapter_to_apply_must_be_there(checkpoint):
    for what in ("apply", "ignore"):
        with pytest.raises(UserError, match=f"there is no adapter to {what}; leave adapter out"):
            LanguageModel.load(checkpoint, device="cpu", adapter=what)
    with pytest.raises(UserError, match="unknown adapter 'merge'; expected apply or ignore"):
        LanguageModel.load(checkpoint, device="cpu", adapter="merge")
