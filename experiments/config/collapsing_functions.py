"""What a study can say about B, and the collapsing function behind it."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, get_args

from pydantic import Field

from experiments.config.settings import Settings, slug
from semcal.errors import UserError
from semcal.questions.question import Dataset, Question
from semcal.semantics.collapsing.choice import Choice
from semcal.semantics.collapsing.clustered import Clustered
from semcal.semantics.collapsing.collapse import Collapse, ExactMatch, KthWord
from semcal.semantics.collapsing.custom import check_contract, load_custom, unreadable_gold
from semcal.semantics.collapsing.decisions import Decisions
from semcal.semantics.collapsing.judge import Judge
from semcal.semantics.collapsing.numeric import Numeric
from semcal.semantics.collapsing.similarity import Embedding, Entailment

Share = Annotated[float, Field(gt=0, lt=1)]


class _Plain(Settings):
    @property
    def label(self) -> str:
        """Its name in folders and tables."""
        return self.kind  # type: ignore[attr-defined]


class ExactConfig(_Plain):
    kind: Literal["exact"] = "exact"


class NumericConfig(_Plain):
    kind: Literal["numeric"] = "numeric"


class ChoiceConfig(_Plain):
    kind: Literal["choice"] = "choice"


class KthWordConfig(Settings):
    kind: Literal["kth-word"]
    k: Annotated[int, Field(ge=1)]

    @property
    def label(self) -> str:
        return f"word{self.k}"


class _FromModel(Settings):
    """`path` is a local folder or a Hub id."""

    path: str
    threshold: Share

    @property
    def label(self) -> str:
        return slug(f"{self.kind}-{Path(self.path).name}")  # type: ignore[attr-defined]


class EntailmentConfig(_FromModel):
    """Two answers mean the same where each entails the other with at least `threshold`, given the question."""

    kind: Literal["entailment"]
    revision: str | None = None
    threshold: Share = 0.5
    device: str = "auto"


class EmbeddingConfig(_FromModel):
    """Two answers mean the same where their sentence embeddings have a cosine of at least `threshold`."""

    kind: Literal["embedding"]
    threshold: Share = 0.8
    device: str = "auto"


class JudgeConfig(Settings):
    """A language model behind an OpenAI-compatible endpoint says which answers are the same."""

    kind: Literal["judge"]
    url: str
    model: str
    concurrency: Annotated[int, Field(ge=1)] = 8
    cache: str | None = None

    @property
    def label(self) -> str:
        return slug(f"judge-{Path(self.model).name}")


class CustomConfig(Settings):
    """A user's own B: `path` is module:name of a function (question, text, style) -> class or None."""

    kind: Literal["custom"]
    path: str

    @property
    def label(self) -> str:
        return slug(f"custom-{self.path.rpartition(':')[2]}")


SemanticsConfig = Annotated[
    ExactConfig
    | NumericConfig
    | ChoiceConfig
    | KthWordConfig
    | EntailmentConfig
    | EmbeddingConfig
    | JudgeConfig
    | CustomConfig,
    Field(discriminator="kind"),
]


def collapse_of(
    config: SemanticsConfig, aliases: Mapping[str, str], tell: Callable[[str], None] = lambda _: None
) -> Collapse:
    """The collapsing function B; `aliases` are those of a closed answer space, `tell` hears how far a model has got."""

    def progress(done: int, of: int) -> None:
        tell(f"{done:,} of {of:,} asked")

    match config:
        case ExactConfig():
            return ExactMatch(aliases)
        case NumericConfig():
            return Numeric()
        case ChoiceConfig():
            return Choice()
        case KthWordConfig():
            return KthWord(config.k)
        case CustomConfig():
            return load_custom(config.path)
        case EntailmentConfig():
            from semcal.models.entailment import EntailmentModel

            nli = EntailmentModel.load(config.path, revision=config.revision, device=config.device)
            return Clustered(Entailment(lambda pairs: nli.probability(pairs, progress), nli.name, config.threshold))
        case EmbeddingConfig():
            from semcal.models.embedder import Embedder

            embedder = Embedder(config.path, device=config.device)
            return Clustered(Embedding(lambda texts: embedder.embed(texts, progress), embedder.name, config.threshold))
        case JudgeConfig():
            return Clustered(_judge(config, progress), whole=True)


def _judge(config: JudgeConfig, progress: Callable[[int, int], None]) -> Judge:
    try:
        from semcal.models.chat import ChatModel
    except ImportError as error:
        raise UserError(f"a judge is a server, which needs {error.name}; pip install 'semcal[serve]'") from error
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "semcal"
    cache = Path(config.cache) if config.cache else home / "judge.jsonl"
    chat = ChatModel(config.url, config.model, concurrency=config.concurrency)

    def ask(prompts: Sequence[str]) -> Iterator[tuple[int, str]]:
        for done, reply in enumerate(chat.ask(prompts), start=1):
            progress(done, len(prompts))
            yield reply

    return Judge(ask, config.model, Decisions(cache))


def check_semantics(config: SemanticsConfig, dataset: Dataset, style: str) -> None:
    """Whether a B that costs nothing to ask can read a dataset's gold, and a user's own keeps the contract.

    Raises:
        UserError: options are missing, gold answers cannot be read (ids named), or the contract is broken.
    """
    if isinstance(config, ChoiceConfig) and (bare := [q.id for q in dataset.questions if not q.choices]):
        raise UserError(
            f"{dataset.name}: {_some(bare)} {'has' if len(bare) == 1 else 'have'} no choices, which semantics choice "
            "needs; use exact"
        )
    if isinstance(config, EntailmentConfig | EmbeddingConfig | JudgeConfig):
        return
    collapse = collapse_of(config, dataset.aliases)
    if isinstance(config, CustomConfig):
        some = dataset.questions[:20]
        check_contract(collapse, some, [_known_answers(q) for q in some], style)
    if unread := unreadable_gold(collapse, dataset.questions):
        raise UserError(
            f"{dataset.name}: semantics {config.label} cannot read the gold of {_some(unread)}; take another B, or "
            "mend these answers"
        )


def _known_answers(question: Question) -> list[str]:
    return [*question.answers, *question.incorrect, "", "no idea"]


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - 5} more" if len(ids) > 5 else ""
    return f"{', '.join(ids[:5])}{more}"


SEMANTICS: tuple[type[Settings], ...] = get_args(get_args(SemanticsConfig)[0])
