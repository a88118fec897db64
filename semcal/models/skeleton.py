"""A second set of modules over the parameters of a loaded model, for code that replaces or wraps modules.

The sampler needs the plain Hugging Face model, while LoRA wraps its layers and TransformerBridge replaces them and
forces eager attention. Each therefore has its own modules, whose parameters are the tensors of the loaded model: they
take no further memory, and neither model disturbs the other.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from semcal.errors import UserError
from semcal.models.checkpoint import LanguageModel

if TYPE_CHECKING:  # seconds to import
    from transformer_lens import TransformerBridge


def second_skeleton(model: LanguageModel, *, attention: str) -> PreTrainedModel:
    """New modules over the parameters of `model`, frozen and in eval mode, which may be wrapped and replaced.

    Args:
        attention: The implementation of attention by its Hugging Face name, e.g. "eager" or "sdpa".

    Raises:
        UserError: a model in memory whose parameters are not those of its configuration, such as one with an adapter;
            a model that stays quantised in memory.
    """
    if getattr(model.model, "is_quantized", False):
        raise UserError(
            f"{model.path} stays quantised in memory ({model.quantised}), and LoRA probes, components and "
            "interventions need plain weights; use the model before quantisation for them, or device cpu, where most "
            "methods are dequantised"
        )
    config = copy.deepcopy(model.model.config)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, dtype=model.dtype, attn_implementation=attention)
    skeleton.load_state_dict(model.model.state_dict(), strict=False, assign=True)
    skeleton.tie_weights()
    for name, buffer in model.model.named_buffers():  # rotary frequencies and masks are in no state dict
        owner, _, leaf = name.rpartition(".")
        skeleton.get_submodule(owner)._buffers[leaf] = buffer
    ours = model.model.state_dict()
    for name, tensor in skeleton.state_dict().items():
        if name not in ours or tensor.data_ptr() != ours[name].data_ptr():
            raise UserError(
                f"{model.path}: {name} is not what its configuration says; merge its adapters into it "
                "(merge_and_unload), and set tie_word_embeddings in its configuration as the model has it"
            )
    skeleton.eval().requires_grad_(False)
    return skeleton


def bridge(model: LanguageModel) -> TransformerBridge:
    """A bridge that shares its parameters with `model`, for hooks on components and heads, and for interventions.

    Pass token ids with the attention mask and position ids, never text, which it pads without a mask. Do not call
    `enable_compatibility_mode()` before probing: it centres the residual stream.
    """
    from transformer_lens import TransformerBridge

    skeleton = second_skeleton(model, attention="eager")
    return TransformerBridge.boot_transformers(
        model.path, hf_model=skeleton, tokenizer=model.tokenizer, device=model.device, dtype=model.dtype
    )
