"""Multiple choice: the option that an answer names by its letter or by its words."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass

from semcal.questions.question import Question
from semcal.semantics.class_table import UNPARSED
from semcal.semantics.collapsing.collapse import Pointwise
from semcal.semantics.extract import extract
from semcal.semantics.normalise import normalise

_LETTER = re.compile(r"^\W*(?:[Oo]ption\s+)?([A-Za-z])(?:[).:\]*]|\s*$)")


@dataclass(frozen=True)
class Choice(Pointwise):
    """The option that an answer names. Its class is the text of the option, since letters are shuffled.

    A letter counts if it is alone or followed by one of ). : and names the option in that position. Otherwise the
    answer must equal the text of an option, or contain that of exactly one. An answer that names no option is unparsed.
    """

    @property
    def name(self) -> str:
        return "choice/1"

    def of_text(self, question: Question, text: str, style: str) -> str:
        phrase = extract(text, style)
        return UNPARSED if phrase is None else self._of_phrase(question, phrase)

    def of_reference(self, question: Question, answer: str) -> str:
        return self._of_words(question, answer)

    def _of_phrase(self, question: Question, phrase: str) -> str:
        exactly = self._of_words(question, phrase)
        letter = _LETTER.match(phrase)
        if exactly != UNPARSED or letter is None:
            return exactly
        place = string.ascii_uppercase.index(letter[1].upper())
        return question.choices[place] if place < len(question.choices) else UNPARSED

    def _of_words(self, question: Question, phrase: str) -> str:
        said = normalise(phrase)
        options = {choice: normalise(choice) for choice in question.choices}
        same = [choice for choice, words in options.items() if words == said]
        # Keep the longest: "Paris, Texas" also contains "Paris".
        contained = [c for c, words in options.items() if words and re.search(rf"\b{re.escape(words)}\b", said)]
        longest = [c for c in contained if not any(c != d and options[c] in options[d] for d in contained)]
        return same[0] if same else longest[0] if len(longest) == 1 else UNPARSED
