"""The settings of a quantised checkpoint, as its config.json has them, and in words."""

from __future__ import annotations

from typing import Any

from transformers import PretrainedConfig

# Keys of quantization_config that say how, and the words for them.
_DETAILS = {
    "bits": "{} bits",
    "w_bit": "{} bits",
    "nbits": "{} bits",
    "bnb_4bit_quant_type": "{}",
    "weights": "{}",
    "fmt": "{}",
    "format": "{}",
    "quant_type": "{}",
    "group_size": "groups of {}",
    "weight_block_size": "blocks of {}",
}


def settings_of(config: PretrainedConfig) -> dict[str, Any]:
    """Its quantization_config, empty if there is none."""
    found = getattr(config, "quantization_config", None) or getattr(
        config.get_text_config(decoder=True), "quantization_config", None
    )
    return dict(found) if isinstance(found, dict) else dict(found.to_dict()) if found else {}


def method_of(settings: dict[str, Any]) -> str:
    """The method, "" if it is not said. bitsandbytes once said how instead of what."""
    if settings.get("load_in_8bit") or settings.get("load_in_4bit"):
        return "bitsandbytes"
    method = settings.get("quant_method") or ""
    return str(getattr(method, "value", method))


def describe(settings: dict[str, Any]) -> str:
    """How a checkpoint is quantised, e.g. "gptq (4 bits, groups of 128)"; "" if it is not."""
    if not settings:
        return ""
    bits = "4 bits" if settings.get("load_in_4bit") else ""
    if settings.get("load_in_8bit"):  # what it says of 4 bits are defaults
        return f"{method_of(settings)} (8 bits)"
    kept = (words.format(v) for key, words in _DETAILS.items() if (v := settings.get(key)) not in (None, "", {}, []))
    details = ", ".join(filter(None, (bits, *(text for text in kept if len(text) <= 40))))
    return method_of(settings) + (f" ({details})" if details else "")
