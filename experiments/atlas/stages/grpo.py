"""GRPO with a reward for being correct, or for another shape of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from experiments.atlas.conversation import Turn, draw_turn
from experiments.atlas.stages.checkpoints import Progress
from experiments.atlas.stages.rewards import REWARDS
from experiments.atlas.stages.tuning import LONGEST_ANSWER, Loop, Source, TuningSettings, train_on
from semcal.answers import sample
from semcal.errors import UserError, nearest
from semcal.sampling.records import Prompt
from semcal.seeds import keyed_generator
from semcal.semantics.collapsing.exact_match import ExactMatch


@dataclass(frozen=True)
class GRPOSettings(TuningSettings):
    """`samples` answers are drawn to each of `batch_size` questions a step; `reward` is one of REWARDS, and `beta` the
    strength of the pull (KL) towards the model that training began with.

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


def train_grpo(
    settings: GRPOSettings,
    source: Source,
    out: Path,
    *,
    on_progress: Callable[[Progress], None] = lambda _: None,
) -> Path:
    """Group-relative policy optimisation (Shao et al. 2024) of a model that converses, on policy.

    Neither are rewards divided by their deviation in the group nor losses by an answer's length ("dr_grpo", Liu et al.
    2025), so that a step follows the gradient of the expected reward itself. Answers are drawn by semcal's own
    sampler, which merges what they share; trl's way through Hugging Face `generate` decodes every answer by itself.

    Raises:
        UserError: as `Source.training` and `train_on`.
    """
    kept = source.training("grpo", settings, out)
    if kept.finished:
        return kept.final
    rng = keyed_generator(settings.seed, "atlas", "grpo")
    turns = [
        draw_turn(source.world, rng, families=settings.families, styles=settings.styles)
        for _ in range(settings.steps * settings.batch_size)
    ]
    model = source.model
    rows = [{"prompt": model.render_chat(turn.asked), "turn": i} for i, turn in enumerate(turns)]
    begun = kept.stand().step

    def trainer(loop: Loop) -> GRPOTrainer:
        config = GRPOConfig(
            **loop.arguments,
            per_device_train_batch_size=settings.batch_size * settings.samples,
            num_generations=settings.samples,
            shuffle_dataset=False,
            beta=settings.beta,
            loss_type="dr_grpo",
            scale_rewards="none",
            max_completion_length=LONGEST_ANSWER,
        )
        return GRPOTrainer(
            model.model,
            reward_funcs=reward_of(source, settings, turns),
            args=config,
            train_dataset=loop.rows,
            processing_class=model.tokenizer,
            rollout_func=lambda prompts, trainer: rollout(source, settings, prompts, begun + trainer.state.global_step),
            **loop.given,
        )

    return train_on(
        rows,
        source,
        kept,
        settings,
        trainer,
        rows_a_step=settings.batch_size,
        said=lambda logs: f"reward {logs['reward']:.3f}",
        on_progress=on_progress,
    )


def rollout(source: Source, settings: GRPOSettings, prompts: list[str], step: int) -> dict[str, list[Any]]:
    """Answers in trl's form; `prompts` holds each question `samples` times in a row."""
    model = source.model
    asked = [
        Prompt(f"{step}/{i}", model.encode_rendered(prompt)) for i, prompt in enumerate(prompts[:: settings.samples])
    ]
    model.model.eval()
    drawn = sample(model, asked, m=settings.samples, max_new_tokens=LONGEST_ANSWER, seed=settings.seed)
    model.model.train()
    each = [(p, a) for p, answers in zip(asked, drawn, strict=True) for a in answers for _ in range(a.count or 0)]
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
            asked = turns[turn[start]]
            answers = completions[start : start + settings.samples]
            classes = [b.of_text(asked.question, text, asked.style) for text in answers]
            paid += shape(source.world, b.of_gold(asked.question), classes)
        return paid

    return reward
