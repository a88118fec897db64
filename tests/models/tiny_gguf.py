"""Tiny quantised models, written as GGUF files by the `gguf` package and, dequantised, as models in memory."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedModel

WIDTH, HEADS, KV_HEADS, LAYERS = 64, 4, 2, 2
WORDS = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *"▁ a b c d e f ▁a ▁b ▁c ab".split()]
TEMPLATE = "{% for m in messages %}<s>{{ m['content'] }}</s>{% endfor %}{% if add_generation_prompt %}<s>{% endif %}"


def write_gguf(
    path: Path,
    *,
    architecture: str = "llama",
    template: str = TEMPLATE,
    seed: int = 0,
    rope_base: float = 10_000.0,
    rope: dict[str, Any] | None = None,
    without: tuple[str, ...] = (),
    more: Callable[[Any], None] = lambda _: None,
) -> LlamaForCausalLM:
    """Write the file of a Llama, matrices in Q8_0; returns the model that it holds.

    Args:
        rope_base: Stored beside the model, whose own base is 10,000.
        rope: Rotary parameters of the model; None for unscaled ones.
        without: Names of tensors that are left out.
        more: Adds fields and tensors by the writer of the `gguf` package.
    """
    config = LlamaConfig(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=96,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
        rope_parameters=rope,
    )
    torch.manual_seed(seed)
    model = LlamaForCausalLM(config).eval()
    writer = _writer(path, architecture, template)
    writer.add_block_count(LAYERS)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_rope_freq_base(rope_base)
    for name, parameter in model.named_parameters():
        if _name(name) in without:
            continue
        if parameter.ndim == 2:
            _add_matrix(writer, _name(name), parameter, lambda rows, name=name: _paired(name, rows))
        else:
            writer.add_tensor(_name(name), parameter.detach().numpy())
    more(writer)
    _finish(writer)
    return model


def write_qwen35(path: Path) -> PreTrainedModel:
    """Write the file of a Qwen 3.5 with a layer of linear and one of full attention, matrices in Q8_0; returns the model
    that it holds. llama.cpp stores what linear attention decays by as -exp(A_log), and norms with 1 added."""
    from transformers import Qwen3_5ForCausalLM, Qwen3_5TextConfig

    rope = {"rope_theta": 10_000.0, "mrope_section": [2, 1, 1], "mrope_interleaved": True, "partial_rotary_factor": 0.5}
    config = Qwen3_5TextConfig(
        vocab_size=len(WORDS),
        hidden_size=WIDTH,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        head_dim=16,
        max_position_embeddings=256,
        rms_norm_eps=1e-5,
        layer_types=["linear_attention", "full_attention"],
        linear_conv_kernel_dim=4,
        linear_key_head_dim=32,
        linear_value_head_dim=32,
        linear_num_key_heads=2,
        linear_num_value_heads=2,
        rope_parameters=rope,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    model = Qwen3_5ForCausalLM(config).eval()
    writer = _writer(path, "qwen35", TEMPLATE)
    writer.add_block_count(2)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(16)
    writer.add_uint32("qwen35.full_attention_interval", 2)
    writer.add_ssm_conv_kernel(4)
    writer.add_ssm_state_size(32)
    writer.add_ssm_group_count(2)
    writer.add_ssm_time_step_rank(2)
    writer.add_ssm_inner_size(64)
    writer.add_rope_freq_base(10_000.0)
    writer.add_rope_dimension_count(8)
    writer.add_array("qwen35.rope.dimension_sections", [2, 1, 1, 0])
    for name, parameter in model.named_parameters():
        ours, values = _qwen35_name(name), parameter.detach()
        if parameter.ndim == 2:
            _add_matrix(writer, ours, parameter)
        elif name.endswith("A_log"):
            writer.add_tensor(ours, (-values.exp()).numpy())
        elif name.endswith("norm.weight") and "linear_attn" not in name:
            writer.add_tensor(ours, (values + 1).numpy())
        else:
            writer.add_tensor(ours, values.squeeze().numpy())  # a convolution has a dimension of size 1
    _finish(writer)
    return model


def _writer(path: Path, architecture: str, template: str) -> Any:
    """A writer that has written what both models have in common, and the tokenizer."""
    import gguf

    writer = gguf.GGUFWriter(str(path), architecture)
    writer.add_name("tiny")
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_Q8_0)
    writer.add_context_length(256)
    writer.add_embedding_length(WIDTH)
    writer.add_feed_forward_length(96)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(len(WORDS))
    writer.add_tokenizer_model("llama")
    writer.add_token_list(WORDS)
    writer.add_token_scores([-float(i) for i in range(len(WORDS))])
    writer.add_token_types([2, 3, 3, *[6] * 256, *[1] * (len(WORDS) - 259)])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    if template:
        writer.add_chat_template(template)
    return writer


def _add_matrix(
    writer: Any, name: str, parameter: torch.nn.Parameter, order: Callable[[np.ndarray], np.ndarray] = lambda rows: rows
) -> None:
    """Fill a matrix at random, round it to Q8_0 and write it with its rows in another order."""
    import gguf

    kind = gguf.GGMLQuantizationType.Q8_0
    stored = gguf.quants.quantize(parameter.detach().normal_(std=0.3).numpy(), kind)
    with torch.no_grad():
        parameter.copy_(torch.from_numpy(gguf.quants.dequantize(stored, kind).copy()))
    writer.add_tensor(name, order(stored), raw_dtype=kind)


def _finish(writer: Any) -> None:
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


_NAMES = {
    "model.embed_tokens": "token_embd",
    "model.norm": "output_norm",
    "lm_head": "output",
    "model.layers": "blk",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
    "post_attention_layernorm": "ffn_norm",
    "input_layernorm": "attn_norm",
}
_QWEN35_NAMES = {
    "post_attention_layernorm": "post_attention_norm",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "linear_attn.in_proj_qkv": "attn_qkv",
    "linear_attn.in_proj_z": "attn_gate",
    "linear_attn.in_proj_a": "ssm_alpha",
    "linear_attn.in_proj_b": "ssm_beta",
    "linear_attn.conv1d": "ssm_conv1d",
    "linear_attn.norm": "ssm_norm",
    "linear_attn.out_proj": "ssm_out",
    "linear_attn.A_log": "ssm_a",
    "linear_attn.dt_bias": "ssm_dt.bias",
}


def _name(name: str) -> str:
    for ours, theirs in _NAMES.items():
        name = name.replace(ours, theirs)
    return name


def _qwen35_name(name: str) -> str:
    for ours, theirs in _QWEN35_NAMES.items():
        name = name.replace(ours, theirs)
    return _name(name)


def _paired(name: str, rows: np.ndarray) -> np.ndarray:
    """llama.cpp puts the two halves of each rotary pair next to each other."""
    heads = HEADS if "q_proj" in name else KV_HEADS if "k_proj" in name else 0
    if not heads:
        return rows
    return rows.reshape(heads, 2, rows.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(rows.shape)
