"""Collapsing functions B: (question, answer text) -> one semantic class. Versioned, and the same for gold answers."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Protocol

from semcal.questions.question import Question
from semcal.semantics.extract import extract
from semcal.semantics.normalise import normalise

UNPARSED = "(unparsed)"
_WORD = re.compile(r"\w+(?:['’-]\w+)*")


class Collapse(Protocol):
    """A collapsing function: deterministic, total (every text lands in exactly one class), versioned."""

    @property
    def name(self) -> str:
        """Name, parameters and version, e.g. "kth-word(3)/1"; two results compare only under the same name."""
        ...

    def of_text(self, question: Question, text: str, style: str) -> str:
        """The class of something the model wrote in this style; UNPARSED if it holds no answer."""
        ...

    def of_gold(self, question: Question) -> str:
        """The class of the gold answer."""
        ...


@dataclass(frozen=True)
class ExactMatch:
    """Normalised exact match: two answers mean the same iff they normalise to the same string or are known aliases.

    Attributes:
        aliases: surface form -> class for a closed answer space. There, an answer that is no known form is looked
            through for known forms and takes the last one mentioned (never a shorter form inside a longer one);
            with none it is unparsed. Where it is empty the normalised answer is its own class.
    """

    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "exact/1"

    def of_text(self, question: Question, text: str, style: str) -> str:
        phrase = extract(text, style)
        if phrase is None:
            return UNPARSED
        klass = self._of_phrase(question, phrase)
        # A sentence may say more after its answer than `extract` knows how to remove.
        return self._mentioned(text) if klass == UNPARSED and style == "sentence" else klass

    def of_gold(self, question: Question) -> str:
        return self._of_phrase(question, question.answers[0])

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


@dataclass(frozen=True)
class KthWord:
    """The k-th word of a continuation, lower-case; k counts from 1. A continuation of fewer words is unparsed."""

    k: int

    @property
    def name(self) -> str:
        return f"kth-word({self.k})/1"

    def of_text(self, question: Question, text: str, style: str) -> str:  # noqa: ARG002 - the contract of Collapse
        words = _WORD.findall(text)
        return words[self.k - 1].lower() if len(words) >= self.k else UNPARSED

    def of_gold(self, question: Question) -> str:
        return self.of_text(question, question.answers[0], "")
