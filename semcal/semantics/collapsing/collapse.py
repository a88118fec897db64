"""The contract of a collapsing function B: (question, answer text) -> one semantic class, blind to gold.

A B partitions answers to questions without gold answers, and cannot look: it is handed `BlindQuestion`s. What it would
call the gold answers is asked afterwards, when the partition is fixed. If B joined forms of the right answer only,
confidence would depend on the label.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from semcal.questions.question import BlindQuestion, Question
from semcal.semantics.class_table import UNPARSED


@dataclass(frozen=True)
class Collapsed:
    """The answers of one question as semantic classes.

    Attributes:
        classes: [text] the class of each; UNPARSED where it holds no answer.
        gold: The classes that are correct, whether an answer fell into them or not; never UNPARSED. Forms of a gold
            answer that B does not join are several classes, all correct.
    """

    classes: tuple[str, ...]
    gold: frozenset[str]


@dataclass(frozen=True)
class Partition:
    """The classes of the answers to one question.

    Attributes:
        texts: The answers, as the model wrote them.
        classes: [text] the class of each; UNPARSED where it holds no answer.
    """

    texts: tuple[str, ...]
    classes: tuple[str, ...]


class Collapse(Protocol):
    """A collapsing function: deterministic, total (every text falls into exactly one class), versioned and blind.

    It sees all questions at once, so that a B that asks a model can ask in batches. The classes of a question depend
    neither on the other questions nor on the order of the texts.
    """

    @property
    def name(self) -> str:
        """Name, parameters and version, e.g. "kth-word(3)/2"; only results of the same name are comparable."""
        ...

    def partition(
        self, questions: Sequence[BlindQuestion], texts: Sequence[Sequence[str]], style: str
    ) -> list[tuple[str, ...]]:
        """[question][answer] the classes of the answers `texts`, written in this style."""
        ...

    def match(
        self,
        questions: Sequence[BlindQuestion],
        partitions: Sequence[Partition],
        references: Sequence[Sequence[str]],
        style: str,
    ) -> list[tuple[str, ...]]:
        """[question][reference] the class of each of the dataset's answers, right and wrong ones unmarked.

        It is a class of the partition, by the rule that made it, or else a class of its own; UNPARSED if the reference
        cannot be read. Wherever a reference belongs, the partition stays as it is.
        """
        ...


def collapse_blind(
    b: Collapse, questions: Sequence[Question], texts: Sequence[Sequence[str]], style: str
) -> list[Collapsed]:
    """The classes of the answers to each question, `texts` [question][answer], and which of them are correct."""
    blind = [question.blind for question in questions]
    classes = b.partition(blind, texts, style)
    partitions = [Partition(tuple(own), found) for own, found in zip(texts, classes, strict=True)]
    references = [tuple(dict.fromkeys((*_correct(q), *q.incorrect))) for q in questions]
    matched = b.match(blind, partitions, references, style)
    return [
        Collapsed(found, _gold(question, dict(zip(known, own, strict=True))))
        for question, found, known, own in zip(questions, classes, references, matched, strict=True)
    ]


def _correct(question: Question) -> tuple[str, ...]:
    return tuple(dict.fromkeys((*question.answers, *chain(*question.others))))


def _gold(question: Question, class_of: Mapping[str, str]) -> frozenset[str]:
    """The classes that hold more of the dataset's correct answers than of its incorrect ones, by distinct forms."""
    votes = Counter(class_of[answer] for answer in _correct(question))
    votes.subtract(class_of[answer] for answer in dict.fromkeys(question.incorrect))
    return frozenset(label for label, surplus in votes.items() if surplus > 0 and label != UNPARSED)


class Pointwise:
    """A collapsing function that reads each answer on its own.

    A subclass gives the class of a text and of a reference answer, by the same rule.
    """

    def of_text(self, question: BlindQuestion, text: str, style: str) -> str:
        """The class of a text that the model wrote in this style; UNPARSED if it holds no answer."""
        raise NotImplementedError

    def of_reference(self, question: BlindQuestion, answer: str) -> str:
        """The class of an answer from the dataset, right or wrong; UNPARSED if it cannot be read."""
        raise NotImplementedError

    def of_gold(self, question: Question) -> str:
        """The class of the first gold answer."""
        return self.of_reference(question.blind, question.answers[0])

    def partition(
        self, questions: Sequence[BlindQuestion], texts: Sequence[Sequence[str]], style: str
    ) -> list[tuple[str, ...]]:
        """As `Collapse`."""
        return [tuple(self.of_text(q, text, style) for text in own) for q, own in zip(questions, texts, strict=True)]

    def match(
        self,
        questions: Sequence[BlindQuestion],
        partitions: Sequence[Partition],  # noqa: ARG002 - the contract of Collapse
        references: Sequence[Sequence[str]],
        style: str,  # noqa: ARG002
    ) -> list[tuple[str, ...]]:
        """As `Collapse`."""
        return [
            tuple(self.of_reference(q, answer) for answer in own) for q, own in zip(questions, references, strict=True)
        ]


class Cluster(Protocol):
    """Groups the distinct phrases that answer one question by meaning."""

    @property
    def name(self) -> str:
        """Name, parameters and version."""
        ...

    def cluster(self, questions: Sequence[BlindQuestion], phrases: Sequence[Sequence[str]]) -> list[list[int]]:
        """[question][phrase] labels of distinct phrases; phrases with the same label mean the same.

        A phrase that holds no answer has the label -1. The order of the phrases affects only how labels are numbered.
        """
        ...

    def assign(
        self,
        questions: Sequence[BlindQuestion],
        classes: Sequence[Mapping[str, Sequence[str]]],
        phrases: Sequence[Sequence[str]],
    ) -> list[list[str | None]]:
        """[question][phrase] the class that further phrases mean the same as, by the criterion of `cluster`.

        None if it is none of them; UNPARSED if the phrase holds no answer.

        Args:
            classes: [question] class -> its phrases.
            phrases: [question][phrase] distinct phrases that are in no class.
        """
        ...
