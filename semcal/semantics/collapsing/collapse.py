"""The contract of a collapsing function B: (question, answer text) -> one semantic class.

A B is versioned and treats gold answers as it treats the model's.
"""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from semcal.questions.question import Question
from semcal.semantics.class_table import UNPARSED


@dataclass(frozen=True)
class Collapsed:
    """The answers of one question as semantic classes.

    Attributes:
        classes: [text] the class of each; UNPARSED where it holds no answer.
        gold: The classes that are correct, whether an answer fell into them or not; never UNPARSED.
    """

    classes: tuple[str, ...]
    gold: frozenset[str]


class Collapse(Protocol):
    """A collapsing function: deterministic, total (every text falls into exactly one class) and versioned.

    It sees all questions at once, so that a B that asks a model can ask in batches. The classes of a question depend
    neither on the other questions nor on the order of the texts.
    """

    @property
    def name(self) -> str:
        """Name, parameters and version, e.g. "kth-word(3)/1"; only results of the same name are comparable."""
        ...

    def collapse(self, questions: Sequence[Question], texts: Sequence[Sequence[str]], style: str) -> list[Collapsed]:
        """The classes of the answers to each question, `texts` [question][answer], written in this style."""
        ...


class Pointwise:
    """A collapsing function that reads each answer on its own.

    A subclass gives the class of a text and of a reference answer, by the same rule.
    """

    def of_text(self, question: Question, text: str, style: str) -> str:
        """The class of a text that the model wrote in this style; UNPARSED if it holds no answer."""
        raise NotImplementedError

    def of_reference(self, question: Question, answer: str) -> str:
        """The class of an answer from the dataset, right or wrong; UNPARSED if it cannot be read."""
        raise NotImplementedError

    def of_gold(self, question: Question) -> str:
        """The class of the first gold answer."""
        return self.of_reference(question, question.answers[0])

    def collapse(self, questions: Sequence[Question], texts: Sequence[Sequence[str]], style: str) -> list[Collapsed]:
        """As `Collapse`."""
        found = []
        for question, answers in zip(questions, texts, strict=True):
            classes = tuple(self.of_text(question, answer, style) for answer in answers)
            found.append(Collapsed(classes, correct_classes(question, self.of_reference)))
        return found


def correct_classes(question: Question, of_reference: Callable[[Question, str], str]) -> frozenset[str]:
    """The classes that hold more of the dataset's correct answers than of its incorrect ones, by distinct forms."""
    votes: Counter[str] = Counter()
    votes.update(of_reference(question, a) for a in dict.fromkeys((*question.answers, *chain(*question.others))))
    votes.subtract(of_reference(question, a) for a in dict.fromkeys(question.incorrect))
    return frozenset(label for label, surplus in votes.items() if surplus > 0 and label != UNPARSED)


class Cluster(Protocol):
    """Groups the distinct phrases that answer one question by meaning."""

    @property
    def name(self) -> str:
        """Name, parameters and version."""
        ...

    def cluster(self, questions: Sequence[Question], phrases: Sequence[Sequence[str]]) -> list[list[int]]:
        """[question][phrase] labels of distinct phrases; phrases with the same label mean the same.

        A phrase that holds no answer has the label -1. The order of the phrases affects only how labels are numbered.
        """
        ...
