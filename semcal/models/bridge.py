"""The second face of a model: a TransformerLens bridge over a second skeleton that shares the parameters.

TransformerBridge replaces submodules of the model it is given and forces eager attention, while the sampler wants the
plain Hugging Face model. So the bridge is built over its own skeleton, whose parameters are the very tensors of the
loaded model: no memory is spent twice, and neither face disturbs the other.
"""

from __future__ import annotations

from transformer_lens import TransformerBridge

from semcal.models.checkpoint import LanguageModel
from semcal.models.skeleton import second_skeleton


def bridge(model: LanguageModel) -> TransformerBridge:
    """A bridge that shares its parameters with `model`, for hooks on components, heads and interventions.

    Pass it token ids with the attention mask (and position ids), never text: text is padded without a mask. Never call
    `enable_compatibility_mode()` on it before probing, which would centre the residual stream.
    """
    skeleton = second_skeleton(model, attention="eager")
    return TransformerBridge.boot_transformers(
        model.path, hf_model=skeleton, tokenizer=model.tokenizer, device=model.device, dtype=model.dtype
    )
