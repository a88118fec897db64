"""Collapsing by wording: normalised exact match with the aliases known for all questions, and multiple choice."""

import re
import string
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property

from semcal.questions.question import BlindQuestion
from semcal.questions.wording import mention, normalise
from semcal.semantics.class_table import UNPARSED
from semcal.semantics.collapsing.collapse import Pointwise
from semcal.semantics.extract import extract


@dataclass(frozen=True)
class ExactMatch(Pointwise):
    """Two answers mean the same if and only if they normalise to the same string or are known aliases.

    Which forms are aliases is the same for every question, and nothing of a question's own gold answer is known.

    Attributes:
        closed: Surface form -> class of a closed answer space. An answer that is not a known form takes the class of
            the last known form that it mentions (never a shorter form inside a longer one); if it mentions none, it is
            unparsed. Empty for an open answer space, where each normalised answer is a class of its own.
        pooled: Normalised form -> normalised canonical form of an open answer space (`alias_table.pooled`).
    """

    closed: Mapping[str, str] = field(default_factory=dict)
    pooled: Mapping[str, str] = field(default_factory=dict)

    @property
    def name(self) -> str:
        return "exact/4"

    def of_text(self, question: BlindQuestion, text: str, style: str) -> str:
        phrase = extract(text, style)
        if phrase is None:
            return UNPARSED
        label = self.of_reference(question, phrase)
        # A sentence may go on after its answer in a way that `extract` cannot remove.
        return self._mentioned(text) if label == UNPARSED and style == "sentence" else label

    def of_reference(self, question: BlindQuestion, answer: str) -> str:  # noqa: ARG002 - the contract of Pointwise
        key = normalise(answer)
        if not key:
            return UNPARSED
        if self._table:
            return self._table[key] if key in self._table else self._mentioned(answer)
        return self.pooled.get(key, key)

    def _mentioned(self, text: str) -> str:
        found = self._pattern.findall(normalise(text)) if self._table else []
        return self._table[found[-1]] if found else UNPARSED

    @cached_property
    def _table(self) -> dict[str, str]:
        return {normalise(form): label for form, label in self.closed.items()}

    @cached_property
    def _pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._table, key=lambda form: (-len(form), form))
        return re.compile("|".join(map(mention, longest_first)))


_LETTER = re.compile(r"^\W*(?:[Oo]ption\s+)?([A-Za-z])(?:[).:\]*]|\s*$)")


@dataclass(frozen=True)
class Choice(Pointwise):
    """The option that an answer names. Its class is the text of the option, since letters are shuffled.

    A letter counts if it is alone or followed by one of ). : and names the option in that position. Otherwise the
    answer must equal the text of an option, to the letter or else by wording that only one has, or contain that of
    exactly one. An answer that names no option is unparsed.
    """

    @property
    def name(self) -> str:
        return "choice/2"

    def of_text(self, question: BlindQuestion, text: str, style: str) -> str:
        phrase = extract(text, style)
        return UNPARSED if phrase is None else self._of_phrase(question, phrase)

    def _of_phrase(self, question: BlindQuestion, phrase: str) -> str:
        exactly = self.of_reference(question, phrase)
        letter = _LETTER.match(phrase)
        if exactly != UNPARSED or letter is None:
            return exactly
        place = string.ascii_uppercase.index(letter[1].upper())
        return question.choices[place] if place < len(question.choices) else UNPARSED

    def of_reference(self, question: BlindQuestion, answer: str) -> str:
        if answer in question.choices:
            return answer
        said = normalise(answer)
        options = {choice: normalise(choice) for choice in question.choices}
        same = [choice for choice, words in options.items() if words == said]
        # Keep the longest: "Paris, Texas" also contains "Paris".
        contained = [c for c, words in options.items() if words and re.search(mention(words), said)]
        longest = [c for c in contained if not any(c != d and options[c] in options[d] for d in contained)]
        return same[0] if len(same) == 1 else longest[0] if len(longest) == 1 else UNPARSED
