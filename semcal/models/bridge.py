"""A TransformerLens bridge to a loaded model, over a second skeleton that shares its parameters.

TransformerBridge replaces submodules and forces eager attention, while the sampler needs the plain Hugging Face model.
The bridge therefore has a skeleton of its own, whose parameters are the tensors of the loaded model: they take no
further memory, and neither model disturbs the other.
"""

from __future__ import annotations

from transformer_lens import TransformerBridge

from semcal.models.checkpoint import LanguageModel
from semcal.models.skeleton import second_skeleton


def bridge(model: LanguageModel) -> TransformerBridge:
    """A bridge that shares its parameters with `model`, for hooks on components and heads, and for interventions.

    Pass token ids with the attention mask and position ids, never text, which it pads without a mask. Do not call
    `enable_compatibility_mode()` before probing: it centres the residual stream.
    """
    skeleton = second_skeleton(model, attention="eager")
    return TransformerBridge.boot_transformers(
        model.path, hf_model=skeleton, tokenizer=model.tokenizer, device=model.device, dtype=model.dtype
    )
