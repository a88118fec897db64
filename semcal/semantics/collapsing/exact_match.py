"""Normalised exact match, with the aliases of a closed answer space."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from semcal.questions.question import Question
from semcal.semantics.class_table import UNPARSED
from semcal.semantics.collapsing.collapse import Pointwise
from semcal.semantics.extract import extract
from semcal.semantics.normalise import normalise


@dataclass(frozen=True)
class ExactMatch(Pointwise):
    """Two answers mean the same if and only if they normalise to the same string or are known aliases.

    Attributes:
        aliases: Surface form -> class of a closed answer space. An answer that is not a known form takes the class of
            the last known form that it mentions (never a shorter form inside a longer one); if it mentions none, it is
            unparsed. Empty for an open answer space, where each normalised answer is a class of its own.
    """

    aliases: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "exact/2"

    def of_text(self, question: Question, text: str, style: str) -> str:
        phrase = extract(text, style)
        if phrase is None:
            return UNPARSED
        label = self._of_phrase(question, phrase)
        # A sentence may go on after its answer in a way that `extract` cannot remove.
        return self._mentioned(text) if label == UNPARSED and style == "sentence" else label

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
        return {normalise(form): label for form, label in self.aliases.items()}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._table, key=lambda form: (-len(form), form))
        return re.compile(r"\b(?:" + "|".join(map(re.escape, longest_first)) + r")\b")
