"""The study: a grid of models × datasets × styles × semantics and how each cell of it is measured; how its file is
read; what the questions of its datasets are.

Whatever is wrong with a file is reported in one line, before anything is loaded. The line names the key, the value
found, and the nearest valid name.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, get_args

import yaml
from pydantic import AfterValidator, BaseModel, Field, ValidationError, model_validator

from experiments.atlas.world import MAX_STOPS, RING_STOPS
from experiments.atlas.world_questions import as_written, atlas_questions, world_of
from experiments.config.collapsing_functions import REGISTRY, CollapseConfig, ExactConfig, SemanticsConfig
from experiments.config.settings import Settings, slug
from probes.rungs.registry import RUNGS, rungs_reading
from semcal.calibration.resampling import Resampling
from semcal.errors import UserError, nearest
from semcal.positions import (
    ALL_QUESTION_TOKENS,
    DEFAULT_HOOKS,
    LAST_PROMPT_TOKEN,
    check_hook,
    check_position,
    in_answer,
    reads_heads_only,
    reads_residual,
)
from semcal.questions.alias_lists import read_alias_lists
from semcal.questions.continuation import read_continuations
from semcal.questions.load_dataset import build, read_table
from semcal.questions.named.data_folder import found
from semcal.questions.named.named_datasets import NAMED, read_named, why_not
from semcal.questions.question import CONTINUATION, Dataset

Style = Literal["concise", "sentence", "cot", "continuation"]
Stage = Literal["base", "sft", "dpo", "grpo", "rl", "instruct"]
LABELS = ("stage", "lineage", "step", "arm")  # keys of a model that describe it and affect no sample


# ---- who answers ---------------------------------------------------------------------------------------------------


class ServedConfig(Settings):
    """How requests are sent to a served model; see `semcal.models.served.Endpoint`."""

    model: str = ""
    server: Literal["auto", "vllm", "sglang", "llama.cpp", "transformers", "openai"] = "auto"
    concurrency: Annotated[int, Field(ge=1)] = 8
    tries: Annotated[int, Field(ge=1)] = 6
    timeout: Annotated[float, Field(gt=0)] = 120.0


class ModelConfig(Settings):
    """A checkpoint. `path` is a local folder (of a model, or of an adapter alone), a Hub id, `atlas:base` for the
    bundled organism, or the address of an OpenAI-compatible server such as http://localhost:8000/v1.

    `stage`, `lineage` (shared by models that descend from one base), `step` (of training) and `arm` (of models of one
    lineage that were trained alike but for one thing) tell `semcal verdict` which models to compare; no sample depends
    on them. The bundled organism brings its own stage and lineage. `adapter` says whether an adapter that lies beside
    full weights is merged into them or left out. With `engine: vllm` answers are sampled by vLLM in an environment of
    its own, whose interpreter `python` names, or by a running `vllm serve` whose address is `served_at`.
    """

    path: str
    name: str = ""
    stage: Stage | None = None
    lineage: str = ""
    step: Annotated[int, Field(ge=0)] | None = None
    arm: str = ""
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    prompt: Literal["few-shot", "chat"] = "few-shot"
    allow_pickle: bool = False
    trust_remote_code: bool = False
    adapter: Literal["apply", "ignore"] | None = None
    engine: Literal["hf", "vllm"] = "hf"
    python: str | None = None
    served_at: str | None = None
    served: ServedConfig = ServedConfig()

    @property
    def is_served(self) -> bool:
        return self.path.startswith(("http://", "https://"))

    @model_validator(mode="after")
    def _named(self) -> ModelConfig:
        if self.served != ServedConfig() and not self.is_served and self.served_at is None:
            raise ValueError(f"served needs the address of a server as path, got {self.path!r}; leave served out")
        if self.is_served and self.adapter:
            raise ValueError("a server has its own adapters; leave adapter out")
        if self.is_served and self.engine != "hf":
            raise ValueError("a server has its own engine; leave engine out, or give the checkpoint as path")
        if self.python is not None and self.engine != "vllm":
            raise ValueError(f"python names the interpreter of engine vllm; leave it out of engine {self.engine}")
        if self.served_at is not None:
            self._check_served_at(self.served_at)
        if self.is_served and self.prompt == "chat":
            raise ValueError("a served model has only a completions endpoint; set its prompt to few-shot")
        stage = self.path.removeprefix("atlas:")
        if stage != self.path and stage in get_args(Stage):  # what is known of the bundled organism
            object.__setattr__(self, "stage", self.stage or stage)
            object.__setattr__(self, "lineage", self.lineage or "atlas")
        if not self.name:
            revision = f"@{self.revision}" if self.revision else ""
            named = self.served.model if self.is_served else ""
            base = Path(self.path).name if Path(self.path).exists() else named or self.path
            object.__setattr__(self, "name", slug(base + revision))
        return self

    def _check_served_at(self, address: str) -> None:
        if self.engine != "vllm":
            raise ValueError(f"served_at is the address of a vLLM; set engine to vllm (it is {self.engine})")
        if not re.match(r"https?://[^/]", address):
            raise ValueError(f"served_at is {address!r}, which is no address such as http://localhost:8000")
        if self.python is not None or self.device != "auto":
            key = "device" if self.python is None else "python"
            raise ValueError(f"served_at names a running vLLM, which has its own {key}; leave {key} out")


# ---- what is asked -------------------------------------------------------------------------------------------------

# The known datasets, as their registry lists them.
if TYPE_CHECKING:
    NamedKind = str
else:
    NamedKind = Literal[tuple(NAMED)]


class _Dataset(Settings):
    """`in_distribution` says whether the theory expects a base model to be calibrated on these questions; by default
    it is false for TruthfulQA and the atlas myths, whose common answers are wrong on purpose, and else true."""

    name: str = ""
    n: Annotated[int, Field(ge=1)] | None = None
    seed: int = 0
    in_distribution: bool | None = None

    @model_validator(mode="after")
    def _named(self) -> Any:
        if not self.name:
            object.__setattr__(self, "name", self.default_name())
        if self.in_distribution is None:
            object.__setattr__(self, "in_distribution", self.is_in_distribution())
        return self

    def is_in_distribution(self) -> bool:
        """The default of `in_distribution`."""
        return True

    def default_name(self) -> str:
        """That of its file."""
        return slug(Path(self.path).stem)  # type: ignore[attr-defined]


class NamedConfig(_Dataset):
    """A known dataset: the original file at `path`, or, without a path, that in $SEMCAL_DATA or, where it is not there,
    `split` of the Hub's copy at `revision`. The split of lre is its relation, that of sums their size.

    `aliases` is a file with further lists of equivalent forms; see `semcal.questions.alias_lists`. `exclude` is a table
    of questions that a model was trained on; none of their groups is evaluated.
    """

    kind: NamedKind
    path: str | None = None
    split: str | None = None
    revision: str | None = None
    aliases: str | None = None
    exclude: str | None = None

    def default_name(self) -> str:
        own = NAMED[self.kind].rows is not None
        return slug(f"{self.kind}-{self.split or Path(self.path or '').stem}").rstrip("-") if own else self.kind

    def is_in_distribution(self) -> bool:
        return NAMED[self.kind].in_distribution

    @model_validator(mode="after")
    def _one_place(self) -> Any:
        if self.path is not None and (self.split or self.revision):
            raise ValueError(
                f"datasets: {self.kind} is read from path {self.path!r}, so split and revision, which choose a version "
                "on the Hub, do nothing; remove them or path"
            )
        return self


class TableConfig(_Dataset):
    """The user's own questions; see `semcal.questions.load_dataset.read_table`.

    `aliases` and `exclude` are as in `NamedConfig`. `exemplars` is a table of questions that few-shot prompts show;
    none of their groups is evaluated.
    """

    kind: Literal["jsonl", "csv", "parquet"]
    path: str
    aliases: str | None = None
    exclude: str | None = None
    exemplars: str | None = None


class ContinuationConfig(_Dataset):
    """`split` is a regular expression between documents; see `semcal.questions.read_continuations`."""

    kind: Literal["continuation"]
    path: str
    split: str = r"\n\s*\n"
    prompt_words: list[Annotated[int, Field(ge=1)]] = Field(default=[24], min_length=1)
    answer_words: Annotated[int, Field(ge=1)] = 8


class AtlasConfig(_Dataset):
    """Questions about the bundled world. The training texts of the organism state half of the `myths` wrongly; `rings`
    and `shuffles` are routes of another world, which only the arms of `semcal train atlas --stage arm` know.

    One difficulty alone: `stops` of routes, rings and shuffles; of facts and myths `exposure`, the quarter of persons
    whom training text names most often or most rarely, or persons whom it never names.
    """

    kind: Literal["atlas"]
    family: Literal["facts", "routes", "myths", "rings", "shuffles"]
    stops: Annotated[int, Field(ge=1, le=MAX_STOPS)] | None = None
    exposure: Literal["often", "rarely", "never"] | None = None
    world_seed: int = 0

    @model_validator(mode="after")
    def _of_its_family(self) -> AtlasConfig:
        of_persons = self.family in ("facts", "myths")
        if self.stops is not None and of_persons:
            raise ValueError(f"stops is of routes, rings and shuffles; {self.family} have exposure")
        if self.exposure is not None and not of_persons:
            raise ValueError(f"exposure is of facts and myths; {self.family} have stops (1 to {self._most_stops})")
        if self.stops is not None and self.stops > self._most_stops:
            raise ValueError(f"{self.family} have 1 to {self._most_stops} stops")
        return self

    @property
    def _most_stops(self) -> int:
        return RING_STOPS if self.family in ("rings", "shuffles") else MAX_STOPS

    def default_name(self) -> str:
        which = f"-{self.stops}-stop" if self.stops else f"-{self.exposure}" if self.exposure else ""
        return f"atlas-{self.family}{which}"

    def is_in_distribution(self) -> bool:
        return self.family != "myths"


DatasetConfig = Annotated[NamedConfig | TableConfig | ContinuationConfig | AtlasConfig, Field(discriminator="kind")]


def default_semantics(config: DatasetConfig) -> CollapseConfig:
    """The B of a dataset where the study names none; a study with a dataset that has no default names one."""
    kind = NAMED[config.kind].semantics if isinstance(config, NamedConfig) else "exact"
    return next(b for b in REGISTRY if b.model_fields["kind"].default == kind)()  # pyright: ignore[reportCallIssue]


def load_dataset(config: DatasetConfig, prompting: PromptingConfig) -> Dataset:
    """The questions of a dataset, with exemplars for few-shot prompts; see `semcal.questions.load_dataset.build`. Of
    a table of your own at most a tenth is set aside, but as many as a prompt shows.

    Raises:
        UserError: a file that is missing or not in its format, too few questions.
    """
    exemplars = prompting.exemplars
    if isinstance(config, AtlasConfig):
        world, n = world_of(config.family, config.world_seed), config.n or 1000
        # An exemplar takes the other questions of its group with it, hence the surplus.
        which = config.model_dump(include={"seed", "stops", "exposure"})
        questions = atlas_questions(world, config.family, n + 10 * exemplars, **which)
        built = build(config.name, questions, n=n, exemplars=exemplars, seed=config.seed, aliases=world.aliases)
        return replace(built, exemplars=tuple(as_written(world, e, config.seed) for e in built.exemplars))
    if isinstance(config, ContinuationConfig):
        how = config.model_dump(include={"split", "prompt_words", "answer_words"})
        questions = read_continuations(found(config.path), **how)
        built = build(config.name, questions, n=config.n, exemplars=0, seed=config.seed)
        return replace(built, exemplars=(), alias_lists=())  # excerpts of a text have no other forms
    if isinstance(config, NamedConfig):
        path = None if config.path is None else found(config.path)
        questions = read_named(config.kind, path, split=config.split, revision=config.revision)
    else:
        questions = read_table(found(config.path))
        exemplars = min(exemplars, max(prompting.shots, len(questions) // 10))
    trained = () if config.exclude is None else read_table(Path(config.exclude))
    if isinstance(config, TableConfig) and config.exemplars is not None:
        shown = read_table(found(config.exemplars))
        built = build(config.name, questions, n=config.n, exemplars=0, seed=config.seed, trained=[*trained, *shown])
        return _with_aliases(replace(built, exemplars=tuple(shown)), config)
    built = build(config.name, questions, n=config.n, exemplars=exemplars, seed=config.seed, trained=trained)
    return _with_aliases(built, config)


def _with_aliases(built: Dataset, config: NamedConfig | TableConfig) -> Dataset:
    if config.aliases is None:
        return built
    return replace(built, alias_lists=(*built.alias_lists, *read_alias_lists(Path(config.aliases))))


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


_BASELINES_OF_THE_MODEL = ("embedding", "first-token", "random-init", "step-0")
Baseline = Literal["tfidf", "embedding", "first-token", "random-init", "step-0", "other-model"]
Target = Literal["classes", "b_confidence", "entropy", "ranked", "n_classes", "mode_correct"]


def _rung(name: str) -> str:
    if name not in RUNGS:
        raise ValueError(f"{name!r} is not a valid rung{nearest(name, RUNGS)}; expected one of {', '.join(RUNGS)}")
    return name


Rung = Annotated[str, AfterValidator(_rung)]


class ProbesConfig(Settings):
    """`target` says what the target classes is: closed, one vocabulary of `max_classes` in which the lightest are
    pooled; or open, all classes of the run, for which the bilinear rung takes the place of the linear one, and other
    rungs that need a vocabulary are not fitted; auto is open where more than 5 % of the mass would be pooled.

    `rungs` other than linear and bilinear are fitted to targets that are distributions (classes, ranked, mode_correct)
    at `rung_layers` alone; without these, at the middle layer and the last. Attention reads all_question_tokens.

    The rungs generative, lora and lens and the baselines embedding, first-token, random-init and step-0 need the model.
    The baseline embedding reads the mean input embedding of the question's tokens, the others the last prompt token.
    Adapters are fitted once, to the whole model and without a control task: those of the generative rung to all
    classes, however many, on prompts whose `exemplars` are dropped or kept. The lens is fitted to classes at every
    residual stream captured. `step0` is the checkpoint before training: a folder, ID@REVISION on the Hub, or @REVISION
    of the model's own id. `device` is where probes are fitted: auto is CUDA where it is available, else the CPU.
    `other` is the folder of another model's run on the same questions, in which {dataset}, {style} and {semantics}
    stand for those of the cell; the baseline other-model reads its activations: what they predict of this model's
    classes is not its knowledge of itself alone.
    `encoder` is a sentence-transformers model, a folder or a Hub id, by which probes know the texts of open classes
    beside the model's own embeddings of them.
    `activations` is a file of another tool's captures, read in place of the run's own (`probes.activations.foreign`).
    """

    enabled: bool = True
    activations: str = ""
    targets: list[Target] = Field(default=["classes", "b_confidence", "entropy"])
    target: Literal["auto", "closed", "open"] = "auto"
    rungs: list[Rung] = Field(default=["linear"])
    rung_layers: list[str] = Field(default=[])
    baselines: list[Baseline] = Field(default=["tfidf"])
    step0: str = ""
    other: str = ""
    encoder: str = ""
    exemplars: Literal["drop", "keep"] = "drop"
    folds: Annotated[int, Field(ge=2)] = 5
    max_classes: Annotated[int, Field(ge=2)] = 100
    permutations: Annotated[int, Field(ge=0)] = 50
    device: str = "auto"

    @model_validator(mode="after")
    def _possible(self) -> ProbesConfig:
        if self.activations and self.reads_model:
            raise ValueError(
                f"probes.activations: {self.reads_model[0]} reads the model itself, not a file; leave one of them out"
            )
        if "step-0" in self.baselines and not self.step0:
            raise ValueError("probes.baselines: step-0 is a checkpoint before training; say which in probes.step0")
        if "other-model" in self.baselines and not self.other:
            raise ValueError("probes.baselines: other-model reads another model's run; say which in probes.other")
        for key, baseline in (("step0", "step-0"), ("other", "other-model")):
            if (value := getattr(self, key)) and baseline not in self.baselines:
                raise ValueError(
                    f"probes.{key} is {value!r}, which no baseline reads; add {baseline} to probes.baselines"
                )
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
        for dataset in (d for d in self.datasets if isinstance(d, NamedConfig)):
            for kind in [s.kind for s in self.semantics or ()] or [NAMED[dataset.kind].semantics or "exact"]:
                if reason := why_not(dataset.kind, kind):
                    raise ValueError(f"semantics: {reason}")
        for served in (m for m in self.models if m.is_served):
            if self.capture.positions:
                raise ValueError(
                    f"models: {served.name!r} is served, so nothing can be captured; set capture.positions to [] and "
                    "probes.enabled to false"
                )
            if self.sampling.exact:
                raise ValueError(f"models: {served.name!r} is served and can only be sampled; leave sampling.exact out")
        for at, model in enumerate(self.models):
            if model.engine == "vllm":
                self._possible_in_vllm(at, model)
        if not self.capture.positions and self.probes.enabled and not self.probes.activations:
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

    def _possible_in_vllm(self, at: int, model: ModelConfig) -> None:
        if self.sampling.exact:
            raise ValueError(f"models: {model.name!r} has engine vllm, which can only sample; leave sampling.exact out")
        if self.sampling.temperature > 2:
            raise ValueError(
                f"models: {model.name!r} has engine vllm, which samples at temperatures up to 2; lower it, or "
                "set engine to hf"
            )
        if later := [position for position in self.capture.positions if in_answer(position)]:
            raise ValueError(
                f"models: {model.name!r} has engine vllm, which shows no activations after the prompt; leave "
                f"{later[0]} out of capture.positions, or set engine to hf"
            )
        if self.probes.enabled and (trained := [r for r in self.probes.rungs if r in ("generative", "lora")]):
            raise ValueError(
                f"models: {model.name!r} has engine vllm, which trains nothing; leave {trained[0]} out of probes.rungs "
                f"and run `semcal probe STUDY.yaml --set models.{at}.engine=hf --set 'probes.rungs="
                f"[{','.join(self.probes.rungs)}]'` afterwards, which uses the same samples"
            )

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


# ---- how its file is read ------------------------------------------------------------------------------------------


def is_study_file(path: str | Path) -> bool:
    """Whether a path names a study rather than a run or a folder of runs."""
    return Path(path).suffix in (".yaml", ".yml") and Path(path).name != "config.yaml"


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study file and apply overrides of the form `a.b=c`.

    Values are YAML. List items are addressed by number, as in `models.0.path=...`.

    Raises:
        UserError: no such file, not YAML, or an unknown key or invalid value.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no file {path}{_near_file(Path(path))}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; expected a study file (YAML)") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: not YAML ({getattr(error, 'problem', None) or 'not text'})") from None
    if not isinstance(raw, dict):
        raise UserError(
            f"{path}: a study is a mapping of keys (name, models, datasets, styles, ...), got a {type(raw).__name__}"
        )
    for override in overrides:
        _override(raw, override)
    return parse(Study, raw, str(path))


def parse(model: type[Any], raw: Mapping[str, Any], where: str) -> Any:
    """Validate `raw` against a pydantic model.

    Raises:
        UserError: pydantic's first complaint in one line.
    """
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{where}: {_complaint(error, model)}") from None


_DATASETS: tuple[type[Settings], ...] = get_args(get_args(DatasetConfig)[0])


class _OneB(Settings):
    semantics: SemanticsConfig


def named_semantics(names: str) -> list[SemanticsConfig]:
    """The Bs of a comma-separated list: exact, numeric, choice, wordK, entailment:PATH, embedding:PATH,
    judge:MODEL@URL, custom:MODULE:NAME.

    Raises:
        UserError: an unknown name.
    """
    return [_named(name.strip()) for name in names.split(",")]


def _named(name: str) -> SemanticsConfig:
    kind, _, rest = name.partition(":")
    fields: dict[str, Any] = {"kind": kind}
    if kind.startswith("word") and kind[4:].isdigit():
        fields = {"kind": "kth-word", "k": int(kind[4:])}
    elif kind == "judge":
        fields["model"], _, fields["url"] = rest.partition("@")
    elif rest:
        fields["path"] = rest
    return parse(_OneB, {"semantics": fields}, f"--semantics {name}").semantics


def _override(raw: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    if not equals or not path:
        raise UserError(f"--set {override}: expected key=value, e.g. --set sampling.m=20")
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        parsed = value
    node: Any = raw
    *parents, last = path.split(".")
    for depth, key in enumerate(parents):
        if isinstance(node, list):
            node = node[_index(node, key, override)]
        else:
            if node.get(key) is None:
                node[key] = {}
            node = node[key]
        if not isinstance(node, dict | list):
            raise UserError(f"--set {override}: {'.'.join(parents[: depth + 1])} is a value and has no keys")
    if isinstance(node, list):
        node[_index(node, last, override)] = parsed
    else:
        node[last] = parsed


def _index(items: list[Any], key: str, override: str) -> int:
    if not key.isdigit() or int(key) >= len(items):
        raise UserError(f"--set {override}: {key!r} is not a valid list index; expected 0 to {len(items) - 1}")
    return int(key)


def _complaint(error: ValidationError, model: type[BaseModel]) -> str:
    # If a value may be a number or a group of keys, report what is wrong inside the group first.
    first = min(
        error.errors(), key=lambda e: (e["type"] == "int_type" and isinstance(e["input"], dict), e["type"] == "missing")
    )
    kinds = {tag for config in (*_DATASETS, *REGISTRY) for tag in _kinds_of(config)}
    tags = {*kinds, "Lengths", "constrained-int"}
    loc = [str(part) for part in first["loc"]]
    # `exact` is both a kind of semantics and a key of sampling.
    location = [
        part for part in loc if (part not in tags or (loc[0] == "sampling" and part == "exact")) and "[" not in part
    ]
    key = ".".join(location)
    got, context = first.get("input"), first.get("ctx", {})
    kind = first["type"]
    if kind == "extra_forbidden":
        return f"unknown key {key!r}{_nearest_key(location[-1], model, loc[:-1])}"
    if kind == "missing":
        return f"key {key!r} is missing"
    if kind == "union_tag_invalid":
        known = re.findall(r"'([^']+)'", context["expected_tags"])
        tag = context["tag"]
        return f"{key}: unknown kind {tag!r}{nearest(tag, known)}; expected one of {', '.join(known)}"
    if kind == "union_tag_not_found":
        return f"{key}: key 'kind' is missing"
    if kind == "literal_error":
        known = re.findall(r"'([^']+)'", context["expected"])
        return f"{key}: {got!r} is not valid; expected one of {', '.join(known)}{nearest(str(got), known)}"
    message = first["msg"].removeprefix("Value error, ")
    return message if kind == "value_error" else f"{key}: {message[0].lower()}{message[1:]}, got {got!r}"


def _nearest_key(key: str, model: type[BaseModel], parents: Sequence[str]) -> str:
    """Where an unknown key belongs, or the nearest key of the group that it is in, of its `kind` alone."""
    groups = {name: _groups_of(field.annotation) for name, field in Study.model_fields.items()}
    groups = {name: group for name, group in groups.items() if group} | {"served": [ServedConfig]}
    group = next((groups[p] for p in parents if p in groups), [model])
    group = [g for g in group if not _kinds_of(g).isdisjoint(parents)] or group
    if group == [model]:
        for name, members in groups.items():
            if any(key in g.model_fields for g in members):
                return f"; it belongs under {name!r}"
    close = difflib.get_close_matches(key, [f for g in group for f in g.model_fields], n=1, cutoff=0.5)
    if close:
        return f", did you mean {close[0]!r}?"
    return f"; the keys here are {', '.join(dict.fromkeys(f for g in group for f in g.model_fields))}"


def _kinds_of(group: type[BaseModel]) -> set[str]:
    """The values of `kind` that a group of keys is for."""
    return set(get_args(group.model_fields["kind"].annotation)) if "kind" in group.model_fields else set()


def _groups_of(annotation: Any) -> list[type[BaseModel]]:
    """The groups of keys that a value with this annotation may be, and a group inside that may also be one number."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation, Lengths] if annotation is SamplingConfig else [annotation]
    return [group for part in get_args(annotation) for group in _groups_of(part)]


def _near_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; there is no folder {path.parent}"
    return nearest(path.name, [p.name for p in path.parent.glob("*.yaml")])
