"""Another set of modules over the parameters of a loaded model, for what replaces or wraps modules.

Knows no one who does so: TransformerLens's bridge and adapters take it from here.
"""

from __future__ import annotations

import copy

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from semcal.models.checkpoint import LanguageModel


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
