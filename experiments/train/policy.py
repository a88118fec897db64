"""GRPO: a policy gradient on a model's own answers, paid by a reward."""

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from transformers import Trainer
from trl.trainer.grpo_config import GRPOConfig
from trl.trainer.grpo_trainer import GRPOTrainer

from experiments.train.conversations import Turn
from experiments.train.tuning import Stage
from semcal.answers import sample
from semcal.models.checkpoint import LanguageModel
from semcal.sampling.records import STOP, Prompt

Reward = Callable[[Turn, Sequence[str]], list[float]]  # of the answers to one question


class PolicySettings(Protocol):
    """`samples` answers are drawn for each of `batch_size` questions per step; `beta` is the strength of the pull (KL)
    towards the initial model."""

    @property
    def seed(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def samples(self) -> int: ...
    @property
    def beta(self) -> float: ...


def policy_stage(
    settings: PolicySettings,
    model: LanguageModel,
    turns: Sequence[Turn],
    reward: Reward,
    *,
    longest: int,
    passes: int = 1,
    before_sampling: Callable[[], None] = lambda: None,
) -> Stage:
    """Group-relative policy optimisation (Shao et al. 2024) of a chat model, on policy.

    An answer that does not end within `longest` tokens is paid nothing. Rewards are not divided by their deviation in
    the group, nor losses by the length of an answer ("dr_grpo", Liu et al. 2025), so that a step follows the gradient
    of the expected reward itself. Answers come from semcal's own sampler, which decodes what they share once; trl's
    Hugging Face `generate` decodes every answer separately.

    Args:
        model: What answers are drawn from: the model in training, or a copy that `before_sampling` brings up to date.
        turns: `batch_size` per step, in the order of training.
        longest: Tokens of an answer.
        passes: Forward and backward passes that the answers of a step are divided into.
    """

    def roll(prompts: list[str], trainer: Trainer) -> dict[str, list[Any]]:
        before_sampling()
        resumed = settings.steps - trainer.args.max_steps
        return rollout(model, settings, prompts, resumed + trainer.state.global_step, longest)

    def paid(completions: list[str], turn: list[int], ended: list[bool], **_: Any) -> list[float | None]:
        found: list[float | None] = []  # the answers to one question are adjacent
        for start in range(0, len(completions), settings.samples):
            group = slice(start, start + settings.samples)
            rewards = reward(turns[turn[start]], completions[group])
            found += [r if e else 0.0 for r, e in zip(rewards, ended[group], strict=True)]
        return found

    arguments = {
        "per_device_train_batch_size": settings.batch_size * settings.samples // passes,
        "gradient_accumulation_steps": passes,
        "num_generations": settings.samples,
        "shuffle_dataset": False,
        "beta": settings.beta,
        "loss_type": "dr_grpo",
        "scale_rewards": "none",
        "max_completion_length": longest,
    }
    return Stage(
        [{"prompt": model.render_chat(turn.prompt), "turn": i} for i, turn in enumerate(turns)],
        GRPOTrainer,
        GRPOConfig,
        arguments,
        given={"reward_funcs": paid, "rollout_func": roll},
        said=lambda logs: f"reward {logs['reward']:.3f}",
    )


def rollout(
    model: LanguageModel, settings: PolicySettings, prompts: Sequence[str], step: int, longest: int
) -> dict[str, list[Any]]:
    """Answers in trl's format, and whether each ended; `prompts` holds each question `samples` times in a row."""
    requests = [
        Prompt(f"{step}/{i}", model.encode_rendered(prompt)) for i, prompt in enumerate(prompts[:: settings.samples])
    ]
    training = model.model.training
    model.model.eval()
    how = {"m": settings.samples, "max_new_tokens": longest, "seed": settings.seed}
    drawn = sample(model, requests, stop=model.turn_ends, **how)
    model.model.train(training)
    each = [(p, a) for p, answers in zip(requests, drawn, strict=True) for a in answers for _ in range(a.count or 0)]
    return {
        "prompt_ids": [list(p.ids) for p, _ in each],
        "completion_ids": [list(a.ids) for _, a in each],
        "ended": [a.finish == STOP for _, a in each],
        "logprobs": [[0.0] * len(a.ids) for _, a in each],  # required, but read only if answers come from vLLM
    }
