"""What a completion request says to each kind of server so that it samples from the model itself.

Servers truncate, penalise and bias by defaults of their own and by the `generation_config.json` of a checkpoint. Every
such setting has a neutral value, which is sent whether or not the server has the setting; what a server refuses is left
out (`semcal.models.served`). Sources: vLLM's `CompletionRequest`, SGLang's `OpenAIServingCompletion`, llama.cpp's
`server-schema.cpp`, and `GenerationConfig` and `GenerationMixin._get_logits_processor` of transformers 5.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from typing import Any

from semcal.sampling.records import Sampling

SERVERS = ("vllm", "sglang", "llama.cpp", "tgi", "transformers", "openai")
TOP = 5  # alternatives requested per token, the most that every server grants
# Settings of a checkpoint that `transformers serve` applies whatever a request says: they have no neutral value.
NOT_NEUTRAL = (
    *("forced_bos_token_id", "forced_eos_token_id", "top_h", "watermarking_config"),
    *("dola_layers", "constraints", "force_words_ids"),
)
_OPENAI = {"presence_penalty": 0.0, "frequency_penalty": 0.0, "logit_bias": {}}
_LLAMA_CPP = _OPENAI | {
    **{"logit_bias": [], "min_p": 0.0, "top_n_sigma": -1.0, "xtc_probability": 0.0, "typical_p": 1.0},
    **{"dynatemp_range": 0.0, "repeat_penalty": 1.0, "dry_multiplier": 0.0, "mirostat": 0, "adaptive_target": -1.0},
    **{"ignore_eos": False, "t_max_predict_ms": -1, "n_indent": 0},
    "samplers": ["top_k", "top_p", "temperature"],
}
_VLLM = _OPENAI | {
    **{"min_p": 0.0, "repetition_penalty": 1.0, "min_tokens": 0, "bad_words": [], "ignore_eos": False},
    "use_beam_search": False,
}
_NEUTRAL: dict[str, dict[str, Any]] = {
    "vllm": _VLLM | {"top_k": -1},
    "sglang": _OPENAI | {"top_k": -1, "min_p": 0.0, "repetition_penalty": 1.0, "min_tokens": 0, "ignore_eos": False},
    "llama.cpp": _LLAMA_CPP | {"top_k": 0},
    "tgi": {"frequency_penalty": 0.0, "repetition_penalty": 1.0},
    # An unknown server gets what any of the others would take.
    "openai": _VLLM | {"top_k": 0, "typical_p": 1.0, "repeat_penalty": 1.0},
}
_GENERATION = {
    **{"top_k": 0, "top_p": 1.0, "min_p": 0.0, "typical_p": 1.0, "epsilon_cutoff": 0.0, "eta_cutoff": 0.0},
    **{"repetition_penalty": 1.0, "encoder_repetition_penalty": 1.0, "no_repeat_ngram_size": 0},
    **{"encoder_no_repeat_ngram_size": 0, "min_length": 0, "min_new_tokens": 0, "suppress_tokens": []},
    **{"begin_suppress_tokens": [], "sequence_bias": [[[0], 0.0]], "exponential_decay_length_penalty": [0, 1.0]},
    **{"guidance_scale": 1.0, "num_beams": 1, "num_beam_groups": 1, "diversity_penalty": 0.0, "penalty_alpha": 0.0},
    **{"token_healing": False, "max_time": 1e9, "remove_invalid_values": False},
}


def neutral(server: str, settings: Sampling) -> dict[str, Any]:
    """The settings that a server of this kind would otherwise fill in, each at the value that switches it off; and the
    number of samples and log-probabilities asked for. A server may refuse any of them.

    For "transformers" these are entries of the generation config, which a request carries as JSON.
    """
    if server == "transformers":
        # An empty list of bad words is refused. This one bans token 0 after so many of itself as no answer holds.
        found = _GENERATION | {"bad_words_ids": [[0] * (settings.max_new_tokens + 32)]}
    else:
        found = _NEUTRAL[server] | {"n": settings.m, "logprobs": TOP} | ({} if server == "tgi" else {"top_p": 1.0})
    return {name: value for name, value in found.items() if name not in _asked(settings)}


def body(server: str, settings: Sampling, *, n: int, refused: Collection[str]) -> dict[str, Any]:
    """The fields of a request other than model, prompt and seed: what the settings ask for, and the neutral values
    without those that the server refused."""
    values = {name: value for name, value in neutral(server, settings).items() if name not in refused}
    if "n" in values:
        values["n"] = n
    found = {"max_tokens": settings.max_new_tokens, "temperature": settings.temperature}
    if settings.stop:
        found["stop"] = list(settings.stop)
    asked = _asked(settings)
    if server != "transformers":
        return found | values | asked
    config = values | asked | {"do_sample": True, "temperature": settings.temperature}
    config["max_new_tokens"] = settings.max_new_tokens
    return found | {"generation_config": json.dumps(config)}


def _asked(settings: Sampling) -> dict[str, Any]:
    asked = {"top_k": settings.top_k, "top_p": settings.top_p}
    return {name: value for name, value in asked.items() if value is not None}
