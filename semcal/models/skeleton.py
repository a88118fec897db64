"""A second set of modules over the parameters of a loaded model, for code that replaces or wraps modules."""

from __future__ import annotations

import copy

import torch
from transformers import AutoModelForCausalLM, PreTrainedModel

from semcal.models.checkpoint import LanguageModel


def second_skeleton(model: LanguageModel, *, attention: str) -> PreTrainedModel:
    """New modules over the parameters of `model`, frozen and in eval mode, which may be wrapped and replaced.

    Args:
        attention: The implementation of attention by its Hugging Face name, e.g. "eager" or "sdpa".
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
    """Take over the buffers; those that are not persistent (rotary frequencies, masks) are in no state dict."""
    for name, buffer in source.named_buffers():
        owner, _, leaf = name.rpartition(".")
        skeleton.get_submodule(owner)._buffers[leaf] = buffer
