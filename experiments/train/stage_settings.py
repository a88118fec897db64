"""Settings of stages of training: those that all share, those of `semcal train --from`, and its presets."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from semcal.errors import UserError, nearest
from semcal.questions.question import STYLES

DTYPES = ("float32", "bfloat16", "float16")


@dataclass(frozen=True)
class TuningSettings:
    """Settings of every stage; a batch is counted in conversations, pairs or questions in one of the `styles`."""

    seed: int = 0
    steps: int = 100
    batch_size: int = 32
    learning_rate: float = 1e-4
    warmup: int = 10
    weight_decay: float = 0.0
    styles: tuple[str, ...] = STYLES
    checkpoints: int = 6


def settings_with(
    stage: str, settings: Any, given: Mapping[str, Any], names: Mapping[str, Sequence[str]], least: Mapping[str, int]
) -> Any:
    """The settings of a stage with those given in place of their own.

    Args:
        settings: A dataclass of the defaults.
        names: Setting -> the names that its list may hold.
        least: Setting -> its smallest value; 0 for those not named.

    Raises:
        UserError: an unknown setting, or a value of the wrong type or too small.
    """
    defaults = asdict(settings)
    for key in given:
        if key not in defaults:
            raise UserError(f"stage {stage} has no setting {key!r}{nearest(key, defaults)}; leave it out")
    checked = {k: _checked(k, v, defaults[k], names.get(k), least.get(k, 0)) for k, v in given.items()}
    return replace(settings, **checked)


def _checked(key: str, value: Any, default: Any, known: Sequence[str] | None, least: int) -> Any:
    """A value of the type of its default."""
    if isinstance(default, tuple):
        names = (value,) if isinstance(value, str) else tuple(value) if isinstance(value, list | tuple) else ()
        for name in names:
            if name not in (known or ()):
                raise UserError(
                    f"{key}: unknown name {name!r}{nearest(str(name), known or ())}; one of {', '.join(known or ())}"
                )
        if not names:
            raise UserError(f"{key} is {value!r}; expected some of {', '.join(known or ())}, e.g. [{default[0]}]")
        return names
    if isinstance(default, float) and isinstance(value, int) and not isinstance(value, bool):
        value = float(value)
    if type(value) is not type(default) or (isinstance(value, int | float) and not least <= value < math.inf):
        at_least = f" of at least {least}" if least else ""
        raise UserError(f"{key} is {value!r}; expected a value{at_least} such as {default!r}")
    return value


@dataclass(frozen=True)
class AdapterSettings(TuningSettings):
    """`rank` of the adapter; `held_out`, the share of groups of questions that evaluation asks; `dtype` of the weights,
    in training and as they are written."""

    styles: tuple[str, ...] = ("concise", "sentence")
    rank: int = 16
    held_out: float = 0.5
    dtype: str = "float32"


@dataclass(frozen=True)
class GoldSettings(AdapterSettings):
    """SFT: a batch is counted in conversations."""

    steps: int = 240
    batch_size: int = 8
    learning_rate: float = 2e-4


@dataclass(frozen=True)
class PairSettings(AdapterSettings):
    """DPO: a batch is counted in pairs.

    `pairs` are wanted, each out of `samples` answers of at most `longest` tokens to one question; there are fewer if
    `questions` of these, or all, have been asked before. Pairs are repeated as the steps need.
    """

    steps: int = 60
    batch_size: int = 8
    learning_rate: float = 1e-4
    beta: float = 0.1
    pairs: int = 240
    questions: int = 1000
    samples: int = 8
    longest: int = 32


@dataclass(frozen=True)
class RewardSettings(AdapterSettings):
    """GRPO: a batch is counted in questions, each with `samples` answers of at most `longest` tokens, of which
    `at_once` are differentiated in one pass.

    Answers that are all right or all wrong teach nothing, so training is on questions that the initial model answers
    both right and wrong in `samples` answers: on `pairs` of them, or as many as `questions` hold, over and over.
    """

    steps: int = 80
    batch_size: int = 8
    learning_rate: float = 2e-4
    beta: float = 0.0
    pairs: int = 240
    questions: int = 1000
    samples: int = 8
    longest: int = 32
    at_once: int = 16

    def __post_init__(self) -> None:
        if self.batch_size * self.samples % self.at_once:
            raise UserError(
                f"at_once is {self.at_once}; expected a divisor of batch_size · samples = "
                f"{self.batch_size * self.samples}"
            )


STAGES: dict[str, type[AdapterSettings]] = {"sft": GoldSettings, "dpo": PairSettings, "grpo": RewardSettings}
PRESETS: dict[str, dict[str, dict[str, Any]]] = {
    "cpu": {"sft": {}, "dpo": {}, "grpo": {}},
    "gpu": {
        "sft": {"dtype": "bfloat16", "steps": 500, "batch_size": 32},
        "dpo": {"dtype": "bfloat16", "steps": 200, "batch_size": 32, "pairs": 3200, "questions": 20000, "samples": 16},
        "grpo": {"dtype": "bfloat16", "steps": 200, "batch_size": 32, "pairs": 3200, "questions": 20000, "samples": 16}
        | {"at_once": 64},
    },
}
_LEAST = {"steps": 1, "batch_size": 1, "samples": 2, "rank": 1, "longest": 1, "at_once": 1, "pairs": 1, "questions": 1}


def settings_for(stage: str, preset: str, /, **given: Any) -> AdapterSettings:
    """The settings of a stage: those of the preset, replaced by those given.

    "cpu" is sized for a model of 270 million parameters on two cores, "gpu" for one GPU (docs/training.md).

    Raises:
        UserError: unknown stage, preset or setting; a value of the wrong type, or out of range.
    """
    for name, known, what in ((stage, STAGES, "stage"), (preset, PRESETS, "preset")):
        if name not in known:
            raise UserError(f"unknown {what} {name!r}{nearest(name, known)}; expected one of {', '.join(known)}")
    defaults = replace(STAGES[stage](), **PRESETS[preset][stage])
    settings = settings_with(stage, defaults, given, {"styles": STYLES}, _LEAST)
    if settings.dtype not in DTYPES:
        hint = nearest(settings.dtype, DTYPES)
        raise UserError(f"unknown dtype {settings.dtype!r}{hint}; expected one of {', '.join(DTYPES)}")
    if not 0 < settings.held_out < 1:
        raise UserError(f"held_out is {settings.held_out}; expected a share between 0 and 1 such as 0.5")
    return settings
