"""Collapsing by what an answer mentions: for short facts that a model answers in sentences of its own."""

import re
from dataclasses import dataclass
from functools import cached_property

from semcal.questions.question import BlindQuestion
from semcal.questions.wording import mention, normalise
from semcal.semantics.class_table import UNPARSED
from semcal.semantics.collapsing.exact_match import ExactMatch
from semcal.semantics.extract import extract


@dataclass(frozen=True)
class Mention(ExactMatch):
    """Exact match which, of a phrase that is not a known form, takes the last known form that it mentions.

    "It stands in Rome, Italy" is Italy where Italy is a gold answer of any question of the dataset. A phrase that
    mentions no known form is a class of its own, as in exact match. It suits datasets whose answers are of one kind
    (countries, languages): where they are not, an answer mentions much that is no answer to its question.
    """

    @property
    def name(self) -> str:
        return "mention/1"

    def of_text(self, question: BlindQuestion, text: str, style: str) -> str:
        label = super().of_text(question, text, style)
        if label == UNPARSED or label in self._classes:
            return label
        phrase = extract(text, style) or ""
        line = text.strip().split("\n", 1)[0]
        for part in (phrase, line) if style == "sentence" else (phrase,):
            if found := self._known.findall(normalise(part)):
                return self.pooled[found[-1]]
        return label

    @cached_property
    def _classes(self) -> frozenset[str]:
        return frozenset(self.pooled.values())

    @cached_property
    def _known(self) -> re.Pattern[str]:
        longest_first = sorted(self.pooled, key=lambda form: (-len(form), form))
        return re.compile("|".join(map(mention, longest_first)) or r"(?!)")
