"""Small things that many tests share: random-init checkpoints saved to disk, a model with a known answer space."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from transformers import AutoModelForCausalLM as Auto
from transformers import (
    Gemma2Config,
    Gemma3TextConfig,
    GemmaConfig,
    GPT2Config,
    GPTNeoXConfig,
    LlamaConfig,
    MistralConfig,
    Olmo2Config,
    Phi3Config,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen3Config,
)

from semcal import LanguageModel
from semcal.errors import UserError
from semcal.sampling.vllm.interpreter import vllm_python

torch.set_num_threads(1)
os.environ["COLUMNS"] = "160"  # tables are as wide in a worker of pytest-xdist as in a terminal
WORDS = "red blue green one two three four yes no the answer is , . ? Question: Answer: \n".split(" ")
SMALL = {"vocab_size": 64, "hidden_size": 32, "num_hidden_layers": 3, "num_attention_heads": 4, "intermediate_size": 48}
ROPE = SMALL | {"max_position_embeddings": 256}
CONFIGS = {
    "llama": lambda: LlamaConfig(**ROPE, num_key_value_heads=2),
    "qwen2": lambda: Qwen2Config(**ROPE, num_key_value_heads=2),
    "mistral": lambda: MistralConfig(**ROPE, num_key_value_heads=2, sliding_window=None),
    "gpt-neox": lambda: GPTNeoXConfig(**ROPE),
    "gpt2": lambda: GPT2Config(vocab_size=64, n_embd=32, n_layer=3, n_head=4, n_positions=256),
    "gemma": lambda: GemmaConfig(**ROPE, num_key_value_heads=2, head_dim=8),
}
# What the sampler serves beyond those: windows shorter than the prompts, soft-capped scores, normed queries.
WINDOWED = ROPE | {"num_key_value_heads": 2, "sliding_window": 6}
MORE_CONFIGS = {
    "llama-one-kv-head": lambda: LlamaConfig(**ROPE, num_key_value_heads=1),
    "qwen3": lambda: Qwen3Config(**ROPE, num_key_value_heads=2, head_dim=8),
    "qwen2-window": lambda: Qwen2Config(**WINDOWED, use_sliding_window=True, max_window_layers=1),
    "mistral-window": lambda: MistralConfig(**WINDOWED),
    "gemma2": lambda: Gemma2Config(**WINDOWED, head_dim=8, attn_logit_softcapping=2.0, query_pre_attn_scalar=8),
    "gemma3": lambda: Gemma3TextConfig(**WINDOWED, head_dim=8, query_pre_attn_scalar=8),
    "olmo2": lambda: Olmo2Config(**ROPE, num_key_value_heads=2),
    "phi3": lambda: Phi3Config(**ROPE, num_key_value_heads=2, sliding_window=None, pad_token_id=0),
    "phi3-window": lambda: Phi3Config(**WINDOWED, pad_token_id=0),
}


ASKED_FOR = {
    "long": "takes long; run `make test-long`",
    "real": "needs the real models; run `make test-real`",
    "ray": "starts a cluster of Ray; run `make test-ray`",
    "slurm": "starts a Slurm cluster; run `make test-slurm`",
    "faults": "kills processes for minutes; run `make test-faults`",
}


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Tests that take minutes are run only where they are asked for, those of vLLM where it is."""
    for marker, reason in ASKED_FOR.items():
        if marker not in (config.getoption("markexpr") or ""):
            for item in items:
                if item.get_closest_marker(marker):
                    item.add_marker(pytest.mark.skip(reason=reason))
    try:
        vllm_python()
    except UserError as error:
        for item in items:
            if item.get_closest_marker("vllm"):
                item.add_marker(pytest.mark.skip(reason=f"{error}; or run `make test-vllm`"))


def data_folder() -> Path:
    """Where the real data files lie that no repository may hold; tests that need them skip where they are absent."""
    return Path(os.environ.get("SEMCAL_DATA", "../shared/data"))


def needs(path: Path) -> Path:
    if not path.exists():
        pytest.skip(f"{path} is not here; set SEMCAL_DATA to the folder of real data")
    return path


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One token a word, <s> in front."""
    vocabulary = {w: i for i, w in enumerate(["<s>", "</s>", "<unk>", *WORDS])}
    core = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Split(" ", "removed")
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 0)])
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def save_checkpoint(folder: Path, architecture: str = "llama", *, seed: int = 0, scale: float = 1.0) -> Path:
    """A random-init checkpoint on disk; `scale` > 1 sharpens its output distribution."""
    torch.manual_seed(seed)
    config = (CONFIGS | MORE_CONFIGS)[architecture]()
    config.bos_token_id, config.eos_token_id, config.pad_token_id = 0, 1, None
    model = Auto.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter.normal_(std=0.15 * scale if "embed" in name or "wte" in name or "lm_head" in name else 0.15)
    model.save_pretrained(folder)
    word_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random-init Llama on disk."""
    return save_checkpoint(tmp_path_factory.mktemp("models") / "llama", scale=4.0)


@pytest.fixture(scope="session")
def tiny(checkpoint: Path) -> LanguageModel:
    return LanguageModel.load(checkpoint, device="cpu")
