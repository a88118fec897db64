"""What a checkpoint's configuration files say that no weight shows.

What cannot be right is refused; what may be wrong is said.
"""

from __future__ import annotations

import json
import logging
from pathlib import Path

from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
from transformers.utils import GENERATION_CONFIG_NAME

from semcal.errors import UserError
from semcal.models.formats.gguf import is_gguf

log = logging.getLogger(__name__)


def turning_points(config: PreTrainedConfig) -> dict[str, int]:
    """Lengths in tokens beyond which a model rotates all positions otherwise than below, by the kind of rotation."""
    text = config.get_text_config()
    given = getattr(text, "rope_parameters", None) or {}
    found = {}
    for rope in (given, *(value for value in given.values() if isinstance(value, dict))):
        if (kind := rope.get("rope_type")) == "longrope":
            found[kind] = rope.get("original_max_position_embeddings") or text.original_max_position_embeddings
        elif kind == "dynamic":
            found[kind] = rope.get("original_max_position_embeddings") or text.max_position_embeddings
    return found


def check_architecture(config: PreTrainedConfig, path: str) -> None:
    """Refuse a configuration whose model type is computed by another class than it names: parameters of most classes
    have the same names, and Gemma scales embeddings where Llama does not."""
    named = (getattr(config, "architectures", None) or [""])[0]
    served = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    known = named in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()
    if served and known and named.partition("For")[0] != str(served).partition("For")[0]:
        kinds = [kind for kind, name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.items() if name == named]
        right = sorted(kinds, key=lambda kind: kind.replace("_", "") != named.partition("For")[0].lower())
        raise UserError(
            f"{path}: config.json says architectures {named} and model_type {config.model_type!r}, which is {served}; "
            f"set model_type to {right[0]!r} if the first is right, else correct architectures"
        )


def check_generation_config(path: str) -> None:
    """transformers ignores a file that it cannot read, and with it the tokens that end an answer."""
    file = Path(path) / GENERATION_CONFIG_NAME
    if not file.is_file():
        return
    try:
        json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise UserError(f"{file} is not JSON ({error}); restore it, or remove it") from error


def warn_of_other_tokens(path: str, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> None:
    """Say where configuration and tokenizer disagree about the first token, or name an end that is no token."""
    config = model.config.get_text_config()
    said = "its header" if is_gguf(path) else "config.json"
    for name in ("bos_token_id", "eos_token_id"):
        ours, theirs = getattr(config, name, None), getattr(tokenizer, name, None)
        wrong = [
            i for i in (ours if isinstance(ours, list) else [ours]) if isinstance(i, int) and i >= config.vocab_size
        ]
        if wrong:
            log.warning("%s: %s has %s %d, and the model %d tokens", path, said, name, wrong[0], config.vocab_size)
        elif name == "bos_token_id" and isinstance(ours, int) and theirs is not None and ours != theirs:
            log.warning(
                "%s: BOS is token %d in %s and %d in the tokenizer; prompts begin as the tokenizer says", path, ours,
                said, theirs,
            )  # fmt: skip
