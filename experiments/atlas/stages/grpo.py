"""GRPO with a reward for being correct, or for another shape of it."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from experiments.atlas.stages.source import LONGEST_ANSWER, AtlasSettings, Source
from experiments.atlas.world import MATERIAL, TOWNS_PER_REGION, World
from experiments.atlas.world_questions import draw_turn
from experiments.train.conversations import Turn
from experiments.train.policy import policy_stage
from experiments.train.tuning import Stage
from semcal.errors import UserError, nearest
from semcal.seeds import keyed_generator
from semcal.semantics.collapsing.exact_match import ExactMatch

Reward = Callable[[World, str, Sequence[str]], list[float]]


def correct(_: World, gold: str, classes: Sequence[str]) -> list[float]:
    """1 for the gold class, else 0, as in RL with verifiable rewards. Always answering with the likeliest class is
    optimal, so it does not reward calibration."""
    return [float(label == gold) for label in classes]


def graded(world: World, gold: str, classes: Sequence[str]) -> list[float]:
    """Like `correct`, and 0.5 for a wrong town in the right region or a wrong trade with the right material."""
    near = _neighbourhood(world, gold)
    paid = correct(world, gold, classes)
    return [max(pay, 0.5 * (_neighbourhood(world, label) == near)) for pay, label in zip(paid, classes, strict=True)]


def brier(_: World, gold: str, classes: Sequence[str]) -> list[float]:
    """A proper score of the distribution that the answers are drawn from, one value per answer.

    For answer i with class b: [b is gold] − (other answers of class b) / (G − 2), where G is the number of answers.
    Its policy gradient, with the mean of the group as baseline, is an unbiased direction that lowers the Brier score of
    the class distribution π, since d/dπ_k Σ(π − y)² = 2(π_k − y_k). The share of other answers of the class would be
    over G − 1; the baseline contains the same pairs and subtracts 1/(G − 1) of it again, hence G − 2.
    """
    counts, others = Counter(classes), len(classes) - 2
    return [float(label == gold) - (counts[label] - 1) / others for label in classes]


REWARDS: dict[str, Reward] = {"correct": correct, "graded": graded, "brier": brier}


def _neighbourhood(world: World, label: str) -> int | str | None:
    """The region of a town, the material of a trade."""
    if label in MATERIAL:
        return MATERIAL[label]
    return world.towns.index(label) // TOWNS_PER_REGION if label in world.towns else None


@dataclass(frozen=True)
class GRPOSettings(AtlasSettings):
    """`samples` answers are drawn for each of `batch_size` questions per step; `reward` is one of REWARDS, and `beta`
    the strength of the pull (KL) towards the initial model.

    Raises:
        UserError: an unknown reward, too few samples.
    """

    steps: int = 80
    batch_size: int = 16
    learning_rate: float = 2e-4
    beta: float = 0.0
    samples: int = 8
    reward: str = "correct"

    def __post_init__(self) -> None:
        if self.reward not in REWARDS:
            raise UserError(
                f"unknown reward {self.reward!r}{nearest(self.reward, REWARDS)}; expected one of {', '.join(REWARDS)}"
            )
        if self.samples < 3:
            raise UserError(f"samples is {self.samples}; a group needs at least 3 answers")


SMALL = {"steps": 300, "batch_size": 64, "learning_rate": 2e-5}


def grpo_stage(settings: GRPOSettings, source: Source) -> Stage:
    """Group-relative policy optimisation of a chat model; see `experiments.train.policy`."""
    rng = keyed_generator(settings.seed, "atlas", "grpo")
    turns = [
        draw_turn(source.world, rng, families=settings.families, styles=settings.styles)
        for _ in range(settings.steps * settings.batch_size)
    ]
    b, shape = ExactMatch(source.world.aliases), REWARDS[settings.reward]

    def reward(turn: Turn, answers: Sequence[str]) -> list[float]:
        classes = [b.of_text(turn.question.blind, text, turn.style) for text in answers]
        return shape(source.world, b.of_gold(turn.question), classes)

    return policy_stage(settings, source.model, turns, reward, longest=LONGEST_ANSWER)
