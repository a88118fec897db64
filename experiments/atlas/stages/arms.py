"""Base models that are trained alike but for one thing, which changes how well the end of a chain can be seen before it
begins.

All arms read the same chains of thought in the same order, in a world of rings and shuffles (`atlas/world.py`), and as
many tokens of short answers:

direct   half of the documents are chains, half are direct answers to the same kind of question
chains   the direct answers are to another kind of question (about persons), so that none says where a route ends
closed   as `direct`, but from the end of a question to the last token of its prompt, noise is added to the residual
         stream after every layer but the last, in training only: what is worked out there does not come through
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from experiments.atlas.stages.base import Around, Corpus, TrainingSettings, train_base
from experiments.atlas.text import document_of
from experiments.atlas.world import RINGS, World
from experiments.train.checkpoints import Progress
from semcal.errors import UserError, nearest

ARMS = {"direct": "routes", "chains": "facts", "closed": "routes"}  # arm -> what its direct answers are about
CHAIN_SHARE = 0.5  # of the documents
PROMPT_END = 4  # tokens: "?", the line's end, "Answer", ":"


@dataclass(frozen=True)
class ArmSettings(TrainingSettings):
    """`noise` is its standard deviation in units of the residual stream's own root mean square, for `closed`.

    Raises:
        UserError: an unknown arm, or roads that `rings` and `shuffles` do not ask about.
    """

    checkpoints: int = 12
    arm: str = "direct"
    noise: float = 1.0
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
        corpus = Corpus(corpus.world, corpus.document, _closed(settings))
    return train_base(settings, out, corpus=corpus, device=device, on_progress=on_progress)


def arm_document(arm: str) -> Callable[[World, np.random.Generator, int], str]:
    """Writes the documents of an arm; with generators of one seed, all arms have the same chains at the same places."""

    def write(world: World, rng: np.random.Generator, n: int) -> str:
        chains, own = rng.random() < CHAIN_SHARE, np.random.default_rng(rng.integers(2**63))
        return document_of(world, own, n, *(("routes", "cot") if chains else (ARMS[arm], "concise")))

    return write


def prompt_ends(ids: torch.Tensor, question_mark: int) -> torch.Tensor:
    """[batch, context] whether a token lies between the end of a question and that of its prompt, both included."""
    found = ids.eq(question_mark)
    ends = found.clone()
    for later in range(1, PROMPT_END):
        ends[:, later:] |= found[:, :-later]
    return ends


def _closed(settings: ArmSettings) -> Around:
    @contextmanager
    def around(
        model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, ids: torch.Tensor, step: int
    ) -> Iterator[None]:
        """Noise at the ends of prompts; every step has a generator of its own, so a resumed run is exact."""
        ends = rearrange(prompt_ends(ids, tokenizer.get_vocab()["?"]), "batch token -> batch token 1")
        drawn = torch.Generator(ids.device).manual_seed(settings.seed * 1_000_003 + step)

        def noisy(_: torch.nn.Module, __: Any, x: torch.Tensor) -> torch.Tensor:  # x: [batch, token, d_model]
            size = x.detach().square().mean(-1, keepdim=True).sqrt()
            noise = torch.randn(x.shape, generator=drawn, device=x.device, dtype=x.dtype)
            return x + ends * settings.noise * size * noise

        handles = [layer.register_forward_hook(noisy) for layer in model.model.layers[:-1]]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    return around
