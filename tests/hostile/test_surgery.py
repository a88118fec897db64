"""Checkpoints whose files contradict one another, and models whose law changes on the way: refused in one line, or said."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers as hf

from semcal import LanguageModel, UserError, sample
from semcal.sampling.engine import Sampler
from semcal.sampling.records import Prompt, Sampling
from semcal.sampling.stopping import StopRule
from tests.conftest import save_checkpoint
from tests.hostile.test_architectures import GPT, GROUPED, random_model
from tests.hostile.test_weights import Weights, configured, rewrite

held = pytest.mark.held_before


@pytest.fixture(scope="module")
def saved(tmp_path_factory) -> Path:
    return save_checkpoint(tmp_path_factory.mktemp("surgery") / "base", "llama", scale=4.0)


@pytest.fixture
def folder(saved, tmp_path) -> Path:
    return Path(shutil.copytree(saved, tmp_path / "model"))


def with_weights(change):
    return lambda folder: rewrite(folder, change)


def zeroed(*parts: str):
    def change(weights: Weights) -> Weights:
        return {k: torch.zeros_like(v) if any(p in k for p in parts) else v for k, v in weights.items()}

    return with_weights(change)


def cast(dtype: torch.dtype, factor: float = 1.0):
    return with_weights(lambda w: {k: (v * factor).to(dtype) for k, v in w.items()})


def cut_vocabulary(folder: Path) -> None:
    """An embedding of fewer rows than the tokenizer has tokens."""
    tall = ("lm_head.weight", "model.embed_tokens.weight")
    rewrite(folder, lambda w: {k: v[:10].contiguous() if k in tall else v for k, v in w.items()})
    configured(vocab_size=10)(folder)


def generation(text: str):
    return lambda folder: (folder / "generation_config.json").write_text(text)


def lone_index(folder: Path) -> None:
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


REFUSED = {
    "Llama as Gemma": (
        configured(model_type="gemma"),
        r"LlamaForCausalLM and model_type 'gemma'.*set model_type to 'l",
    ),
    "Llama as Mistral": (configured(model_type="mistral"), r"which is MistralForCausalLM; set model_type to 'llama'"),
    "Llama as Phi": (configured(model_type="phi3"), "which is Phi3ForCausalLM"),
    "whole numbers": (cast(torch.int8, 100), r"holds whole numbers \(I8\), and config.json has no quantization_config"),
    "bytes": (cast(torch.uint8, 100), r"holds whole numbers \(U8\)"),
    "an embedding of zeros": (zeroed("embed_tokens"), "the embedding holds zeros only; restore the file"),
    "half a generation config": (
        generation('{"eos_token_id": [1, '),
        r"generation_config.json is not JSON .*; restore",
    ),
    "an empty generation config": (generation(""), "generation_config.json is not JSON"),
    "an end in words": (generation('{"eos_token_id": "</s>"}'), "eos_token_id is '</s>'; expected the id of a token"),
    "ends in words": (generation('{"eos_token_id": [1, "2"]}'), "eos_token_id is '2'; expected"),
    "fewer rows than tokens": (cut_vocabulary, r"its tokenizer writes token \d+, and the model reads 10"),
    "an index beside the file": (lone_index, "holds two sets of weights"),
    "one head for all keys": (configured(num_key_value_heads=1), "config.json belongs to other weights"),
    "fewer, larger heads": (configured(num_attention_heads=2, head_dim=8), "config.json belongs to other weights"),
    "a padding token beyond": (configured(pad_token_id=9999), "config.json does not describe a model"),
}
HELD_BEFORE = {"an index beside the file", "one head for all keys", "fewer, larger heads", "a padding token beyond"}


@pytest.mark.parametrize("case", [pytest.param(c, marks=held) if c in HELD_BEFORE else c for c in REFUSED])
def test_files_that_contradict_one_another_are_refused_in_one_line(folder, case):
    surgery, message = REFUSED[case]
    surgery(folder)
    with pytest.raises(UserError, match=message) as caught:
        sample(LanguageModel.load(folder, device="cpu"), "the red blue one", m=2, max_new_tokens=1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("surgery", "said"),
    [
        (zeroed("lm_head"), "1 parameter hold zeros only (lm_head.weight); is the file complete?"),
        (zeroed("layers.1."), "7 parameters hold zeros only"),
        (configured(bos_token_id=7), "BOS is token 7 in config.json and 0 in the tokenizer"),
        (configured(eos_token_id=999), "config.json has eos_token_id 999, and the model 64 tokens"),
        (configured(eos_token_id=[1, 999]), "config.json has eos_token_id 999, and the model 64 tokens"),
        (configured(bos_token_id=64), "config.json has bos_token_id 64, and the model 64 tokens"),
    ],
    ids=["no output layer", "no layer", "another beginning", "no end", "two ends", "no beginning"],
)
def test_what_may_be_meant_is_said(folder, caplog, surgery, said):
    surgery(folder)
    LanguageModel.load(folder, device="cpu")
    assert said in caplog.text


@pytest.mark.held_before
@pytest.mark.parametrize(
    "surgery",
    [
        lambda folder: torch.save({"x": torch.zeros(1)}, folder / "pytorch_model.bin"),
        generation('{"cache_implementation": "quantized", "cache_config": {"backend": "quanto", "nbits": 2}}'),
        generation('{"cache_implementation": "static", "use_cache": false}'),
        configured(use_cache=False),
        configured(attention_dropout=0.5),
        cast(torch.float64),
    ],
    ids=["stale pickle", "quantised cache", "static cache", "no cache", "dropout", "double precision"],
)
def test_what_says_nothing_of_the_model_changes_no_number(saved, folder, caplog, surgery):
    whole = LanguageModel.load(saved, device="cpu")
    surgery(folder)
    changed = LanguageModel.load(folder, device="cpu")
    assert not [r for r in caplog.records if r.name.startswith("semcal")]
    ours, theirs = (sample(model, "the red", m=8, max_new_tokens=4) for model in (changed, whole))
    assert [(a.text, a.count) for a in ours] == [(a.text, a.count) for a in theirs]
    assert [a.logprob for a in ours] == pytest.approx([a.logprob for a in theirs], abs=1e-4)


@pytest.mark.held_before
def test_rows_of_a_vocabulary_that_no_token_has_are_drawn_as_they_are(folder):
    """A vocabulary that was padded to a round number: the law is over all rows."""
    more = ("lm_head.weight", "model.embed_tokens.weight")
    rewrite(folder, lambda w: {k: torch.cat([v, torch.zeros(64, 32)]) if k in more else v for k, v in w.items()})
    configured(vocab_size=128)(folder)
    model = LanguageModel.load(folder, device="cpu")
    prompt = model.prompt("the red")
    found = sample(model, [prompt], m=64, max_new_tokens=1)[0]
    law = model.model(torch.tensor([prompt.ids])).logits[0, -1].double().log_softmax(-1)
    for answer in found:
        assert answer.logprob == pytest.approx(float(law[answer.ids[0]]), abs=1e-4)


# ---- a law that changes with the length ----------------------------------------------------------------------------

TURN = 19
PARTS = {"factor": 4.0, "original_max_position_embeddings": TURN, "rope_theta": 100.0}
FACTORS = {"short_factor": [1.0] * 4, "long_factor": [4.0, 3.0, 2.0, 1.5]}
LONG = {"rope_type": "longrope"} | PARTS | FACTORS
TURNING = {
    "longrope of Llama": lambda: hf.LlamaConfig(**GROUPED, rope_parameters=LONG),
    "longrope of Phi-3": lambda: hf.Phi3Config(
        **GROUPED, pad_token_id=0, original_max_position_embeddings=TURN, rope_parameters=LONG
    ),
    "dynamic": lambda: hf.LlamaConfig(
        **GROUPED | {"max_position_embeddings": TURN}, rope_parameters={"rope_type": "dynamic"} | PARTS
    ),
}


def in_memory(config, saved):
    tokenizer = hf.AutoTokenizer.from_pretrained(saved)
    return LanguageModel.of(random_model(config), tokenizer, name="turning")


def prompt_of(length: int) -> Prompt:
    return Prompt(f"q{length}", tuple(3 + (7 * i + length) % 40 for i in range(length)))


@pytest.mark.parametrize("kind", TURNING)
@pytest.mark.parametrize("lengths", [(12, 14), (10, TURN)])
def test_an_answer_that_may_cross_a_turn_of_the_rotation_is_refused(saved, kind, lengths):
    model = in_memory(TURNING[kind](), saved)
    with pytest.raises(UserError, match=r"rotates all positions anew beyond 19 tokens|has a context of 19 tokens"):
        sample(model, [prompt_of(n) for n in lengths], m=4, max_new_tokens=8)


@pytest.mark.held_before
@pytest.mark.parametrize("kind", ["longrope of Llama", "longrope of Phi-3"])
@pytest.mark.parametrize("lengths", [(8, 11), (25, 31)])
def test_answers_on_one_side_of_it_are_right(saved, kind, lengths):
    model = in_memory(TURNING[kind](), saved)
    for prompt, found in zip(
        map(prompt_of, lengths), sample(model, list(map(prompt_of, lengths)), m=6, max_new_tokens=8), strict=True
    ):
        for answer in found:
            law = 0.0
            for i, token in enumerate(answer.ids):  # token by token, as the model would state it
                logits = model.model(torch.tensor([[*prompt.ids, *answer.ids[:i]]]), use_cache=False).logits[0, -1]
                law += float(logits.double().log_softmax(-1)[token])
            assert answer.logprob == pytest.approx(law, abs=2e-4)


WINDOWS = {
    "mistral": lambda n: hf.MistralConfig(**GROUPED, sliding_window=n),
    "gemma 2": lambda n: hf.Gemma2Config(**GROUPED, head_dim=8, sliding_window=n, pad_token_id=0),
    "gpt-neo": lambda n: hf.GPTNeoConfig(
        vocab_size=64, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
        window_size=n, max_position_embeddings=256, intermediate_size=48,
    ),
    "llama 4": lambda n: hf.Llama4TextConfig(
        **GROUPED, head_dim=8, attention_chunk_size=n, num_local_experts=2, intermediate_size_mlp=48, pad_token_id=0
    ),
}  # fmt: skip


@pytest.mark.held_before
@pytest.mark.parametrize("kind", WINDOWS)
@pytest.mark.parametrize("window", [6, 16])
def test_windows_that_end_within_the_prompt_or_the_answer(kind, window):
    model = random_model(WINDOWS[kind](window))
    rule = StopRule(lambda ids: " ".join(map(str, ids)), (), {1}, 64)
    sampler = Sampler(model, Sampling(m=4, max_new_tokens=10), rule, device=torch.device("cpu"))
    prompts = {p.key: p for p in map(prompt_of, (8, 12))}
    for answered in sampler.sample(list(prompts.values())):
        ids = prompts[answered.key].ids
        for s in answered.samples:
            logits = model(torch.tensor([[*ids, *s.ids]]), use_cache=False).logits[0, len(ids) - 1 : -1]
            plain = logits.double().log_softmax(-1).gather(-1, torch.tensor(s.ids)[:, None]).sum()
            assert s.logprob == pytest.approx(float(plain), abs=2e-4)


@pytest.mark.parametrize("length", [64, 80])
def test_a_prompt_without_room_is_refused(saved, length):
    model = in_memory(hf.GPT2Config(**GPT | {"n_positions": 64}), saved)
    with pytest.raises(UserError, match=rf"has a context of 64 tokens, and the prompt 'q{length}' has {length}"):
        sample(model, [prompt_of(length)], m=2, max_new_tokens=2)
