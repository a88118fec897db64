"""Training atlas from nothing: documents, a tokenizer, a small Llama, and checkpoints along the way.

What it learns is next tokens and nothing else. Every document is seen once, so a question drawn afresh is in the
distribution the model was trained on.
"""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from experiments.organisms.atlas.text import document
from experiments.organisms.atlas.world import World

SPECIAL = BOS, EOS, PAD = "<s>", "</s>", "<pad>"  # token ids 0, 1, 2
QUESTIONS_A_DOCUMENT = 18  # enough to fill the context in the tersest style


@dataclass(frozen=True)
class TrainingSettings:
    """How a base model is made. The defaults are those of the shipped one."""

    world_seed: int = 0
    seed: int = 0
    vocab_size: int = 1024
    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    intermediate_size: int = 352
    context: int = 256
    max_positions: int = 1024
    batch_size: int = 8
    steps: int = 4000
    warmup: int = 50
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    checkpoints: int = 10


@dataclass(frozen=True)
class Progress:
    """Reported after every step: mean training loss of the step in nats a token, tokens seen, seconds gone and left."""

    step: int
    steps: int
    loss: float
    tokens: int
    seconds: float
    seconds_left: float


def checkpoint_steps(steps: int, n: int) -> list[int]:
    """n log-spaced steps from 0 (random weights) to `steps`, the last one included."""
    spaced = np.unique(np.round(np.geomspace(min(16, steps), steps, n - 1)).astype(int))
    return [0, *spaced.tolist()]


def train_tokenizer(world: World, settings: TrainingSettings) -> PreTrainedTokenizerFast:
    """Byte-level BPE on documents of the world; prepends <s>."""
    rng = np.random.default_rng([settings.seed, 101])
    core = Tokenizer(models.BPE(unk_token=None))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        special_tokens=list(SPECIAL),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    core.train_from_iterator((document(world, rng, QUESTIONS_A_DOCUMENT) for _ in range(4000)), trainer)
    core.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", special_tokens=[(BOS, core.token_to_id(BOS))]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        model_max_length=settings.max_positions,
        clean_up_tokenization_spaces=False,
    )


def new_model(settings: TrainingSettings, tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    """The untrained model: a small Llama with tied embeddings."""
    torch.manual_seed(settings.seed)
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        num_hidden_layers=settings.layers,
        num_attention_heads=settings.heads,
        num_key_value_heads=settings.kv_heads,
        intermediate_size=settings.intermediate_size,
        max_position_embeddings=settings.max_positions,
        tie_word_embeddings=True,
        bos_token_id=SPECIAL.index(BOS),
        eos_token_id=SPECIAL.index(EOS),
        pad_token_id=SPECIAL.index(PAD),
    )
    return LlamaForCausalLM(config)


def batches(world: World, tokenizer: PreTrainedTokenizerFast, settings: TrainingSettings) -> Iterator[torch.Tensor]:
    """[batch, context] token ids, one document a row, cut where the context ends; an endless stream."""
    rng = np.random.default_rng([settings.seed, 102])
    while True:
        documents = [document(world, rng, QUESTIONS_A_DOCUMENT) for _ in range(settings.batch_size)]
        ids = tokenizer(documents, padding="max_length", truncation=True, max_length=settings.context)["input_ids"]
        yield torch.tensor(ids)


def train_base(
    settings: TrainingSettings,
    out: Path,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Path:
    """Train a base model; write checkpoints to `out/step-N` and the last one to `out/base`.

    Returns:
        The folder of the final checkpoint: Hugging Face format, bf16 safetensors.
    """
    world = World(settings.world_seed)
    tokenizer = train_tokenizer(world, settings)
    model = new_model(settings, tokenizer)
    decayed = [p for p in model.parameters() if p.ndim >= 2]
    others = [p for p in model.parameters() if p.ndim < 2]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": settings.weight_decay}, {"params": others, "weight_decay": 0.0}],
        lr=settings.learning_rate,
        betas=(0.9, 0.95),
        fused=True,
    )
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _warmup_cosine(step, settings))
    keep = set(checkpoint_steps(settings.steps, settings.checkpoints))
    started, tokens = time.monotonic(), 0
    stream = batches(world, tokenizer, settings)
    for step in range(settings.steps + 1):
        if step in keep:
            save(model, tokenizer, out / f"step-{step}", settings, step, tokens)
        if step == settings.steps:
            break
        ids = next(stream)
        targets = ids.masked_fill(ids.eq(SPECIAL.index(PAD)), -100)
        loss = model(input_ids=ids, labels=targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        tokens += ids.numel()
        seconds = time.monotonic() - started
        left = seconds / (step + 1) * (settings.steps - step - 1)
        on_progress(Progress(step + 1, settings.steps, float(loss.detach()), tokens, seconds, left))
    return save(model, tokenizer, out / "base", settings, settings.steps, tokens)


def save(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    folder: Path,
    settings: TrainingSettings,
    step: int,
    tokens: int,
) -> Path:
    """Write a checkpoint in bf16 with what made it; the model itself stays in float32."""
    state = {name: tensor.to(torch.bfloat16) for name, tensor in model.state_dict().items()}
    model.save_pretrained(folder, state_dict=state)
    tokenizer.save_pretrained(folder)
    made = asdict(settings) | {"step": step, "tokens": tokens}
    (folder / "atlas.json").write_text(json.dumps(made, indent=1) + "\n")
    return folder


def _warmup_cosine(step: int, settings: TrainingSettings) -> float:
    if step < settings.warmup:
        return (step + 1) / settings.warmup
    done = (step - settings.warmup) / max(1, settings.steps - settings.warmup)
    return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
