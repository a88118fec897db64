"""Base models that are trained alike but for one thing, which changes how well the end of a chain can be seen before it
begins.

All arms go on from one base model, which knows how questions are answered and in whose world other roads lead
elsewhere; from scratch, most trainings on these roads did not even learn to repeat a town (docs/training.md). All read
as many tokens about the same kind of question, and half of the documents are the same chains of thought in the same
order, in a world of rings and shuffles (`atlas/world.py`):

direct   the other half are direct answers
chains   the other half are further chains, so that no answer is ever given at once
closed   as `direct`, but in training the tokens at the ends of questions, from the town to the end of the prompt, carry
         nothing of their document from layer to layer but which tokens they are: after every layer but the last, each
         holds the mean of what tokens of its id hold at the ends of questions of other documents, always the same ones.
         The last layer still reads the question from there, without which no answer could begin; what one layer can
         look up of town, line and stops, it can
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from experiments.atlas.stages.base import Around, Corpus, ReadingSettings, batches, read
from experiments.atlas.stages.source import FORMAT, Source
from experiments.atlas.text import document_of
from experiments.atlas.world import RINGS, SLIP, World
from experiments.train.checkpoints import Progress, Training
from semcal.errors import UserError, nearest

ARMS = {"direct": "concise", "chains": "cot", "closed": "concise"}  # arm -> style of the other half
CHAIN_SHARE = 0.5  # of the documents
STEPS = 2400
BEFORE, AFTER = 5, 3  # tokens around "?": town, ",", number, "stops", "on"; the line's end, "Answer", ":"


@dataclass(frozen=True)
class ArmSettings(ReadingSettings):
    """How a base model is trained on, and its arm.

    Raises:
        UserError: an unknown arm, or roads that `rings` and `shuffles` do not ask about.
    """

    steps: int = STEPS
    checkpoints: int = 6
    arm: str = "direct"
    roads: str = RINGS

    def __post_init__(self) -> None:
        if self.arm not in ARMS:
            raise UserError(f"unknown arm {self.arm!r}{nearest(self.arm, ARMS)}; expected one of {', '.join(ARMS)}")
        if self.roads != RINGS:
            raise UserError(f"roads is {self.roads!r}, but arms are trained on {RINGS}; leave it out")


def train_arm(
    settings: ArmSettings, source: Source, out: Path, on_progress: Callable[[Progress], None] = lambda _: None
) -> Path:
    """Train a base model on, as an arm; write checkpoints to `out/step-N` and the last one to `out/base`, which is
    returned. It resumes as `train_base` does.

    Raises:
        UserError: `out` was started with different settings or from another model; training diverged.
    """
    world = World(source.world.seed, settings.roads)
    made = {"from": source.model.weights_hash, "world_seed": world.seed, "slip": SLIP} | asdict(settings)
    kept = Training(made, checkpoints=out, final=out / "base", written=FORMAT)
    if kept.finished:
        return kept.final
    corpus = Corpus(world, arm_document(settings.arm))
    if settings.arm == "closed":
        corpus = replace(corpus, around=closed_by(world, settings))
    model: Any = source.model.model.requires_grad_(True)
    tokenizer: Any = source.model.tokenizer
    return read(corpus, model, tokenizer, settings, kept, on_progress)


def arm_document(arm: str) -> Callable[[World, np.random.Generator, int], str]:
    """Writes the documents of an arm; with generators of one seed, all arms have the same chains at the same places."""

    def write(world: World, rng: np.random.Generator, n: int) -> str:
        chains, own = rng.random() < CHAIN_SHARE, np.random.default_rng(rng.integers(2**63))
        return document_of(world, own, n, "routes", "cot" if chains else ARMS[arm])

    return write


def prompt_ends(ids: torch.Tensor, question_mark: int) -> torch.Tensor:
    """[batch, context] whether a token is one of those that end a question about a route, or its prompt."""
    found = ids.eq(question_mark)
    ends = found.clone()
    for away in range(1, BEFORE + 1):
        ends[:, :-away] |= found[:, away:]
    for away in range(1, AFTER + 1):
        ends[:, away:] |= found[:, :-away]
    return ends


def closed_by(world: World, settings: ArmSettings) -> Around:
    """The channel of `closed`, its means taken from a batch of documents that are read for nothing else."""
    kept: list[torch.Tensor] = []

    def around(
        model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, ids: torch.Tensor
    ) -> AbstractContextManager:
        if not kept:
            rng = np.random.default_rng([settings.seed, 103])
            kept.append(next(batches(Corpus(world, arm_document("closed")), tokenizer, settings, rng)).to(model.device))
        return closed_channel(model, tokenizer, ids, kept[0])

    return around


@contextmanager
def closed_channel(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, ids: torch.Tensor, others: torch.Tensor
) -> Iterator[None]:
    """A context in which the ends of the questions in `ids` [batch, token] say no more than which tokens they are: they
    hold what those of the documents `others` [batch, token] hold on average."""
    mark = tokenizer.get_vocab()["?"]
    means: list[torch.Tensor] = []  # [layer] of [token id, d_model]

    def averaged(_: torch.nn.Module, __: Any, x: torch.Tensor) -> torch.Tensor:  # x: [batch, token, d_model]
        at = others[ends]
        count = torch.bincount(at, minlength=len(tokenizer)).clamp(min=1)[:, None]
        means.append(x.new_zeros(len(tokenizer), x.shape[-1]).index_add(0, at, x[ends]) / count)
        return x.index_put((ends,), means[-1][at])

    ends = prompt_ends(others, mark)
    with torch.no_grad(), _after_layers(model, averaged):
        model.model(input_ids=others)
    waiting, of_ids = iter(means), prompt_ends(ids, mark)
    with _after_layers(model, lambda _, __, x: x.index_put((of_ids,), next(waiting)[ids[of_ids]])):
        yield


@contextmanager
def _after_layers(model: LlamaForCausalLM, hook: Callable[..., torch.Tensor]) -> Iterator[None]:
    """A context in which a hook changes what every layer but the last hands on."""
    handles = [layer.register_forward_hook(hook) for layer in model.model.layers[:-1]]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
