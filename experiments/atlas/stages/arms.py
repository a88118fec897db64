"""Base models that are trained alike but for one thing, which changes how well the end of a chain can be seen before it
begins.

All arms read the same chains of thought in the same order, in a world of rings and shuffles (`atlas/world.py`), and as
many tokens of short answers:

direct   half of the documents are chains, half are direct answers to the same kind of question
chains   the direct answers are to another kind of question (about persons), so that none says where a route ends
closed   as `direct`, but in training the tokens at the ends of questions, from the number of stops to the end of the
         prompt, carry nothing of their document from layer to layer but which tokens they are: after every layer but
         the last, each holds the mean of what tokens of its id hold at the ends of questions of the other documents of
         the batch. The last layer still reads the question from there, without which no answer could begin: one layer
         can copy a town or look a stop up, but has nothing to walk with
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from experiments.atlas.stages.base import Corpus, TrainingSettings, train_base
from experiments.atlas.text import document_of
from experiments.atlas.world import RINGS, World
from experiments.train.checkpoints import Progress
from semcal.errors import UserError, nearest

ARMS = {"direct": "routes", "chains": "facts", "closed": "routes"}  # arm -> what its direct answers are about
CHAIN_SHARE = 0.5  # of the documents
BEFORE, AFTER = 3, 3  # tokens around "?": the number, "stops", "on"; the line's end, "Answer", ":"


@dataclass(frozen=True)
class ArmSettings(TrainingSettings):
    """Settings of a base model, and its arm.

    Raises:
        UserError: an unknown arm, or roads that `rings` and `shuffles` do not ask about.
    """

    checkpoints: int = 12
    arm: str = "direct"
    roads: str = RINGS

    def __post_init__(self) -> None:
        if self.arm not in ARMS:
            raise UserError(f"unknown arm {self.arm!r}{nearest(self.arm, ARMS)}; expected one of {', '.join(ARMS)}")
        if self.roads != RINGS:
            raise UserError(f"roads is {self.roads!r}, but arms are trained on {RINGS}; leave it out")


def train_arm(
    settings: ArmSettings,
    out: Path,
    *,
    device: str = "cpu",
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Path:
    """Train a base model of an arm; see `train_base`."""
    corpus = Corpus(World(settings.world_seed, settings.roads), arm_document(settings.arm))
    if settings.arm == "closed":
        corpus = Corpus(corpus.world, corpus.document, closed_channel)
    return train_base(settings, out, corpus=corpus, device=device, on_progress=on_progress)


def arm_document(arm: str) -> Callable[[World, np.random.Generator, int], str]:
    """Writes the documents of an arm; with generators of one seed, all arms have the same chains at the same places."""

    def write(world: World, rng: np.random.Generator, n: int) -> str:
        chains, own = rng.random() < CHAIN_SHARE, np.random.default_rng(rng.integers(2**63))
        return document_of(world, own, n, *(("routes", "cot") if chains else (ARMS[arm], "concise")))

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


@contextmanager
def closed_channel(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, ids: torch.Tensor) -> Iterator[None]:
    """A context in which the ends of questions say no more than which tokens they are; ids [batch, token]."""
    ends = prompt_ends(ids, tokenizer.get_vocab()["?"])
    document = ends.nonzero()[:, 0]  # [end]
    ids_of_ends, kind = ids[ends].unique(return_inverse=True)  # [kind], [end]
    where, shape = (document, kind), (len(ids), len(ids_of_ends))
    count = torch.zeros(shape, device=ids.device).index_put(where, torch.ones(len(kind), device=ids.device), True)
    others = (count.sum(0) - count).clamp(min=1)[:, :, None]  # [document, kind, 1]; a token of no other holds zeros

    def averaged(_: torch.nn.Module, __: Any, x: torch.Tensor) -> torch.Tensor:  # x: [batch, token, d_model]
        sums = x.new_zeros(*shape, x.shape[-1]).index_put(where, x[ends], True)
        return x.index_put((ends,), ((sums.sum(0) - sums) / others)[where])

    handles = [layer.register_forward_hook(averaged) for layer in model.model.layers[:-1]]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
