"""The second face of a model: a TransformerLens bridge over a second skeleton that shares the parameters.

TransformerBridge replaces submodules of the model it is given and forces eager attention, while the sampler wants the
plain Hugging Face model. So the bridge is built over its own skeleton, whose parameters are the very tensors of the
loaded model: no memory is spent twice, and neither face disturbs the other.
"""

from __future__ import annotations

import copy

import torch
from transformer_lens import TransformerBridge
from transformers import AutoModelForCausalLM, PreTrainedModel

from semcal.models.load import LanguageModel


def bridge(model: LanguageModel) -> TransformerBridge:
    """A bridge that shares its parameters with `model`, for hooks on components, heads and interventions.

    Pass it token ids with the attention mask (and position ids), never text: text is padded without a mask. Never call
    `enable_compatibility_mode()` on it before probing, which would centre the residual stream.
    """
    skeleton = second_skeleton(model, attention="eager")
    return TransformerBridge.boot_transformers(
        model.path, hf_model=skeleton, tokenizer=model.tokenizer, device=model.device, dtype=model.dtype
    )


def second_skeleton(model: LanguageModel, *, attention: str) -> PreTrainedModel:
    """Modules of their own over the parameters of `model`, in eval mode and frozen: free to be wrapped and replaced.

    Args:
        attention: implementation by its Hugging Face name, e.g. "eager" or "sdpa".
    """
    config = copy.deepcopy(model.model.config)
    with torch.device("meta"):
        skeleton = AutoModelForCausalLM.from_config(config, dtype=model.dtype, attn_implementation=attention)
    skeleton.load_state_dict(model.model.state_dict(), strict=False, assign=True)
    skeleton.tie_weights()
    _adopt_buffers(skeleton, model.model)
    skeleton.eval().requires_grad_(False)
    return skeleton


def _adopt_buffers(skeleton: torch.nn.Module, source: torch.nn.Module) -> None:
    """Non-persistent buffers (rotary frequencies, causal masks) are in no state dict; take them from the source."""
    for name, buffer in source.named_buffers():
        owner, _, leaf = name.rpartition(".")
        skeleton.get_submodule(owner)._buffers[leaf] = buffer
