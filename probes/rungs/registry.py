"""The rungs of the ladder of probes: which exist, what each one reads, and what it chooses from in each fold.

A new rung is a subclass of `probes.rungs.rung.Rung` and an entry in `RUNGS`, whose names studies use in `probes.rungs`;
`semcal probe` fits a rung at every position whose activations it reads.
Nothing heavy is imported here, so that a study can be checked at once.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal

if TYPE_CHECKING:
    from probes.rungs.rung import Rung

PENALTIES = (1e-2, 1e-1, 1.0, 1e1, 1e2, 1e3, 1e4, 1e5)
# Nats still to be gained when a solver stops. At 1e-5 the share explained is within 1e-3 of its value at 1e-8.
TOLERANCE = 1e-5
_HEAVIEST_FIRST = sorted(PENALTIES, reverse=True)


@dataclass(frozen=True)
class Given:
    """What candidates may depend on.

    Attributes:
        m: samples behind the targets; None if these are exact.
        seed: of what is drawn in training.
        device: where networks are trained.
    """

    m: int | None
    seed: int
    device: str = "cpu"


@dataclass(frozen=True)
class Entry:
    """One rung.

    Attributes:
        home: "module:class" of the `Rung`, imported when first used; a function where a rung is no `Rung`.
        reads: one layer at one token ("layer", activations [question, d]), the same beside embeddings of the classes'
            texts ("layer and class texts", see `probes.evaluation.open_layers`), all tokens of the question at one
            layer ("question tokens", `Segments`), or the model itself ("model").
        candidates: (class, given) -> what is chosen from in each fold, the most constrained first; None for rungs that
            need the model, which `experiments.probe.with_model` makes.
    """

    home: str
    reads: Literal["layer", "layer and class texts", "question tokens", "model"]
    candidates: Callable[[Any, Given], list[Rung]] | None = None


RUNGS = {
    "linear": Entry(
        "probes.rungs.linear:LinearProbe",
        "layer",
        lambda probe, _: [probe(penalty, tol=TOLERANCE) for penalty in _HEAVIEST_FIRST],
    ),
    "ridge-logit": Entry(
        "probes.rungs.linear:RidgeLogitProbe",
        "layer",
        lambda probe, given: [probe(penalty, smoothing=0.5 / (given.m or 1000)) for penalty in _HEAVIEST_FIRST],
    ),
    "low-rank": Entry(
        "probes.rungs.linear:LowRankProbe",
        "layer",
        lambda probe, _: [probe(4, penalty, tol=1e-5) for penalty in (1e4, 1e3, 1e2, 1e1, 1.0)],
    ),
    "mlp": Entry(
        "probes.rungs.networks:MLPProbe",
        "layer",
        lambda probe, given: [probe(hidden, seed=given.seed, device=given.device) for hidden in (32, 256)],
    ),
    "attention": Entry(
        "probes.rungs.networks:AttentionProbe",
        "question tokens",
        lambda probe, given: [probe(seed=given.seed, device=given.device)],
    ),
    "bilinear": Entry("probes.rungs.bilinear:Bilinear", "layer and class texts"),
    "density": Entry("probes.rungs.density:density_predictions", "layer and class texts"),
    "generative": Entry("probes.rungs.emitting.generative:generate_classes", "model"),
    "lora": Entry("probes.rungs.lora:LoRAProbe", "model"),
    "lens": Entry("probes.rungs.lens:LensProbe", "model"),
}


def rungs_reading(what: str) -> tuple[str, ...]:
    """The names of the rungs that read this, in the order of the registry."""
    return tuple(name for name, entry in RUNGS.items() if entry.reads == what)


def candidates(rung: str, given: Given) -> list[Rung]:
    """What a rung of that name chooses from, the most constrained first; numbers of epochs are chosen inside `fit`.

    Raises:
        ValueError: not the name of a rung that has candidates.
    """
    having = [name for name, entry in RUNGS.items() if entry.candidates is not None]
    if rung not in having:
        raise ValueError(f"{rung!r} is not a valid rung; expected one of {', '.join(having)}")
    entry = RUNGS[rung]
    assert entry.candidates is not None
    module, _, name = entry.home.partition(":")
    return entry.candidates(getattr(import_module(module), name), given)
