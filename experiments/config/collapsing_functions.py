"""The registry of collapsing functions B: for each kind, what a study can say about it and how it is built.

To add a B, write its class under semcal/semantics/collapsing/, a configuration here, and add that to `REGISTRY`; the
study's schema, its error messages and the names on the command line follow from it (docs/extending.md).
"""

import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Union

from pydantic import Field

from experiments.config.settings import Settings, slug
from semcal.errors import UserError
from semcal.questions.question import Dataset
from semcal.semantics.collapsing.alias_table import Aliases, pooled
from semcal.semantics.collapsing.clustered import Clustered, Embedding, Entailment
from semcal.semantics.collapsing.collapse import Collapse
from semcal.semantics.collapsing.custom import check_contract, load_custom, unreadable_gold
from semcal.semantics.collapsing.exact_match import Choice, ExactMatch
from semcal.semantics.collapsing.judge import Decisions, Judge
from semcal.semantics.collapsing.mention import Mention
from semcal.semantics.collapsing.numeric import Numeric
from semcal.semantics.collapsing.surface import KthWord

Share = Annotated[float, Field(gt=0, lt=1)]
Progress = Callable[[int, int], None]  # (answered so far, all requests)


class CollapseConfig(Settings):
    """What a study says about one B; a subclass sets `kind` to the name that a study uses."""

    kind: str
    asks_a_model: ClassVar[bool] = False  # then gold answers are not checked before the run

    @property
    def label(self) -> str:
        """The name in folders and tables."""
        return self.kind

    def build(self, aliases: Aliases, progress: Progress) -> Collapse:
        """The collapsing function.

        Args:
            aliases: The forms of answers that are known, the same for every question.
            progress: Called by a B that asks a model.
        """
        raise NotImplementedError


class ExactConfig(CollapseConfig):
    kind: Literal["exact"] = "exact"

    def build(self, aliases: Aliases, progress: Progress) -> Collapse:  # noqa: ARG002
        return ExactMatch(aliases.closed, aliases.pooled)


class MentionConfig(CollapseConfig):
    """Exact match that finds a known answer in a sentence; for datasets whose answers are of one kind."""

    kind: Literal["mention"] = "mention"

    def build(self, aliases: Aliases, progress: Progress) -> Collapse:  # noqa: ARG002
        return Mention(aliases.closed, aliases.pooled)


class NumericConfig(CollapseConfig):
    kind: Literal["numeric"] = "numeric"

    def build(self, aliases: Aliases, progress: Progress) -> Collapse:  # noqa: ARG002
        return Numeric()


class ChoiceConfig(CollapseConfig):
    kind: Literal["choice"] = "choice"

    def build(self, aliases: Aliases, progress: Progress) -> Collapse:  # noqa: ARG002
        return Choice()


class KthWordConfig(CollapseConfig):
    kind: Literal["kth-word"]
    k: Annotated[int, Field(ge=1)]

    @property
    def label(self) -> str:
        return f"word{self.k}"

    def build(self, aliases: Aliases, progress: Progress) -> Collapse:  # noqa: ARG002
        return KthWord(self.k)


class _FromModel(CollapseConfig):
    """`path` is a local folder or a Hub id."""

    asks_a_model: ClassVar[bool] = True
    path: str
    threshold: Share
    device: str = "auto"

    @property
    def label(self) -> str:
        return slug(f"{self.kind}-{Path(self.path).name}")


class EntailmentConfig(_FromModel):
    """Two answers mean the same if each entails the other with probability at least `threshold`, given the question."""

    kind: Literal["entailment"]
    revision: str | None = None
    threshold: Share = 0.5

    def build(self, aliases: Aliases, progress: Progress) -> Collapse:
        from semcal.models.text_models import EntailmentModel

        nli = EntailmentModel.load(self.path, revision=self.revision, device=self.device)
        entailment = Entailment(lambda pairs: nli.probability(pairs, progress), nli.name, self.threshold)
        return Clustered(entailment, aliases.pooled)


class EmbeddingConfig(_FromModel):
    """Two answers mean the same if their sentence embeddings have a cosine of at least `threshold`."""

    kind: Literal["embedding"]
    threshold: Share = 0.8

    def build(self, aliases: Aliases, progress: Progress) -> Collapse:
        from semcal.models.text_models import Embedder

        embedder = Embedder(self.path, device=self.device)
        embedding = Embedding(lambda texts: embedder.embed(texts, progress), embedder.name, self.threshold)
        return Clustered(embedding, aliases.pooled)


class JudgeConfig(CollapseConfig):
    """A language model behind an OpenAI-compatible endpoint says which answers are the same."""

    kind: Literal["judge"]
    asks_a_model: ClassVar[bool] = True
    url: str
    model: str
    concurrency: Annotated[int, Field(ge=1)] = 8
    cache: str | None = None

    @property
    def label(self) -> str:
        return slug(f"judge-{Path(self.model).name}")

    def build(self, aliases: Aliases, progress: Progress) -> Collapse:
        try:
            from semcal.models.connection import ChatModel
        except ImportError as error:
            raise UserError(f"a judge is a server, which needs {error.name}; pip install 'semcal[serve]'") from error
        home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "semcal"
        chat = ChatModel(self.url, self.model, concurrency=self.concurrency)

        def ask(prompts: Sequence[str]) -> Iterator[tuple[int, str]]:
            for done, reply in enumerate(chat.ask(prompts), start=1):
                progress(done, len(prompts))
                yield reply

        judge = Judge(ask, self.model, Decisions(Path(self.cache or home / "judge.jsonl")))
        return Clustered(judge, aliases.pooled, whole=True)


class CustomConfig(CollapseConfig):
    """Your own B: `path` is module:name of a function (question, text, style) -> class or None. The question it sees
    has id, text, group and choices, and no gold answers."""

    kind: Literal["custom"]
    path: str

    @property
    def label(self) -> str:
        return slug(f"custom-{self.path.rpartition(':')[2]}")

    def build(self, aliases: Aliases, progress: Progress) -> Collapse:  # noqa: ARG002
        return load_custom(self.path)


REGISTRY: tuple[type[CollapseConfig], ...] = (
    ExactConfig,
    MentionConfig,
    NumericConfig,
    ChoiceConfig,
    KthWordConfig,
    EntailmentConfig,
    EmbeddingConfig,
    JudgeConfig,
    CustomConfig,
)

if TYPE_CHECKING:
    SemanticsConfig = CollapseConfig
else:
    SemanticsConfig = Annotated[Union[REGISTRY], Field(discriminator="kind")]  # noqa: UP007


def known_aliases(dataset: Dataset) -> Aliases:
    """The forms of answers that are known for all questions of a dataset."""
    return Aliases(dataset.aliases, {} if dataset.aliases else pooled(dataset.alias_lists))


def collapse_of(config: SemanticsConfig, aliases: Aliases, tell: Callable[[str], None] = lambda _: None) -> Collapse:
    """The collapsing function B; `tell` hears how many requests a model has answered."""
    return config.build(aliases, lambda done, of: tell(f"{done:,} of {of:,} requests"))


def check_semantics(config: SemanticsConfig, dataset: Dataset, style: str) -> None:
    """Check, before anything is sampled, that B can read the gold answers of a dataset; a user's own B, its contract.

    A B that asks a model is not checked: asking is expensive.

    Raises:
        UserError: options are missing, gold answers cannot be read (ids named), or the contract is broken.
    """
    if isinstance(config, ChoiceConfig) and (bare := [q.id for q in dataset.questions if not q.choices]):
        raise UserError(
            f"{dataset.name}: semantics choice needs questions with choices; {_some(bare)} "
            f"{'has' if len(bare) == 1 else 'have'} none; use exact"
        )
    if config.asks_a_model:
        return
    collapse = collapse_of(config, known_aliases(dataset))
    if isinstance(config, CustomConfig):
        some = dataset.questions[:20]
        known = [[*q.answers, *q.incorrect, "", "no idea"] for q in some]
        check_contract(collapse, some, known, style)
    if unread := unreadable_gold(collapse, dataset.questions):
        raise UserError(
            f"{dataset.name}: semantics {config.label} cannot read the gold answers of {_some(unread)}; "
            "use another B, or fix these answers"
        )


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
    return f"{', '.join(ids[:5])}{more}"
