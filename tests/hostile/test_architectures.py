"""Whatever computes a causal language model is sampled as its plain passes say, and whatever does not is refused."""

from __future__ import annotations

import pytest
import torch
import transformers as hf

from semcal import LanguageModel, UserError, sample
from semcal.sampling.engine import Sampler
from semcal.sampling.records import Prompt, Sampling
from semcal.sampling.stopping import StopRule
from tests.conftest import word_tokenizer

SHOTS = (0, 5, 9, 14, 7, 8, 21, 3, 12)
PROMPTS = [Prompt(f"q{i}", (*SHOTS, *tail)) for i, tail in enumerate([(4,), (6, 7, 8, 11, 5), (9, 3)])]
BASE = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 2}
SMALL = BASE | {"num_attention_heads": 4, "intermediate_size": 48, "max_position_embeddings": 256}
GROUPED = SMALL | {"num_key_value_heads": 2}
GPT = {"vocab_size": 64, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 256}
HEADS = {"mamba_n_heads": 8, "mamba_d_head": 8, "mamba_d_state": 8, "mamba_n_groups": 1, "mamba_chunk_size": 8}
LINEAR = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
FOUR = GROUPED | {"num_hidden_layers": 4}
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2}
CAUSAL = {
    "mamba": lambda: hf.MambaConfig(**BASE, state_size=4),
    "mamba2": lambda: hf.Mamba2Config(**BASE, state_size=8, num_heads=8, head_dim=8, n_groups=1, chunk_size=8),
    "falcon-mamba": lambda: hf.FalconMambaConfig(**BASE, state_size=4),
    "rwkv": lambda: hf.RwkvConfig(**BASE, context_length=256, attention_hidden_size=32, intermediate_size=48),
    "recurrent-gemma": lambda: hf.RecurrentGemmaConfig(
        **BASE | {"num_hidden_layers": 3}, num_attention_heads=4, intermediate_size=96, lru_width=32, attention_window_size=6
    ),
    "xlstm": lambda: hf.xLSTMConfig(**BASE, num_heads=4, chunk_size=8),
    "minimax": lambda: hf.MiniMaxConfig(
        **GROUPED, head_dim=8, layer_types=["linear_attention", "full_attention"], block_size=8, num_local_experts=2
    ),
    "openai-gpt": lambda: hf.OpenAIGPTConfig(**GPT),
    "jamba": lambda: hf.JambaConfig(
        **GROUPED, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2, expert_layer_offset=1,
        num_experts=2, mamba_d_state=4, mamba_dt_rank=4, pad_token_id=0,
    ),
    "zamba": lambda: hf.ZambaConfig(
        **FOUR, layers_block_type=["mamba", "mamba", "hybrid", "hybrid"], mamba_d_state=4, mamba_dt_rank=4,
        n_mamba_heads=2, attention_head_dim=16, attention_hidden_size=64,
    ),
    "zamba2": lambda: hf.Zamba2Config(
        **FOUR, layers_block_type=["mamba", "hybrid", "mamba", "hybrid"], mamba_d_state=8, mamba_ngroups=1,
        n_mamba_heads=8, mamba_headdim=8, chunk_size=8, num_mem_blocks=1, hybrid_layer_ids=[1, 3], use_mem_rope=True,
    ),
    "bamba": lambda: hf.BambaConfig(**GROUPED, **HEADS, attn_layer_indices=[1]),
    "falcon-h1": lambda: hf.FalconH1Config(**GROUPED, **HEADS, mamba_d_ssm=64, head_dim=8),
    "granite-hybrid": lambda: hf.GraniteMoeHybridConfig(
        **GROUPED, **HEADS, layer_types=["mamba", "attention"], num_local_experts=2, num_experts_per_tok=1,
        shared_intermediate_size=32,
    ),
    "qwen3-next": lambda: hf.Qwen3NextConfig(
        **FOUR, **LINEAR, **EXPERTS, head_dim=8, moe_intermediate_size=16, shared_expert_intermediate_size=16
    ),
    "lfm2": lambda: hf.Lfm2Config(**GROUPED, layer_types=["conv", "full_attention"]),
    "olmo-hybrid": lambda: hf.OlmoHybridConfig(**FOUR, **LINEAR, pad_token_id=0),
    "bert-decoder": lambda: hf.BertConfig(**SMALL, is_decoder=True),
    "bloom": lambda: hf.BloomConfig(vocab_size=64, hidden_size=32, n_layer=2, n_head=4),
    "mpt": lambda: hf.MptConfig(vocab_size=64, d_model=32, n_layers=2, n_heads=4, max_seq_len=256),
    "falcon-alibi": lambda: hf.FalconConfig(**BASE, num_attention_heads=4, alibi=True),
    "gpt-neo": lambda: hf.GPTNeoConfig(
        vocab_size=64, hidden_size=32, num_layers=2, num_heads=4, attention_types=[[["global", "local"], 1]],
        window_size=6, max_position_embeddings=256, intermediate_size=48,
    ),
    "mixtral": lambda: hf.MixtralConfig(**GROUPED, num_local_experts=2),
    "gpt-oss": lambda: hf.GptOssConfig(
        **GROUPED, head_dim=8, num_local_experts=2, num_experts_per_tok=1, sliding_window=6,
        layer_types=["sliding_attention", "full_attention"],
    ),
    "deepseek-v3": lambda: hf.DeepseekV3Config(
        **SMALL, num_key_value_heads=4, moe_intermediate_size=16, n_routed_experts=4, n_group=1, topk_group=1,
        num_experts_per_tok=2, first_k_dense_replace=1, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4,
        qk_nope_head_dim=4, v_head_dim=8, n_shared_experts=1,
    ),
    "llama4": lambda: hf.Llama4TextConfig(
        **GROUPED, head_dim=8, intermediate_size_mlp=48, num_local_experts=2, attention_chunk_size=8, no_rope_layers=[1, 0]
    ),
}  # fmt: skip
WRONG_BEFORE = {"mamba", "mamba2", "falcon-mamba", "rwkv", "recurrent-gemma", "xlstm", "minimax", "openai-gpt"}
NOT_CAUSAL = {
    "bert": lambda: hf.BertConfig(**SMALL),
    "roberta": lambda: hf.RobertaConfig(**SMALL),
    "xlnet": lambda: hf.XLNetConfig(vocab_size=64, d_model=32, n_layer=2, n_head=4, d_inner=48),
    "xlm": lambda: hf.XLMConfig(vocab_size=64, emb_dim=32, n_layers=2, n_heads=4),
}
ONE_LANGUAGE = {"emb_dim": 32, "n_layers": 2, "n_heads": 4, "causal": True, "asm": False, "n_langs": 1}
TAKES_A_TOKEN_FOR_PADDING = {
    "xlm": lambda: hf.XLMConfig(vocab_size=64, **ONE_LANGUAGE, max_position_embeddings=256),
    "xlm-roberta": lambda: hf.XLMRobertaConfig(**SMALL, is_decoder=True),
    "roberta": lambda: hf.RobertaConfig(**SMALL, is_decoder=True),
    "camembert": lambda: hf.CamembertConfig(**SMALL, is_decoder=True),
}
FEW = {"vocab_size": 64, "d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "encoder_attention_heads": 4}
FEW |= {"decoder_attention_heads": 4, "encoder_ffn_dim": 48, "decoder_ffn_dim": 48, "max_position_embeddings": 256}
TWO_STACKS = {
    "t5": lambda: hf.T5Config(vocab_size=64, d_model=32, d_kv=8, num_layers=1, num_heads=4, d_ff=48),
    "bart": lambda: hf.BartConfig(**FEW),
    "pegasus": lambda: hf.PegasusConfig(**FEW),
    "marian": lambda: hf.MarianConfig(**FEW, pad_token_id=0, decoder_start_token_id=0),
}


def random_model(config: hf.PretrainedConfig) -> hf.PreTrainedModel:
    torch.manual_seed(0)
    config.bos_token_id, config.eos_token_id = 0, 1
    model = hf.AutoModelForCausalLM.from_config(config).eval().requires_grad_(False)
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and "conv" not in name and "A_log" not in name:
            parameter.normal_(std=0.15)
    return model


def cases(names, before):
    return [pytest.param(n, marks=pytest.mark.held_before) if n in before else n for n in names]


@pytest.mark.parametrize("name", cases(CAUSAL, CAUSAL.keys() - WRONG_BEFORE))
def test_log_probabilities_of_samples_are_those_of_plain_passes(name):
    model = random_model(CAUSAL[name]())
    rule = StopRule(lambda ids: " ".join(map(str, ids)), (), {1}, 64)
    sampler = Sampler(model, Sampling(m=12, max_new_tokens=5), rule, device=torch.device("cpu"))
    found = {a.key: a.samples for a in sampler.sample(PROMPTS)}
    for prompt in PROMPTS:
        assert sum(s.count for s in found[prompt.key]) == 12
        for s in found[prompt.key]:
            logits = model(torch.tensor([[*prompt.ids, *s.ids]]), use_cache=False).logits[0, len(prompt.ids) - 1 : -1]
            plain = logits.double().log_softmax(-1).gather(-1, torch.tensor(s.ids)[:, None]).sum()
            assert s.logprob == pytest.approx(float(plain), abs=2e-4)


@pytest.mark.parametrize("name", NOT_CAUSAL)
def test_a_model_that_looks_ahead_is_refused_with_the_figure(name):
    model = LanguageModel.of(random_model(NOT_CAUSAL[name]()), word_tokenizer())
    with pytest.raises(
        UserError, match=r"is not a causal language model: .* by [\d.e-]+ nats .*choose a decoder-only"
    ) as e:
        sample(model, PROMPTS, m=4, max_new_tokens=3)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", TAKES_A_TOKEN_FOR_PADDING)
def test_a_model_that_takes_a_drawn_token_for_padding_is_refused_with_the_figure(name):
    """XLM then leaves out the end of the sequence, RoBERTa counts positions otherwise: 0.5 to 8 nats."""
    model = LanguageModel.of(random_model(TAKES_A_TOKEN_FOR_PADDING[name]()), word_tokenizer())
    with pytest.raises(UserError, match=r"takes token \d for padding wherever it stands, .* by [\d.]+ nats .*$") as e:
        sample(model, PROMPTS, m=4, max_new_tokens=3)
    assert "\n" not in str(e.value)


@pytest.mark.parametrize("name", TWO_STACKS)
def test_an_encoder_decoder_is_refused_before_it_is_loaded(tmp_path, name):
    config = TWO_STACKS[name]()
    hf.AutoModelForSeq2SeqLM.from_config(config).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(
        UserError, match=rf"is an encoder-decoder \({config.model_type}\).*choose a causal language model$"
    ):
        LanguageModel.load(tmp_path, device="cpu")


def test_an_encoder_decoder_in_memory_is_refused():
    model = hf.AutoModelForSeq2SeqLM.from_config(TWO_STACKS["t5"]())
    with pytest.raises(UserError, match=r"is an encoder-decoder \(t5\)"):
        LanguageModel.of(model, word_tokenizer())


def test_an_architecture_without_a_language_model_is_refused_in_a_whole_sentence(tmp_path):
    config = hf.ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=4, intermediate_size=48)
    hf.AutoModel.from_config(config).save_pretrained(tmp_path)
    word_tokenizer().save_pretrained(tmp_path)
    with pytest.raises(UserError, match=r"no causal language model for a ViTConfig; choose a decoder-only model$"):
        LanguageModel.load(tmp_path, device="cpu")


def test_a_model_that_no_path_computes_twice_is_refused_with_the_figure(tiny, monkeypatch):
    forward, calls = tiny.model.forward, []

    def noisy(*args, **kwargs):
        calls.append(1)
        out = forward(*args, **kwargs)
        out.logits = out.logits + 0.1 * torch.randn(
            out.logits.shape, generator=torch.Generator().manual_seed(len(calls))
        )
        return out

    noisy.__signature__ = __import__("inspect").signature(forward)
    monkeypatch.setattr(tiny.model, "forward", noisy)
    with pytest.raises(
        UserError, match=r"moves the log-prob|no way of decoding agrees .* within 0\.00035 nats .*differ by"
    ):
        sample(tiny, PROMPTS, m=4, max_new_tokens=3)


@pytest.mark.parametrize("wrong", cases(["read", "extend", "move"], {"read", "extend"}))
def test_a_decoder_that_goes_wrong_at_any_step_is_not_chosen(tiny, monkeypatch, wrong):
    from semcal.sampling.decoding import decoders

    real = getattr(decoders.TreeDecoder, wrong)

    def broken(self, *args, **kwargs):
        if wrong == "move":  # rows that part keep the past of another
            return real(self, *args[:2], (args[2] + 1) % 2)
        return real(self, *args, **kwargs).roll(1, -1)

    monkeypatch.setattr(decoders.TreeDecoder, wrong, broken)
    rule = tiny.stop_rule(())
    sampler = Sampler(tiny.model, Sampling(m=4, max_new_tokens=2), rule, device=tiny.device)
    list(sampler.sample(PROMPTS))
    assert sampler.work.path == "expanded"
    assert "differ by" in sampler.work.why


@pytest.mark.parametrize("name", cases(["rwkv", "recurrent-gemma", "mamba"], {"mamba"}))
def test_activations_of_prompts_of_different_length_are_those_of_each_alone(name):
    from probes import capture
    from probes.activations.chains import Chain, read_chains

    model = LanguageModel.of(random_model(CAUSAL[name]()), word_tokenizer())
    layer = [f"blocks.{model.model.config.num_hidden_layers - 1}.hook_resid_post"]
    together = capture(model, PROMPTS, hooks=layer).values
    alone = [capture(model, [p], hooks=layer).values[0] for p in PROMPTS]
    torch.testing.assert_close(torch.from_numpy(together), torch.stack([torch.from_numpy(a) for a in alone]))
    chains = [Chain(p, p.ids[2 : 4 + i], "one two three") for i, p in enumerate(PROMPTS)]
    read = read_chains(model, chains, ["after_1_tokens"], style="concise", hooks=layer)["after_1_tokens"].values
    for chain, found in zip(chains, read, strict=True):
        (alone,) = read_chains(model, [chain], ["after_1_tokens"], style="concise", hooks=layer)[
            "after_1_tokens"
        ].values
        torch.testing.assert_close(torch.from_numpy(found), torch.from_numpy(alone))


def test_an_intervention_that_would_be_forgotten_is_refused():
    from probes.interventions.edits import intervene

    model = LanguageModel.of(random_model(CAUSAL["rwkv"]()), word_tokenizer())
    with pytest.raises(UserError, match="sampled without a cache, which keeps no intervention"):
        list(intervene(model, PROMPTS, Sampling(m=4, max_new_tokens=3), {"none": ()}))
