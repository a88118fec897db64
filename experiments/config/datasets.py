"""What a study can say about a dataset, and how its questions are loaded."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import Field, model_validator

from experiments.atlas.world import World
from experiments.atlas.world_questions import as_written, atlas_questions
from experiments.config.collapsing_functions import REGISTRY, CollapseConfig
from experiments.config.settings import Settings, slug
from semcal.questions.continuation import read_continuations
from semcal.questions.load_dataset import build
from semcal.questions.named.named_datasets import NAMED, read_named
from semcal.questions.question import Dataset
from semcal.questions.tables import read_table

# The known datasets, as their registry lists them.
if TYPE_CHECKING:
    NamedKind = str
else:
    NamedKind = Literal[tuple(NAMED)]


class _Dataset(Settings):
    name: str = ""
    n: Annotated[int, Field(ge=1)] | None = None
    seed: int = 0

    @model_validator(mode="after")
    def _named(self) -> Any:
        if not self.name:
            object.__setattr__(self, "name", self.default_name())
        return self

    def default_name(self) -> str:
        """That of its file."""
        return slug(Path(self.path).stem)  # type: ignore[attr-defined]


class NamedConfig(_Dataset):
    """A known dataset: the original file at `path`, or, without a path, `split` of the Hub's copy at `revision`."""

    kind: NamedKind
    path: str | None = None
    split: str | None = None
    revision: str | None = None

    def default_name(self) -> str:
        return self.kind

    @model_validator(mode="after")
    def _one_place(self) -> Any:
        if self.path is not None and (self.split or self.revision):
            raise ValueError(
                f"datasets: {self.kind} is read from path {self.path!r}, so split and revision, which choose a version "
                "on the Hub, do nothing; remove them or path"
            )
        return self


class TableConfig(_Dataset):
    """The user's own questions; see `semcal.questions.read_table`."""

    kind: Literal["jsonl", "csv", "parquet"]
    path: str


class ContinuationConfig(_Dataset):
    """`split` is a regular expression between documents; see `semcal.questions.read_continuations`."""

    kind: Literal["continuation"]
    path: str
    split: str = r"\n\s*\n"
    prompt_words: list[Annotated[int, Field(ge=1)]] = Field(default=[24], min_length=1)
    answer_words: Annotated[int, Field(ge=1)] = 8


class AtlasConfig(_Dataset):
    """Questions about the bundled world. The training texts of the organism state half of the `myths` wrongly."""

    kind: Literal["atlas"]
    family: Literal["facts", "routes", "myths"]
    world_seed: int = 0

    def default_name(self) -> str:
        return f"atlas-{self.family}"


DatasetConfig = Annotated[NamedConfig | TableConfig | ContinuationConfig | AtlasConfig, Field(discriminator="kind")]


def default_semantics(config: DatasetConfig) -> CollapseConfig:
    """The B of a dataset where the study names none."""
    kind = NAMED[config.kind].semantics if isinstance(config, NamedConfig) else "exact"
    return next(b for b in REGISTRY if b.model_fields["kind"].default == kind)()  # pyright: ignore[reportCallIssue]


def load_dataset(config: DatasetConfig, exemplars: int) -> Dataset:
    """The questions of a dataset, `exemplars` of them set aside for few-shot prompts.

    Raises:
        UserError: a file that is missing or not in its format, too few questions.
    """
    if isinstance(config, AtlasConfig):
        world, n = World(config.world_seed), config.n or 1000
        # An exemplar takes the other questions of its group with it, hence the surplus.
        questions = atlas_questions(world, config.family, n + 10 * exemplars, seed=config.seed)
        built = build(config.name, questions, n=n, exemplars=exemplars, seed=config.seed, aliases=world.aliases)
        return replace(built, exemplars=tuple(as_written(world, e, config.seed) for e in built.exemplars))
    if isinstance(config, ContinuationConfig):
        exemplars, how = 0, config.model_dump(include={"split", "prompt_words", "answer_words"})
        questions = read_continuations(Path(config.path), **how)
    elif isinstance(config, NamedConfig):
        path = None if config.path is None else Path(config.path)
        questions = read_named(config.kind, path, split=config.split, revision=config.revision)
    else:
        questions = read_table(Path(config.path))
    return build(config.name, questions, n=config.n, exemplars=exemplars, seed=config.seed)
