"""A study as its YAML file says it, checked before anything is loaded.

Unknown keys, wrong types and impossible combinations are refused with one line that names the key, what it got and the
nearest valid name.
"""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from semcal.errors import UserError, nearest
from semcal.questions import CONTINUATION, STYLES

Style = Literal["concise", "sentence", "cot", "continuation"]
DEFAULT_LENGTHS: dict[str, int] = {"concise": 32, "sentence": 64, "cot": 256, CONTINUATION: 32}
assert {*STYLES, CONTINUATION} == set(DEFAULT_LENGTHS)


class _Config(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


# ---- who answers ---------------------------------------------------------------------------------------------------


class ModelConfig(_Config):
    """A checkpoint. `path` is a local folder, a Hub id, or `atlas:base` for the bundled organism."""

    path: str
    name: str = ""
    revision: str | None = None
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    device: str = "auto"
    prompt: Literal["few-shot", "chat"] = "few-shot"
    allow_pickle: bool = False
    trust_remote_code: bool = False

    @model_validator(mode="after")
    def _named(self) -> ModelConfig:
        if not self.name:
            revision = f"@{self.revision}" if self.revision else ""
            base = Path(self.path).name if Path(self.path).exists() else self.path
            object.__setattr__(self, "name", slug(base + revision))
        return self


# ---- what is asked -------------------------------------------------------------------------------------------------


class _DatasetConfig(_Config):
    name: str = ""
    n: Annotated[int, Field(ge=1)] | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _named(self) -> Any:
        if not self.name:
            object.__setattr__(self, "name", self.default_name())
        return self

    def default_name(self) -> str:
        return self.kind  # type: ignore[attr-defined]


class JsonlConfig(_DatasetConfig):
    kind: Literal["jsonl"]
    path: str

    def default_name(self) -> str:
        return slug(Path(self.path).stem)


class TriviaqaConfig(_DatasetConfig):
    kind: Literal["triviaqa"]
    path: str


class SimpleqaConfig(_DatasetConfig):
    kind: Literal["simpleqa"]
    path: str


class ContinuationConfig(_DatasetConfig):
    """`split` is a regular expression between documents; see `semcal.questions.read_continuations`."""

    kind: Literal["continuation"]
    path: str
    split: str = r"\n\s*\n"
    prompt_words: Annotated[int, Field(ge=1)] = 24
    answer_words: Annotated[int, Field(ge=1)] = 8

    def default_name(self) -> str:
        return slug(Path(self.path).stem)


class AtlasConfig(_DatasetConfig):
    kind: Literal["atlas"]
    family: Literal["facts", "routes"]
    world_seed: int = 0

    def default_name(self) -> str:
        return f"atlas-{self.family}"


DatasetConfig = Annotated[
    JsonlConfig | TriviaqaConfig | SimpleqaConfig | ContinuationConfig | AtlasConfig, Field(discriminator="kind")
]

# ---- what answers mean ---------------------------------------------------------------------------------------------


class ExactConfig(_Config):
    kind: Literal["exact"] = "exact"

    @property
    def label(self) -> str:
        return "exact"


class KthWordConfig(_Config):
    kind: Literal["kth-word"]
    k: Annotated[int, Field(ge=1)]

    @property
    def label(self) -> str:
        return f"word{self.k}"


SemanticsConfig = Annotated[ExactConfig | KthWordConfig, Field(discriminator="kind")]

# ---- how it is measured --------------------------------------------------------------------------------------------


class SamplingConfig(_Config):
    """`max_new_tokens` and `stop` are one value for all styles, a value a style, or left to the style."""

    m: Annotated[int, Field(ge=2)] = 50
    temperature: Annotated[float, Field(gt=0)] = 1.0
    top_k: Annotated[int, Field(ge=1)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    max_new_tokens: Annotated[int, Field(ge=1)] | dict[Style, Annotated[int, Field(ge=1)]] = {}
    stop: list[Annotated[str, Field(min_length=1)]] | dict[Style, list[str]] | None = None
    batch_size: Annotated[int, Field(ge=1)] = 16
    shard_size: Annotated[int, Field(ge=1)] = 128

    def length(self, style: str) -> int:
        if isinstance(self.max_new_tokens, int):
            return self.max_new_tokens
        return self.max_new_tokens.get(style, DEFAULT_LENGTHS[style])  # type: ignore[call-overload]


class PromptingConfig(_Config):
    shots: Annotated[int, Field(ge=0)] = 4
    exemplars: Annotated[int, Field(ge=0)] = 32
    on_long_prompt: Literal["refuse", "drop"] = "refuse"

    @model_validator(mode="after")
    def _enough(self) -> PromptingConfig:
        if self.shots > self.exemplars:
            raise ValueError(
                f"shots is {self.shots} but exemplars is {self.exemplars}; set exemplars to at least shots"
            )
        return self


class CaptureConfig(_Config):
    positions: list[Literal["last_prompt_token"]] = ["last_prompt_token"]


class CalibrationConfig(_Config):
    bootstrap: Annotated[int, Field(ge=10)] = 1000
    null_draws: Annotated[int, Field(ge=10)] = 1000
    level: Annotated[float, Field(gt=0, lt=1)] = 0.95


class ProbesConfig(_Config):
    enabled: bool = True
    targets: list[Literal["classes", "b_confidence", "entropy"]] = ["classes", "b_confidence", "entropy"]
    folds: Annotated[int, Field(ge=2)] = 5
    max_classes: Annotated[int, Field(ge=2)] = 100
    permutations: Annotated[int, Field(ge=0)] = 50


class TrackingConfig(_Config):
    wandb: Literal["disabled", "offline", "online"] = "disabled"
    project: str = "semcal"
    entity: str | None = None


class Study(_Config):
    """A grid of models × datasets × styles × semantics, and how each cell is measured."""

    name: str
    models: Annotated[list[ModelConfig], Field(min_length=1)]
    datasets: Annotated[list[DatasetConfig], Field(min_length=1)]
    styles: Annotated[list[Style], Field(min_length=1)]
    semantics: Annotated[list[SemanticsConfig], Field(min_length=1)] = [ExactConfig()]
    seed: int = 0
    output: str = "runs"
    sampling: SamplingConfig = SamplingConfig()
    prompting: PromptingConfig = PromptingConfig()
    capture: CaptureConfig = CaptureConfig()
    calibration: CalibrationConfig = CalibrationConfig()
    probes: ProbesConfig = ProbesConfig()
    tracking: TrackingConfig = TrackingConfig()

    @model_validator(mode="after")
    def _possible(self) -> Study:
        for what, names in (
            ("models", [m.name for m in self.models]),
            ("datasets", [d.name for d in self.datasets]),
            ("styles", self.styles),
            ("semantics", [s.label for s in self.semantics]),
        ):
            twice = next((n for n in names if names.count(n) > 1), None)
            if twice is not None:
                raise ValueError(f"{what}: {twice!r} stands twice; give each its own name")
        continuations = [d.name for d in self.datasets if isinstance(d, ContinuationConfig)]
        if continuations and (set(self.styles) != {CONTINUATION} or len(continuations) < len(self.datasets)):
            raise ValueError(
                f"datasets: {continuations[0]!r} is a continuation task, whose only style is 'continuation'; set "
                "styles to [continuation] and put question answering into a study of its own"
            )
        if not continuations and CONTINUATION in self.styles:
            raise ValueError("styles: 'continuation' needs a dataset of kind continuation")
        if continuations and any(isinstance(s, ExactConfig) for s in self.semantics):
            raise ValueError("semantics: a continuation has no exact match; use [{kind: kth-word, k: 1}]")
        if not self.capture.positions and self.probes.enabled:
            raise ValueError("capture.positions is empty, so there is nothing to probe; set probes.enabled to false")
        return self

    @property
    def folder(self) -> Path:
        return Path(self.output) / self.name

    def cells(self) -> list[Cell]:
        """The grid, row by row: models vary slowest, semantics fastest, so that a model is loaded once."""
        grid = itertools.product(self.models, self.datasets, self.styles, self.semantics)
        return [
            Cell(
                study=self.name,
                model=model,
                dataset=dataset,
                style=style,
                semantics=semantics,
                seed=self.seed,
                sampling=self.sampling,
                prompting=self.prompting,
                capture=self.capture,
                calibration=self.calibration,
                probes=self.probes,
                tracking=self.tracking,
                folder=str(self.folder / slug("__".join((model.name, dataset.name, style, semantics.label)))),
            )
            for model, dataset, style, semantics in grid
        ]


class Cell(_Config):
    """One run: one model × dataset × style × B. This is what a run's config.yaml holds."""

    study: str
    model: ModelConfig
    dataset: DatasetConfig
    style: Style
    semantics: SemanticsConfig
    seed: int
    sampling: SamplingConfig
    prompting: PromptingConfig
    capture: CaptureConfig
    calibration: CalibrationConfig
    probes: ProbesConfig
    tracking: TrackingConfig
    folder: str

    @property
    def label(self) -> str:
        """Model, dataset and style, in words."""
        parts = [self.model.name, self.dataset.name]
        parts += [] if self.style == CONTINUATION else [self.style]
        parts += [] if isinstance(self.semantics, ExactConfig) else [self.semantics.label]
        return " · ".join(parts)

    def sampling_part(self) -> dict[str, Any]:
        """What the samples and activations depend on: a run folder is of one configuration of these."""
        whole = self.model_dump(mode="json", include={"model", "dataset", "style", "seed", "prompting", "capture"})
        whole["model"].pop("device")
        sampling = self.sampling.model_dump(mode="json", exclude={"batch_size", "max_new_tokens", "stop"})
        return whole | {
            "sampling": sampling | {"max_new_tokens": self.sampling.length(self.style), "stop": self.sampling.stop}
        }


# ---- reading -------------------------------------------------------------------------------------------------------


def load_study(path: str | Path, overrides: Sequence[str] = ()) -> Study:
    """Read a study file and apply `a.b=c` overrides (values are YAML; list items by number, `models.0.path=...`).

    Raises:
        UserError: no such file, not YAML, or a key or value the study cannot have.
    """
    try:
        raw = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"no file {path}{_near_file(Path(path))}") from None
    except IsADirectoryError:
        raise UserError(f"{path} is a folder; name a study file (YAML)") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        mark = getattr(error, "problem_mark", None)
        where = f":{mark.line + 1}" if mark else ""
        raise UserError(f"{path}{where}: not YAML ({getattr(error, 'problem', None) or 'not text'})") from None
    if not isinstance(raw, dict):
        raise UserError(f"{path}: a study is a mapping of keys (name, models, datasets, styles, ...)")
    for override in overrides:
        _override(raw, override)
    return parse(Study, raw, str(path))


def parse(model: type[Any], raw: Mapping[str, Any], where: str) -> Any:
    """Validate; pydantic's complaint becomes one line."""
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise UserError(f"{where}: {_complaint(error, model)}") from None


def slug(text: str) -> str:
    """A name that is safe as a folder name."""
    return re.sub(r"[^\w.@=+-]+", "-", text).strip("-")


def _override(raw: dict[str, Any], override: str) -> None:
    path, equals, value = override.partition("=")
    if not equals or not path:
        raise UserError(f"--set {override}: write it as key=value, e.g. --set sampling.m=20")
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
            raise UserError(f"--set {override}: {'.'.join(parents[: depth + 1])} is a value, not a group of keys")
    if isinstance(node, list):
        node[_index(node, last, override)] = parsed
    else:
        node[last] = parsed


def _index(items: list[Any], key: str, override: str) -> int:
    if not key.isdigit() or int(key) >= len(items):
        raise UserError(f"--set {override}: {key!r} is no place in a list of {len(items)}; places count from 0")
    return int(key)


def _complaint(error: ValidationError, model: type[BaseModel]) -> str:
    first = min(error.errors(), key=lambda e: e["type"] == "missing")
    tags = {"jsonl", "triviaqa", "simpleqa", "continuation", "atlas", "exact", "kth-word"}
    location = [str(part) for part in first["loc"] if not (str(part) in tags or "[" in str(part))]
    key = ".".join(location)
    got = first.get("input")
    kind = first["type"]
    if kind == "extra_forbidden":
        return f"unknown key {key!r}{_nearest_key(location[-1], model, location[:-1])}"
    if kind == "missing":
        return f"key {key!r} is missing"
    if kind == "union_tag_invalid":
        known = re.findall(r"'([^']+)'", first["ctx"]["expected_tags"])
        tag = first["ctx"]["tag"]
        return f"{key}: unknown kind {tag!r}{nearest(tag, known)}; one of {', '.join(known)}"
    if kind == "union_tag_not_found":
        return f"{key}: key 'kind' is missing"
    if kind == "literal_error":
        known = re.findall(r"'([^']+)'", first["ctx"]["expected"])
        return f"{key}: {got!r} is none of {', '.join(known)}{nearest(str(got), known)}"
    message = first["msg"].removeprefix("Value error, ")
    return message if kind == "value_error" else f"{key}: {message[0].lower()}{message[1:]}, got {got!r}"


def _nearest_key(key: str, model: type[BaseModel], parents: Iterable[str]) -> str:
    """The nearest key among those of the group the unknown key stands in, else anywhere."""
    groups: dict[str, list[type[BaseModel]]] = {
        "models": [ModelConfig],
        "datasets": [JsonlConfig, TriviaqaConfig, SimpleqaConfig, ContinuationConfig, AtlasConfig],
        "semantics": [ExactConfig, KthWordConfig],
        "sampling": [SamplingConfig],
        "prompting": [PromptingConfig],
        "capture": [CaptureConfig],
        "calibration": [CalibrationConfig],
        "probes": [ProbesConfig],
        "tracking": [TrackingConfig],
    }
    group = next((groups[p] for p in parents if p in groups), [model])
    close = difflib.get_close_matches(key, [f for g in group for f in g.model_fields], n=1, cutoff=0.5)
    if close:
        return f", did you mean {close[0]!r}?"
    for name, members in groups.items():
        if any(key in g.model_fields for g in members) and group == [model]:
            return f"; it belongs under {name!r}"
    return f"; the keys here are {', '.join(dict.fromkeys(f for g in group for f in g.model_fields))}"


def _near_file(path: Path) -> str:
    if not path.parent.is_dir():
        return f"; there is no folder {path.parent}"
    return nearest(path.name, [p.name for p in path.parent.glob("*.yaml")])
