"""Collapsing functions B: (question, answer text) -> one semantic class. Versioned, and the same for gold answers."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import chain
from typing import Protocol

from semcal.questions.question import Question
from semcal.semantics.class_table import UNPARSED
from semcal.semantics.extract import extract
from semcal.semantics.normalise import normalise

_WORD = re.compile(r"\w+(?:['’-]\w+)*")


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
    """A collapsing function: deterministic, total (every text lands in exactly one class), versioned.

    It sees all questions at once, so that one that asks a model can ask in batches; what it makes of a question does
    not depend on the others, nor on the order of the texts.
    """

    @property
    def name(self) -> str:
        """Name, parameters and version, e.g. "kth-word(3)/1"; two results compare only under the same name."""
        ...

    def collapse(self, questions: Sequence[Question], texts: Sequence[Sequence[str]], style: str) -> list[Collapsed]:
        """The classes of what the model wrote to each question in this style."""
        ...


class Pointwise:
    """A collapsing function that looks at one answer at a time, so that no other answer matters.

    A subclass says what class a text and a reference answer are; both by the same rule.
    """

    def of_text(self, question: Question, text: str, style: str) -> str:
        """The class of something the model wrote in this style; UNPARSED if it holds no answer."""
        raise NotImplementedError

    def of_reference(self, question: Question, answer: str) -> str:
        """The class of an answer that the dataset gives, right or wrong; UNPARSED if it cannot be read."""
        raise NotImplementedError

    def of_gold(self, question: Question) -> str:
        """The class of the first gold answer."""
        return self.of_reference(question, question.answers[0])

    def collapse(self, questions: Sequence[Question], texts: Sequence[Sequence[str]], style: str) -> list[Collapsed]:
        """As `Collapse`."""
        found = []
        for question, its in zip(questions, texts, strict=True):
            classes = tuple(self.of_text(question, text, style) for text in its)
            found.append(Collapsed(classes, correct_classes(question, self.of_reference)))
        return found


def correct_classes(question: Question, of_reference: Callable[[Question, str], str]) -> frozenset[str]:
    """Classes that hold more correct answers of the dataset than incorrect ones, by distinct written forms."""
    votes: Counter[str] = Counter()
    votes.update(of_reference(question, a) for a in dict.fromkeys((*question.answers, *chain(*question.others))))
    votes.subtract(of_reference(question, a) for a in dict.fromkeys(question.incorrect))
    return frozenset(klass for klass, surplus in votes.items() if surplus > 0 and klass != UNPARSED)


class Cluster(Protocol):
    """Sorts the distinct phrases that answer one question by meaning."""

    @property
    def name(self) -> str:
        """Name, parameters and version."""
        ...

    def cluster(self, questions: Sequence[Question], phrases: Sequence[Sequence[str]]) -> list[list[int]]:
        """For each question a label for each of its phrases, which are distinct: one label, one meaning.

        A phrase in which no answer could be found has the label -1. Labels do not depend on the order of the phrases
        beyond their numbering.
        """
        ...


@dataclass(frozen=True)
class ExactMatch(Pointwise):
    """Normalised exact match: two answers mean the same iff they normalise to the same string or are known aliases.

    Attributes:
        aliases: surface form -> class for a closed answer space. There, an answer that is no known form is looked
            through for known forms and takes the last one mentioned (never a shorter form inside a longer one);
            with none it is unparsed. Where it is empty the normalised answer is its own class.
    """

    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "exact/2"

    def of_text(self, question: Question, text: str, style: str) -> str:
        phrase = extract(text, style)
        if phrase is None:
            return UNPARSED
        klass = self._of_phrase(question, phrase)
        # A sentence may say more after its answer than `extract` knows how to remove.
        return self._mentioned(text) if klass == UNPARSED and style == "sentence" else klass

    def of_reference(self, question: Question, answer: str) -> str:
        return self._of_phrase(question, answer)

    def _of_phrase(self, question: Question, phrase: str) -> str:
        key = normalise(phrase)
        if not key:
            return UNPARSED
        if key in self._table:
            return self._table[key]
        if key in {normalise(a) for a in question.answers}:
            first = normalise(question.answers[0])
            return self._table.get(first, first)
        return self._mentioned(phrase) if self._table else key

    def _mentioned(self, text: str) -> str:
        found = self._pattern.findall(normalise(text)) if self._table else []
        return self._table[found[-1]] if found else UNPARSED

    @cached_property
    def _table(self) -> dict[str, str]:
        return {normalise(form): klass for form, klass in self.aliases.items()}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._table, key=lambda form: (-len(form), form))
        return re.compile(r"\b(?:" + "|".join(map(re.escape, longest_first)) + r")\b")


def kth_word(text: str, k: int) -> str:
    """The k-th word of a text in lower case, k counting from 1; UNPARSED where it has fewer."""
    words = _WORD.findall(text)
    return words[k - 1].lower() if len(words) >= k else UNPARSED


@dataclass(frozen=True)
class KthWord(Pointwise):
    """The k-th word of a continuation, lower-case; k counts from 1. A continuation of fewer words is unparsed."""

    k: int

    @property
    def name(self) -> str:
        return f"kth-word({self.k})/1"

    def of_text(self, question: Question, text: str, style: str) -> str:  # noqa: ARG002 - the contract of Collapse
        return kth_word(text, self.k)

    def of_reference(self, question: Question, answer: str) -> str:
        return self.of_text(question, answer, "")
