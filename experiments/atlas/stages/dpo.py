"""DPO on pairs of a model's own answers, one correct and one wrong."""

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.atlas.stages.source import LONGEST_ANSWER, AtlasSettings, Source
from experiments.atlas.world_questions import draw_turn
from experiments.train.preferences import pair_of, preference_stage
from experiments.train.tuning import Stage
from semcal.answers import sample
from semcal.errors import UserError
from semcal.sampling.records import Prompt
from semcal.seeds import keyed_generator
from semcal.semantics.collapsing.exact_match import ExactMatch

_AT_ONCE = 256  # questions
log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DPOSettings(AtlasSettings):
    """`samples` answers are drawn per question, and one pair is made of them; `beta` is the strength of the pull
    towards the model that they were drawn from, which is the reference."""

    steps: int = 60
    learning_rate: float = 2e-4
    beta: float = 0.1
    samples: int = 16


SMALL = {"steps": 300, "batch_size": 128, "learning_rate": 2e-5}


def dpo_stage(settings: DPOSettings, source: Source) -> Stage:
    """Direct preference optimisation (Rafailov et al. 2023) of a chat model; every pair is seen once.

    Raises:
        UserError: as `pairs`.
    """
    rows = pairs(source, settings, settings.steps * settings.batch_size)
    reference = Source.open(Path(source.model.path), conversing=True, device=str(source.model.device))
    return preference_stage(settings, rows, reference.model.model)


def pairs(source: Source, settings: DPOSettings, n: int) -> list[dict[str, Any]]:
    """n pairs, each of one correct and one wrong answer that the model gave to one question at temperature 1.

    Questions are as frequent as in training text; one that is always or never answered correctly makes no pair, and
    answers that do not end are left out.

    Raises:
        UserError: fewer than 1 % of the questions are answered both ways.
    """
    rng = keyed_generator(settings.seed, "atlas", "dpo")
    chosen: dict[str, Any] = {"families": settings.families, "styles": settings.styles}
    b, found, tried = ExactMatch(source.world.aliases), [], 0
    while len(found) < n:
        turns = [draw_turn(source.world, rng, **chosen) for _ in range(_AT_ONCE)]
        prompts = [
            Prompt(f"{tried + i}", source.model.encode_rendered(source.model.render_chat(turn.prompt)))
            for i, turn in enumerate(turns)
        ]
        drawn = sample(source.model, prompts, m=settings.samples, max_new_tokens=LONGEST_ANSWER, seed=settings.seed)
        for turn, answers in zip(turns, drawn, strict=True):
            ended = [a for a in answers if a.finish == "stop"]
            right = [b.of_text(turn.question.blind, a.text, turn.style) == b.of_gold(turn.question) for a in ended]
            if pair := pair_of(turn, ended, right, rng):
                found.append(pair.row)
        tried += len(turns)
        if len(found) < tried / 100:
            raise UserError(f"only {len(found)} of {tried} questions were answered both right and wrong; raise samples")
    log.info("%d pairs from %d questions", len(found), tried)
    return found[:n]
