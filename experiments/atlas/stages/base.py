"""Training atlas from scratch: documents, a tokenizer, a small Llama, and checkpoints along the way.

The model learns to predict next tokens and nothing else. Every document is seen once, so a newly drawn question is in
the training distribution.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from experiments.atlas.stages.source import FORMAT
from experiments.atlas.text import document
from experiments.atlas.world import World
from experiments.train.checkpoints import Progress, Training, TrainingState

SPECIAL = BOS, EOS, PAD = "<s>", "</s>", "<pad>"  # token ids 0, 1, 2
QUESTIONS_PER_DOCUMENT = 18  # enough to fill the context in the tersest style


@dataclass(frozen=True)
class ReadingSettings:
    """How a model reads: documents of `context` tokens, `batch_size` of them a step."""

    seed: int = 0
    context: int = 256
    batch_size: int = 8
    steps: int = 4000
    warmup: int = 50
    learning_rate: float = 3e-3
    weight_decay: float = 0.01
    checkpoints: int = 10


@dataclass(frozen=True)
class TrainingSettings(ReadingSettings):
    """Settings of a base model. The defaults are those of the shipped one."""

    world_seed: int = 0
    vocab_size: int = 1024
    hidden_size: int = 128
    layers: int = 4
    heads: int = 4
    kv_heads: int = 2
    intermediate_size: int = 352
    max_positions: int = 1024


SMALL = {  # 13 M parameters, for a GPU
    "hidden_size": 384,
    "layers": 8,
    "heads": 6,
    "intermediate_size": 1024,
    "batch_size": 64,
    "steps": 12000,
    "warmup": 200,
    "learning_rate": 1e-3,
}


Around = Callable[[LlamaForCausalLM, PreTrainedTokenizerFast, torch.Tensor], AbstractContextManager[object]]


@dataclass(frozen=True)
class Corpus:
    """What a model reads.

    Attributes:
        document: `document(world, rng, n)` writes n questions with their answers.
        around: Wraps every forward pass of training, `around(model, tokenizer, ids [batch, context])`.
    """

    world: World
    document: Callable[[World, np.random.Generator, int], str] = document
    around: Around = lambda *_: nullcontext()


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
    core.train_from_iterator((document(world, rng, QUESTIONS_PER_DOCUMENT) for _ in range(4000)), trainer)
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


def batches(
    corpus: Corpus, tokenizer: PreTrainedTokenizerFast, settings: ReadingSettings, rng: np.random.Generator
) -> Iterator[torch.Tensor]:
    """An endless stream of token ids [batch, context], one document per row, cut where the context ends."""
    while True:
        documents = [corpus.document(corpus.world, rng, QUESTIONS_PER_DOCUMENT) for _ in range(settings.batch_size)]
        ids = tokenizer(documents, padding="max_length", truncation=True, max_length=settings.context)["input_ids"]
        yield torch.tensor(ids)


def train_base(
    settings: TrainingSettings,
    out: Path,
    *,
    device: str = "cpu",
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Path:
    """Train a base model on all documents of its world; write checkpoints to `out/step-N` and the last one to
    `out/base`, which is returned. An interrupted run resumes from its last saved state and ends with the same weights.
    Checkpoints are in Hugging Face format (bf16 safetensors).

    Raises:
        UserError: `out` holds a base that was started with different settings; training diverged.
    """
    kept = Training(asdict(settings), checkpoints=out, final=out / "base", written=FORMAT)
    if kept.finished:
        return kept.final
    corpus = Corpus(World(settings.world_seed))
    tokenizer = train_tokenizer(corpus.world, settings)
    model = new_model(settings, tokenizer)
    torch.nn.Module.to(model, torch.device(device))
    return read(corpus, model, tokenizer, settings, kept, on_progress)


def read(
    corpus: Corpus,
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerFast,
    settings: ReadingSettings,
    kept: Training,
    on_progress: Callable[[Progress], None],
) -> Path:
    """Train a model to predict the next tokens of a corpus, from where `kept` is; returns its final folder.

    Raises:
        UserError: training diverged.
    """
    reached, optimizer, schedule = kept.begin(model, tokenizer)
    rng = np.random.default_rng([settings.seed, 102])
    if reached.stream is not None:
        rng.bit_generator.state = reached.stream
    stream = batches(corpus, tokenizer, settings, rng)
    for step in range(reached.step + 1, settings.steps + 1):
        ids = next(stream).to(model.device)
        targets = ids.masked_fill(ids.eq(SPECIAL.index(PAD)), -100)
        with corpus.around(model, tokenizer, ids):
            loss = model(input_ids=ids, labels=targets).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad(set_to_none=True)
        reached = TrainingState(step, reached.tokens + ids.numel(), dict(rng.bit_generator.state))
        on_progress(kept.after_step(float(loss.detach()), reached))
    return kept.finish(reached)
