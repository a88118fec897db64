"""The models and prompts that the sampler is timed on.

The bundled organism, whose answers are as peaked as those of trained models, and a random-init model of 5 M
parameters: the worst case, in which no two samples agree.
"""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from experiments.atlas.weights import bundled
from experiments.config.datasets import AtlasConfig, load_dataset
from semcal.models.checkpoint import LanguageModel
from semcal.questions.prompts import STOPS, few_shot
from semcal.sampling.records import Prompt

M = 50


@dataclass(frozen=True)
class Subject:
    """A model, prompts, and where their answers end.

    Attributes:
        new_tokens: Most new tokens.
        stop: Stop strings, each one token of the model, so that `generate` can stop there by its id.
    """

    name: str
    model: LanguageModel
    prompts: tuple[Prompt, ...]
    new_tokens: int
    stop: tuple[str, ...]

    @cached_property
    def ending_tokens(self) -> tuple[int, ...]:
        """The tokens whose text holds a stop string."""
        texts = [self.model.decode([i]) for i in range(self.model.output_size)] if self.stop else []
        return tuple(i for i, text in enumerate(texts) if any(s in text for s in self.stop))


def subjects(device: str = "auto", seed: int = 0) -> list[Subject]:
    """Every case, in bf16 on a GPU and in fp32 elsewhere."""
    dtype = "bfloat16" if torch.cuda.is_available() and device != "cpu" else "float32"
    organism = LanguageModel.load(bundled("base"), dtype=dtype, device=device)
    random = random_llama(dtype, device, seed)
    return [
        _organism("organism/concise-800", organism, "facts", "concise", 800, 128, 12),
        _organism("organism/concise-100", organism, "facts", "concise", 100, 128, 12),
        _organism("organism/cot-60", organism, "routes", "cot", 100, 128, 60),
        _random("random/concise-800", random, 800, 16, 12, seed),
        _random("random/concise-100", random, 100, 16, 12, seed),
        _random("random/cot-60", random, 100, 16, 60, seed),
    ]


def _organism(
    name: str, model: LanguageModel, family: str, style: str, prompt_tokens: int, n: int, new_tokens: int
) -> Subject:
    dataset = load_dataset(AtlasConfig(kind="atlas", family=family, n=n), 64)  # pyright: ignore[reportArgumentType]

    def prompts(shots: int) -> tuple[Prompt, ...]:
        texts = [few_shot(q, dataset.exemplars, style, shots, 0, vary="run") for q in dataset.questions]
        return tuple(Prompt(q.id, model.encode(t)) for q, t in zip(dataset.questions, texts, strict=True))

    shots = next(s for s in range(1, 65) if len(prompts(s)[0].ids) >= prompt_tokens)
    stop = STOPS[style] if style == "concise" else ("\n",)  # a chain of thought of atlas is one line
    return Subject(name, model, prompts(shots), new_tokens, stop)


def _random(name: str, model: LanguageModel, prompt_tokens: int, n: int, new_tokens: int, seed: int) -> Subject:
    """Prompts that share all but their last 20 tokens, as few-shot prompts do."""
    rng = np.random.default_rng(seed)
    shared = rng.integers(3, model.output_size, prompt_tokens - 20).tolist()
    tails = rng.integers(3, model.output_size, (n, 20)).tolist()
    prompts = tuple(Prompt(f"{name}-{i}", (*shared, *tail)) for i, tail in enumerate(tails))
    return Subject(name, model, prompts, new_tokens, ())


def random_llama(dtype: str, device: str, seed: int) -> LanguageModel:
    """A Llama of 5 M parameters as initialised, with the organism's tokenizer; it never ends an answer on its own."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=2048,
        hidden_size=256,
        num_hidden_layers=6,
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=704,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=None,
        pad_token_id=0,
    )
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(config).save_pretrained(folder)
        for file in Path(bundled("base")).glob("tokenizer*"):
            (Path(folder) / file.name).write_bytes(file.read_bytes())
        return LanguageModel.load(folder, dtype=dtype, device=device)
