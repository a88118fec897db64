"""The shape of a model: from its configuration, from a table of published ones, or from the size in its name.

Knows no study and loads no weights.
"""

from __future__ import annotations

import re

from experiments.pipeline.cost import Shape
from semcal.models.checkpoint import LanguageModel
from semcal.sampling.engine import kv_values

_K = 1024
# Hub ids of one architecture: layers, width, heads of keys and values × their width, vocabulary, context (the
# shorter of base and tuned), as in their config.json. Parameters are those of the name.
_TABLE: dict[tuple[str, ...], tuple[int, int, int, int, int]] = {
    ("Qwen/Qwen2.5-0.5B", "Qwen/Qwen2.5-0.5B-Instruct"): (24, 896, 2 * 64, 151_936, 32 * _K),
    ("Qwen/Qwen2.5-1.5B", "Qwen/Qwen2.5-1.5B-Instruct"): (28, 1536, 2 * 128, 151_936, 32 * _K),
    ("Qwen/Qwen2.5-3B", "Qwen/Qwen2.5-3B-Instruct"): (36, 2048, 2 * 128, 151_936, 32 * _K),
    ("Qwen/Qwen2.5-7B", "Qwen/Qwen2.5-7B-Instruct"): (28, 3584, 4 * 128, 152_064, 32 * _K),
    ("Qwen/Qwen2.5-14B", "Qwen/Qwen2.5-14B-Instruct"): (48, 5120, 8 * 128, 152_064, 32 * _K),
    ("Qwen/Qwen2.5-32B", "Qwen/Qwen2.5-32B-Instruct"): (64, 5120, 8 * 128, 152_064, 32 * _K),
    ("Qwen/Qwen2.5-72B", "Qwen/Qwen2.5-72B-Instruct"): (80, 8192, 8 * 128, 152_064, 32 * _K),
    ("Qwen/Qwen2.5-Math-72B",): (80, 8192, 8 * 128, 152_064, 4 * _K),
    (
        "mistralai/Mistral-7B-v0.1",
        "alignment-handbook/zephyr-7b-sft-full",
        "alignment-handbook/zephyr-7b-dpo-full",
    ): (32, 4096, 8 * 128, 32_000, 32 * _K),
    ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B-Instruct"): (32, 4096, 8 * 128, 128_256, 128 * _K),
    ("meta-llama/Llama-3.1-70B", "meta-llama/Llama-3.1-70B-Instruct"): (80, 8192, 8 * 128, 128_256, 128 * _K),
    ("google/gemma-3-1b-pt", "google/gemma-3-1b-it"): (26, 1152, 1 * 256, 262_144, 32 * _K),
    ("google/gemma-3-4b-pt", "google/gemma-3-4b-it"): (34, 2560, 4 * 256, 262_208, 128 * _K),
    ("google/gemma-3-12b-pt", "google/gemma-3-12b-it"): (48, 3840, 8 * 256, 262_208, 128 * _K),
    ("google/gemma-3-27b-pt", "google/gemma-3-27b-it"): (62, 5376, 16 * 128, 262_208, 128 * _K),
    ("EleutherAI/pythia-1.4b",): (24, 2048, 16 * 128, 50_304, 2 * _K),
    ("EleutherAI/pythia-6.9b",): (32, 4096, 32 * 128, 50_432, 2 * _K),
    ("allenai/OLMo-2-1124-7B",): (32, 4096, 32 * 128, 100_352, 4 * _K),
}
_PUBLISHED = {hub_id: row for ids, row in _TABLE.items() for hub_id in ids}

_SIZE = re.compile(r"(?<![\w.])(?:(\d+)x)?(\d+(?:\.\d+)?)([kmbt])(?![a-z\d])", re.IGNORECASE)
_UNIT = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}
_ASPECT = 128  # width / layers, about that of the models in the table
_VOCABULARY = 128_000


def shape_of(path: str, model: LanguageModel | None) -> Shape | None:
    """The shape of a checkpoint: of its own configuration where `model` is at hand (its weights need not be), else of
    its Hub id; None where neither tells."""
    if model is not None:
        config = model.model.config.get_text_config()
        return Shape(
            parameters=model.model.num_parameters(),
            layers=config.num_hidden_layers,
            width=config.hidden_size,
            kv_values=kv_values(config),
            vocabulary=config.vocab_size,
            context=model.context,
            source="configuration",
        )
    parameters = parameters_in(path)
    if parameters is None:
        return None
    if path in _PUBLISHED:
        layers, width, keys, vocabulary, context = _PUBLISHED[path]
        return Shape(parameters, layers, width, 2 * layers * keys, vocabulary, context, "table")
    return _by_rule(parameters)


def parameters_in(name: str) -> float | None:
    """The number of parameters that a name tells: "Qwen2.5-0.5B" -> 0.5e9, "Mixtral-8x7B" -> 56e9 (at the most, for
    experts share some); None where it tells none."""
    found = _SIZE.search(name.rpartition("/")[2])
    if found is None:
        return None
    return int(found[1] or 1) * float(found[2]) * _UNIT[found[3].lower()]


def _by_rule(parameters: float) -> Shape:
    """A plain transformer of that size: 12 layers × width² weights, every head with keys and values of its own (more
    than grouped heads would hold)."""
    layers = max(1, round((parameters / (12 * _ASPECT**2)) ** (1 / 3)))
    width = max(1, round((parameters / (12 * layers)) ** 0.5))
    return Shape(parameters, layers, width, 2 * layers * width, _VOCABULARY, None, "name")
