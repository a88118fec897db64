"""Collapsing by meaning: phrases are extracted and known aliases joined, then a clusterer sorts what is left."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain

from semcal.questions.question import Question
from semcal.semantics.collapsing.collapse import UNPARSED, Cluster, Collapsed, correct_classes
from semcal.semantics.extract import extract
from semcal.semantics.normalise import normalise


@dataclass(frozen=True)
class Clustered:
    """extract → canonicalise (normalised exact match with the gold answer's aliases) → cluster.

    The dataset's own answers, right and wrong, are sorted together with the model's. A class is named by the gold
    answer in it, else by its first phrase in alphabetical order.

    Attributes:
        cluster: What sorts the distinct phrases of a question.
        whole: Whether it reads answers as the model wrote them (a judge does); otherwise the extracted phrase.
    """

    cluster: Cluster
    whole: bool = False

    @property
    def name(self) -> str:
        return self.cluster.name

    def collapse(self, questions: Sequence[Question], texts: Sequence[Sequence[str]], style: str) -> list[Collapsed]:
        """As `Collapse`."""
        pools = [_Pool.of(q, [self._phrase(t, style) for t in its]) for q, its in zip(questions, texts, strict=True)]
        labels = self.cluster.cluster(questions, [list(pool.phrases.values()) for pool in pools])
        return [pool.collapsed(q, own) for q, pool, own in zip(questions, pools, labels, strict=True)]

    def _phrase(self, text: str, style: str) -> str | None:
        return (text.strip() or None) if self.whole else extract(text, style)


@dataclass(frozen=True)
class _Pool:
    """The distinct phrases of one question: canonical form -> a phrase of that form, in alphabetical order."""

    keys: list[str | None]  # of each text
    phrases: dict[str, str]

    @classmethod
    def of(cls, question: Question, said: Sequence[str | None]) -> _Pool:
        keys = [None if phrase is None else _canonical(question, phrase) for phrase in said]
        references = (*question.answers[:1], *chain(*question.others), *question.incorrect)
        forms: dict[str, str] = {}
        for phrase, key in (
            *((r, _canonical(question, r)) for r in references),
            *sorted((p, k) for p, k in zip(said, keys, strict=True) if p is not None and k is not None),
        ):
            if key is not None:
                forms.setdefault(key, phrase)
        return cls(keys, dict(sorted(forms.items())))

    def collapsed(self, question: Question, labels: Sequence[int]) -> Collapsed:
        label_of = dict(zip(self.phrases, labels, strict=True))
        names: dict[int, str] = {}
        golds = [_canonical(question, a) for a in (question.answers[0], *chain(*question.others))]
        for key in (*(g for g in golds if g is not None), *self.phrases):
            names.setdefault(label_of[key], key)
        names[-1] = UNPARSED

        def klass(key: str | None) -> str:
            return UNPARSED if key is None else names[label_of[key]]

        gold = correct_classes(question, lambda q, answer: klass(_canonical(q, answer)))
        return Collapsed(tuple(map(klass, self.keys)), gold)


def _canonical(question: Question, phrase: str) -> str | None:
    """Its normalised form; that of the first gold answer if it is one of its aliases; None if nothing is left."""
    key = normalise(phrase)
    if key in {normalise(a) for a in question.answers}:
        key = normalise(question.answers[0])
    return key or None
