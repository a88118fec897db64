"""The generative rung on the organism, whose class distributions are known exactly: how near do adapters come?"""

import tempfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from experiments.bench.generative.planted_generators import (
    MIXED,
    TOWNS,
    Planted,
    by_wording,
    cross_entropies,
    of_the_model,
    of_the_world,
    output_limit,
    sampled,
)
from probes.rungs.emitting.emitter import Emitter
from probes.rungs.emitting.generative import Training, generate_classes
from probes.targets.open import OpenTarget
from semcal.calibration.inference.bootstrap import bootstrap_interval
from semcal.calibration.inference.paired import plain_mean
from semcal.calibration.resampling import Resampling
from semcal.models.checkpoint import LanguageModel

CLOSE = 0.05  # nats
QUESTIONS, FEWER, M = 300, 60, 50
LIMITED = 10  # questions of which the limit of the output layer is found
HOW = Training(curve=())


@dataclass(frozen=True)
class Emitted:
    """How near the generative rung came to a planted distribution π.

    Attributes:
        case: whose distribution, and of how many questions.
        entropy_nats: of π.
        before_nats: KL(π ‖ q) of the model as it is.
        gap_nats: KL(π ‖ q) of held-out predictions, with its interval over groups.
        low_nats, high_nats: 95 %.
        limit_nats: the least that the frozen output layer allows.
        kept: epochs that were kept, over folds.
        holds: whether the gap is at most CLOSE above that limit. True where the world's π, which the organism does not
            know, is only shown.
    """

    case: str
    entropy_nats: float
    before_nats: float
    gap_nats: float
    low_nats: float
    high_nats: float
    limit_nats: float
    kept: str
    holds: bool

    @property
    def line(self) -> str:
        """The case in one line, while others are still running."""
        figures = f"gap {self.gap_nats:.3f} [{self.low_nats:.3f}, {self.high_nats:.3f}], limit {self.limit_nats:.3f}"
        return f"{self.case}: {figures}{'' if self.holds else ', MISSED'}"

    def to_dict(self) -> dict[str, object]:
        """The fields in order."""
        return asdict(self)


def generative_cases(device: str = "auto", n: int = QUESTIONS) -> Iterator[Emitted]:
    """The organism's own π on facts and routes, known exactly and from M samples; a constant one; one that no hidden
    state can emit; and the world's own, which the organism would have to know."""
    model = LanguageModel.load("atlas:base", device=device)
    for family in ("facts", "routes"):
        planted = of_the_model(model, family, n)
        for case, seen in ((family, None), (f"{family} by {M} samples", sampled(planted.target, M, seed=0))):
            yield emitted(f"{case}, {n} questions", model, planted, seen=seen)
    yield emitted(f"constant, {FEWER} questions", model, by_wording(model, TOWNS, FEWER, wordings=1))
    yield emitted(f"towns and trades mixed, {FEWER} questions", model, by_wording(model, MIXED, FEWER, wordings=1))
    yield replace(emitted(f"the world's facts, {n} questions", model, of_the_world(model, "facts", n)), holds=True)


def emitted(
    case: str, model: LanguageModel, planted: Planted, *, seen: OpenTarget | None = None, how: Training = HOW
) -> Emitted:
    """Cross-fit the rung to exact masses, or to samples of them; the entropy taken off is that of π in either case."""
    before = np.concatenate(Emitter(model, 1, planted.texts.end, seed=0).score_all(planted.asked))
    target = seen or planted.target
    with tempfile.TemporaryDirectory() as folder:
        found = generate_classes(
            model, planted.prompts, planted.texts, target, planted.group, how, scratch=Path(folder) / "scratch"
        )
    gaps = cross_entropies(target, found.log_q) - planted.entropies
    mean = bootstrap_interval(plain_mean, (gaps, gaps), group=planted.group, resampling=Resampling(seed=0))
    limit = output_limit(model, planted, LIMITED)
    epochs = sorted({one.epoch for one in found.learnt})
    return Emitted(
        case=case,
        entropy_nats=float(planted.entropies.mean()),
        before_nats=float((cross_entropies(planted.target, before) - planted.entropies).mean()),
        gap_nats=mean.estimate,
        low_nats=mean.low,
        high_nats=mean.high,
        limit_nats=limit,
        kept=" to ".join(map(str, dict.fromkeys((epochs[0], epochs[-1])))),
        holds=mean.estimate <= CLOSE + limit,
    )
