"""What a study can say: a grid of models × datasets × styles × semantics, and how each cell of it is measured."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, model_validator

from experiments.config.collapsing_functions import ExactConfig, SemanticsConfig
from experiments.config.datasets import ContinuationConfig, DatasetConfig, default_semantics
from experiments.config.settings import Settings, slug
from probes.rungs.registry import RUNGS, rungs_reading
from semcal.calibration.resampling import Resampling
from semcal.errors import nearest
from semcal.positions import (
    ALL_QUESTION_TOKENS,
    DEFAULT_HOOKS,
    LAST_PROMPT_TOKEN,
    check_hook,
    check_position,
    reads_heads_only,
    reads_residual,
)
from semcal.questions.question import CONTINUATION

Style = Literal["concise", "sentence", "cot", "continuation"]
Stage = Literal["base", "sft", "dpo", "grpo", "rl", "instruct"]
LABELS = ("stage", "lineage", "step")  # keys of a model that describe it and affect no sample


# ---- who answers ---------------------------------------------------------------------------------------------------


class ServedConfig(Settings):
    """How requests are sent to a served model; see `semcal.models.served.Endpoint`."""

    model: str = ""
    server: Literal["auto", "vllm", "sglang", "llama.cpp", "transformers", "openai"] = "auto"
    concurrency: Annotated[int, Field(ge=1)] = 8
    tries: Annotated[int, Field(ge=1)] = 6
    timeout: Annotated[float, Field(gt=0)] = 120.0


class ModelConfig(Settings):
    """A checkpoint. `path` is a local folder, a Hub id, `atlas:base` for the bundled organism, or the address of an
    OpenAI-compatible server such as http://localhost:8000/v1.

    `stage`, `lineage` (shared by models that descend from one base) and `step` (of training) tell `semcal verdict`
    which models to compare; no sample depends on them.
    """

    path: str
    name: str = ""
    stage: Stage | None = None
    lineage: str = ""
    step: Annotated[int, Field(ge=0)] | None = None
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    prompt: Literal["few-shot", "chat"] = "few-shot"
    allow_pickle: bool = False
    trust_remote_code: bool = False
    served: ServedConfig = ServedConfig()

    @property
    def is_served(self) -> bool:
        return self.path.startswith(("http://", "https://"))

    @model_validator(mode="after")
    def _named(self) -> ModelConfig:
        if self.served != ServedConfig() and not self.is_served:
            raise ValueError(f"served needs the address of a server as path, got {self.path!r}; leave served out")
        if self.is_served and self.prompt == "chat":
            raise ValueError("a served model has only a completions endpoint; set its prompt to few-shot")
        if not self.name:
            revision = f"@{self.revision}" if self.revision else ""
            base = Path(self.path).name if Path(self.path).exists() else self.served.model or self.path
            object.__setattr__(self, "name", slug(base + revision))
        return self


# ---- how it is measured --------------------------------------------------------------------------------------------


class Lengths(Settings):
    """The most new tokens of a sample, for each style."""

    concise: Annotated[int, Field(ge=1)] = 32
    sentence: Annotated[int, Field(ge=1)] = 64
    cot: Annotated[int, Field(ge=1)] = 256
    continuation: Annotated[int, Field(ge=1)] = 32


class ExactSearchConfig(Settings):
    """Enumerate answers instead of sampling them; see `semcal.sampling.enumeration`."""

    epsilon: Annotated[float, Field(gt=0, lt=1)] = 0.01
    row_budget: Annotated[int, Field(ge=1)] = 2000


class SamplingConfig(Settings):
    """`max_new_tokens` is one number for all styles, or one for each. Without `stop`, the style sets the stop strings.

    `max_rows` is the number of distinct answers decoded in one pass; by default it suits the device. With `exact` the
    answers are enumerated with their probabilities, and m is not used.
    """

    m: Annotated[int, Field(ge=2)] = 50
    temperature: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1.0
    top_k: Annotated[int, Field(ge=1)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] | Lengths = Lengths()
    stop: list[Annotated[str, Field(min_length=1)]] | None = None
    max_rows: Annotated[int, Field(ge=1)] | None = None
    exact: ExactSearchConfig | None = None
    shard_size: Annotated[int, Field(ge=1)] = 256

    def length(self, style: str) -> int:
        """The most new tokens of an answer in this style."""
        if isinstance(self.max_new_tokens, int):
            return self.max_new_tokens
        return getattr(self.max_new_tokens, style)


class PromptingConfig(Settings):
    """With `vary: question` each question draws its own exemplars. With `vary: run` all questions of a run share them,
    so the model reads them only once; since they then influence all answers, repeat the study with other seeds."""

    shots: Annotated[int, Field(ge=0)] = 4
    exemplars: Annotated[int, Field(ge=0)] = 32
    vary: Literal["question", "run"] = "question"

    @model_validator(mode="after")
    def _enough(self) -> PromptingConfig:
        if self.shots > self.exemplars:
            raise ValueError(
                f"shots is {self.shots} but exemplars is {self.exemplars}; set exemplars to at least shots"
            )
        return self


class CaptureConfig(Settings):
    """`hooks` are names of TransformerLens as shell-style patterns; `semcal.positions` lists the positions."""

    hooks: Annotated[list[str], Field(min_length=1)] = Field(default=list(DEFAULT_HOOKS))
    positions: list[str] = Field(default=[LAST_PROMPT_TOKEN])
    dtype: Literal["float32", "float16"] = "float32"

    @model_validator(mode="after")
    def _known(self) -> CaptureConfig:
        for key, names, check in (("hooks", self.hooks, check_hook), ("positions", self.positions, check_position)):
            for name in names:
                try:
                    check(name)
                except ValueError as error:
                    raise ValueError(f"capture.{key}: {error}") from None
        twice = next((p for p in self.positions if self.positions.count(p) > 1), None)
        if twice is not None:
            raise ValueError(f"capture.positions: {twice!r} is duplicated; list each position once")
        return self

    def identity(self) -> dict[str, Any]:
        """What the stored activations depend on: part of the content key of a run, which must not change."""
        return {"positions": self.positions} | self.model_dump(exclude_defaults=True)


class CalibrationConfig(Settings):
    """`delta` is the calibration error that the equivalence test tries to rule out; `detail_draws` is the number of
    resamples and simulated data sets for the detailed analyses."""

    bootstrap: Annotated[int, Field(ge=10)] = 1000
    null_draws: Annotated[int, Field(ge=10)] = 1000
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95
    delta: Annotated[float, Field(gt=0, lt=1)] = 0.05
    detail_draws: Annotated[int, Field(ge=10)] = 200

    def resampling(self, seed: int) -> Resampling:
        """Of headline figures."""
        return Resampling(self.bootstrap, self.null_draws, self.level, seed)

    def detail(self, seed: int) -> Resampling:
        """Of the figures behind the headline."""
        return self.resampling(seed).of(self.detail_draws)


_BASELINES_OF_THE_MODEL = ("first-token", "random-init", "step-0")
Target = Literal["classes", "b_confidence", "entropy", "ranked", "n_classes", "mode_correct"]


def _rung(name: str) -> str:
    if name not in RUNGS:
        raise ValueError(f"{name!r} is not a valid rung{nearest(name, RUNGS)}; expected one of {', '.join(RUNGS)}")
    return name


Rung = Annotated[str, AfterValidator(_rung)]


class ProbesConfig(Settings):
    """`rungs` other than linear are fitted to targets that are distributions (classes, ranked, mode_correct) at
    `rung_layers` alone; without these, at the middle layer and the last. Attention reads all_question_tokens.

    The rungs lora and lens and the baselines first-token, random-init and step-0 need the model, and read the last
    prompt token: LoRA is fitted once, to the whole model and without a control task; the lens to classes at every
    residual stream captured. `step0` is the checkpoint before training: a folder, ID@REVISION on the Hub, or @REVISION
    of the model's own id. `device` is where probes are fitted: auto is CUDA where it is available, else the CPU.
    """

    enabled: bool = True
    targets: list[Target] = Field(default=["classes", "b_confidence", "entropy"])
    rungs: list[Rung] = Field(default=["linear"])
    rung_layers: list[str] = Field(default=[])
    baselines: list[Literal["marginal", "tfidf", "first-token", "random-init", "step-0"]] = Field(default=["tfidf"])
    step0: str = ""
    folds: Annotated[int, Field(ge=2)] = 5
    max_classes: Annotated[int, Field(ge=2)] = 100
    permutations: Annotated[int, Field(ge=0)] = 50
    device: str = "auto"

    @model_validator(mode="after")
    def _before_training(self) -> ProbesConfig:
        if "step-0" in self.baselines and not self.step0:
            raise ValueError("probes.baselines: step-0 is a checkpoint before training; say which in probes.step0")
        if self.step0 and "step-0" not in self.baselines:
            raise ValueError(f"probes.step0 is {self.step0!r}, which no baseline reads; add step-0 to probes.baselines")
        return self

    @property
    def reads_model(self) -> list[str]:
        """The rungs and baselines for which the model must be loaded."""
        reading = (*rungs_reading("model"), *_BASELINES_OF_THE_MODEL)
        return [name for name in (*self.rungs, *self.baselines) if name in reading]


class PublishedConfig(Settings):
    """What a paper reports for a cell of the grid: shown next to our own figure and used in no computation."""

    model: str
    dataset: str
    style: Style
    smece: Annotated[float, Field(ge=0, le=1)]
    source: Annotated[str, Field(min_length=1)]

    @property
    def cell(self) -> tuple[str, str, str]:
        return self.model, self.dataset, self.style


class TrackingConfig(Settings):
    wandb: Literal["disabled", "offline", "online"] = "disabled"
    project: str = "semcal"
    entity: str | None = None


class Study(Settings):
    """A grid of models × datasets × styles × semantics, and how each cell is measured."""

    name: str
    models: Annotated[list[ModelConfig], Field(min_length=1)]
    datasets: Annotated[list[DatasetConfig], Field(min_length=1)]
    styles: Annotated[list[Style], Field(min_length=1)]
    semantics: Annotated[list[SemanticsConfig], Field(min_length=1)] | None = None  # None: each dataset's default
    seed: int = 0
    output: str = "runs"
    on_long_prompt: Literal["refuse", "drop"] = "refuse"
    sampling: SamplingConfig = SamplingConfig()
    prompting: PromptingConfig = PromptingConfig()
    capture: CaptureConfig = CaptureConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    probes: ProbesConfig = ProbesConfig()
    tracking: TrackingConfig = TrackingConfig()
    published: list[PublishedConfig] = Field(default=[])

    @model_validator(mode="after")
    def _possible(self) -> Study:
        for what, names in (
            ("models", [m.name for m in self.models]),
            ("datasets", [d.name for d in self.datasets]),
            ("styles", [str(s) for s in self.styles]),
            ("semantics", [s.label for s in self.semantics or ()]),
        ):
            twice = next((n for n in names if names.count(n) > 1), None)
            if twice is not None:
                raise ValueError(f"{what}: {twice!r} is duplicated; give each a name of its own")
        continuations = [d.name for d in self.datasets if isinstance(d, ContinuationConfig)]
        if continuations and (set(self.styles) != {CONTINUATION} or len(continuations) < len(self.datasets)):
            raise ValueError(
                f"datasets: {continuations[0]!r} is a continuation task, whose only style is 'continuation'; set "
                "styles to [continuation] and move other datasets to another study"
            )
        if not continuations and CONTINUATION in self.styles:
            raise ValueError("styles: 'continuation' needs a dataset of kind continuation")
        if continuations and any(isinstance(s, ExactConfig) for s in self.semantics or [ExactConfig()]):
            raise ValueError("semantics: exact match does not suit continuations; use [{kind: kth-word, k: 1}]")
        for served in (m for m in self.models if m.is_served):
            if self.capture.positions:
                raise ValueError(
                    f"models: {served.name!r} is served, so nothing can be captured; set capture.positions to [] and "
                    "probes.enabled to false"
                )
            if self.sampling.exact:
                raise ValueError(f"models: {served.name!r} is served and can only be sampled; leave sampling.exact out")
        if not self.capture.positions and self.probes.enabled:
            raise ValueError("capture.positions is empty, so there is nothing to probe; set probes.enabled to false")
        if self.probes.enabled and reads_heads_only(self.capture.hooks):
            raise ValueError("capture.hooks captures only heads, which probes do not read; set probes.enabled to false")
        of_model = self.probes.reads_model
        if self.probes.enabled and of_model and LAST_PROMPT_TOKEN not in self.capture.positions:
            raise ValueError(
                f"probes: {of_model[0]} reads the last prompt token; add {LAST_PROMPT_TOKEN} to capture.positions"
            )
        if self.probes.enabled and "lens" in of_model and not reads_residual(self.capture.hooks):
            raise ValueError(
                "probes.rungs: lens reads the residual stream; add blocks.*.hook_resid_post to capture.hooks"
            )
        attentive = "attention" in self.probes.rungs
        if self.probes.enabled and self.capture.positions == [ALL_QUESTION_TOKENS] and not attentive:
            raise ValueError(
                "capture.positions holds only all_question_tokens, which linear probes do not read; add a position of "
                "one token, or attention to probes.rungs, or set probes.enabled to false"
            )
        if self.probes.enabled and attentive and ALL_QUESTION_TOKENS not in self.capture.positions:
            raise ValueError(
                f"probes.rungs: attention reads every token of the question; add {ALL_QUESTION_TOKENS} to "
                "capture.positions"
            )
        self._published_in_the_grid()
        return self

    def _published_in_the_grid(self) -> None:
        for i, figure in enumerate(self.published):
            for key, name, known in (
                ("model", figure.model, [m.name for m in self.models]),
                ("dataset", figure.dataset, [d.name for d in self.datasets]),
                ("style", figure.style, [str(s) for s in self.styles]),
            ):
                if name not in known:
                    raise ValueError(
                        f"published.{i}: {key} {name!r} is not in the grid{nearest(name, known)}; remove figures of "
                        "cells that the study does not run"
                    )
            if figure.cell in {other.cell for other in self.published[:i]}:
                raise ValueError(f"published.{i}: {' · '.join(figure.cell)} is duplicated; keep one figure per cell")

    @property
    def folder(self) -> Path:
        return Path(self.output) / self.name

    def cells(self) -> list[Cell]:
        """The cells of the grid. Models vary slowest, semantics fastest, so that each model is loaded once."""
        published = {figure.cell: figure for figure in self.published}
        keys = ("seed", "on_long_prompt", "sampling", "prompting", "capture", "calibration", "probes", "tracking")
        return [
            Cell(
                study=self.name,
                model=model,
                dataset=dataset,
                style=style,
                semantics=semantics,
                published=published.get((model.name, dataset.name, style)),
                folder=str(self.folder / slug("__".join((model.name, dataset.name, style, semantics.label)))),
                **{key: getattr(self, key) for key in keys},
            )
            for model, dataset, style in itertools.product(self.models, self.datasets, self.styles)
            for semantics in self.semantics or [default_semantics(dataset)]
        ]


class Cell(Settings):
    """One run: one model × dataset × style × B. The config.yaml of a run holds it."""

    study: str
    model: ModelConfig
    dataset: DatasetConfig
    style: Style
    semantics: SemanticsConfig
    seed: int
    on_long_prompt: Literal["refuse", "drop"]
    sampling: SamplingConfig
    prompting: PromptingConfig
    capture: CaptureConfig
    calibration: CalibrationConfig
    probes: ProbesConfig
    tracking: TrackingConfig
    published: PublishedConfig | None = None
    folder: str

    @property
    def enumerated(self) -> bool:
        """Whether answers are enumerated with their probabilities rather than sampled."""
        return self.sampling.exact is not None

    @property
    def label(self) -> str:
        """Model, dataset and style, in words."""
        parts = [self.model.name, self.dataset.name]
        parts += [] if self.style == CONTINUATION else [self.style]
        parts += [] if isinstance(self.semantics, ExactConfig) else [self.semantics.label]
        return " · ".join(parts)
