"""GRPO with a reward for being correct, or for another shape of it."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from transformers import Trainer
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from experiments.atlas.stages.tuning import LONGEST_ANSWER, Source, Stage, TuningSettings
from experiments.atlas.world import MATERIAL, TOWNS_PER_REGION, World
from experiments.atlas.world_questions import Turn, draw_turn
from semcal.answers import sample
from semcal.errors import UserError, nearest
from semcal.sampling.records import Prompt
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
class GRPOSettings(TuningSettings):
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
    """Group-relative policy optimisation (Shao et al. 2024) of a chat model, on policy.

    Rewards are not divided by their deviation in the group, nor losses by the length of an answer ("dr_grpo", Liu et
    al. 2025), so that a step follows the gradient of the expected reward itself. Answers come from semcal's own
    sampler, which decodes what they share once; trl's Hugging Face `generate` decodes every answer separately.
    """
    rng = keyed_generator(settings.seed, "atlas", "grpo")
    turns = [
        draw_turn(source.world, rng, families=settings.families, styles=settings.styles)
        for _ in range(settings.steps * settings.batch_size)
    ]

    def roll(prompts: list[str], trainer: Trainer) -> dict[str, list[Any]]:
        resumed = settings.steps - trainer.args.max_steps
        return rollout(source, settings, prompts, resumed + trainer.state.global_step)

    arguments = {
        "per_device_train_batch_size": settings.batch_size * settings.samples,
        "num_generations": settings.samples,
        "shuffle_dataset": False,
        "beta": settings.beta,
        "loss_type": "dr_grpo",
        "scale_rewards": "none",
        "max_completion_length": LONGEST_ANSWER,
    }
    return Stage(
        [{"prompt": source.model.render_chat(turn.prompt), "turn": i} for i, turn in enumerate(turns)],
        GRPOTrainer,
        GRPOConfig,
        arguments,
        given={"reward_funcs": reward_of(source, settings, turns), "rollout_func": roll},
        said=lambda logs: f"reward {logs['reward']:.3f}",
    )


def rollout(source: Source, settings: GRPOSettings, prompts: list[str], step: int) -> dict[str, list[Any]]:
    """Answers in trl's format; `prompts` holds each question `samples` times in a row."""
    model = source.model
    requests = [
        Prompt(f"{step}/{i}", model.encode_rendered(prompt)) for i, prompt in enumerate(prompts[:: settings.samples])
    ]
    model.model.eval()
    drawn = sample(model, requests, m=settings.samples, max_new_tokens=LONGEST_ANSWER, seed=settings.seed)
    model.model.train()
    each = [(p, a) for p, answers in zip(requests, drawn, strict=True) for a in answers for _ in range(a.count or 0)]
    return {
        "prompt_ids": [list(p.ids) for p, _ in each],
        "completion_ids": [list(a.ids) for _, a in each],
        "logprobs": [[0.0] * len(a.ids) for _, a in each],  # required, but read only if answers come from vLLM
    }


def reward_of(source: Source, settings: GRPOSettings, turns: list[Turn]) -> Callable[..., list[float | None]]:
    """The reward as trl calls it: the answers to one question are adjacent."""
    b, shape = ExactMatch(source.world.aliases), REWARDS[settings.reward]

    def reward(completions: list[str], turn: list[int], **_: Any) -> list[float | None]:
        paid: list[float | None] = []
        for start in range(0, len(completions), settings.samples):
            posed = turns[turn[start]]
            answers = completions[start : start + settings.samples]
            classes = [b.of_text(posed.question.blind, text, posed.style) for text in answers]
            paid += shape(source.world, b.of_gold(posed.question), classes)
        return paid

    return reward
