"""A language model as judge of what answers mean, as in arXiv 2511.04869: shorten each answer, then compare them."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Sequence
from itertools import combinations
from typing import Any

import numpy as np

from semcal.questions.question import Question
from semcal.semantics.collapsing.agglomerate import agglomerate
from semcal.semantics.collapsing.decisions import Decisions, decision_key
from semcal.semantics.collapsing.judge_prompts import REMINDER, SAME, SHORTEN, VERSION
from semcal.semantics.normalise import normalise

_OBJECT = re.compile(r"\{[^{}]*\}", re.DOTALL)
Ask = Callable[[Sequence[str]], Iterable[tuple[int, str]]]


class Judge:
    """Answers mean the same where a language model says so.

    Each distinct answer of a question is shortened to a phrase; every two different phrases are compared once, the
    alphabetically earlier one first. Judgements need not be transitive: classes are made by complete linkage, so that
    any two phrases of a class were called the same. Replies that cannot be read are asked for once more; after that an
    answer that was not shortened is unparsed and two phrases that were not compared are taken for different, and both
    are counted, never guessed.

    Args:
        ask: prompts -> (index, reply) as they come.
        model: Its name.
        decisions: What was decided before; a second pass over the same answers asks nothing.

    Attributes:
        failures: How many answers could not be shortened ("shorten") and how many pairs not compared ("compare").
        asked: Requests so far.
    """

    def __init__(self, ask: Ask, model: str, decisions: Decisions) -> None:
        self.ask, self.model, self.decisions = ask, model, decisions
        self.failures = {"shorten": 0, "compare": 0}
        self.asked = 0

    @property
    def name(self) -> str:
        return f"judge({self.model}, prompts {VERSION}, complete)/1"

    def cluster(self, questions: Sequence[Question], phrases: Sequence[Sequence[str]]) -> list[list[int]]:
        """As `Cluster`; a phrase that holds no answer has the label -1."""
        shortened = self._shorten([(q, p) for q, its in zip(questions, phrases, strict=True) for p in its])
        short = iter(shortened)
        keys = [[next(short) for _ in its] for its in phrases]
        pairs = [
            (q, a, b)
            for q, its in zip(questions, keys, strict=True)
            for a, b in combinations(sorted({k for k in its if k is not None}), 2)
        ]
        same = dict(zip(((q.id, a, b) for q, a, b in pairs), self._compare(pairs), strict=True))
        labels = []
        for question, its in zip(questions, keys, strict=True):
            distinct = sorted({k for k in its if k is not None})
            similarity = np.eye(len(distinct))
            for (i, a), (j, b) in combinations(enumerate(distinct), 2):
                similarity[i, j] = similarity[j, i] = same[question.id, a, b]
            label_of = dict(zip(distinct, agglomerate(similarity, 0.5, method="complete").tolist(), strict=True))
            labels.append([-1 if k is None else label_of[k] for k in its])
        return labels

    def _shorten(self, answers: Sequence[tuple[Question, str]]) -> list[str | None]:
        """The normalised phrase each answer comes to; None where there is none, or the judge failed."""
        prompts = [SHORTEN.format(question=q.text, answer=a) for q, a in answers]
        found = self._decide(prompts, "answer", lambda value: value is None or isinstance(value, str))
        self.failures["shorten"] += sum(reply is None for reply in found)
        return [(normalise(r["answer"]) or None) if r and r["answer"] else None for r in found]

    def _compare(self, pairs: Sequence[tuple[Question, str, str]]) -> list[float]:
        """1 where a pair is the same, 0 where it is not, or the judge failed."""
        prompts = [SAME.format(question=q.text, first=a, second=b) for q, a, b in pairs]
        found = self._decide(prompts, "same", lambda value: isinstance(value, bool))
        self.failures["compare"] += sum(reply is None for reply in found)
        return [float(bool(reply and reply["same"])) for reply in found]

    def _decide(self, prompts: Sequence[str], field: str, valid: Callable[[Any], bool]) -> list[dict[str, Any] | None]:
        """The judge's reply to each prompt, from before where it was asked already; None after two unreadable ones."""
        keys = {prompt: decision_key(self.model, VERSION, prompt) for prompt in prompts}
        for reminder in ("", REMINDER):
            left = [prompt for prompt, key in keys.items() if key not in self.decisions]
            for index, reply in self.ask([prompt + reminder for prompt in left]) if left else ():
                self.asked += 1
                value = _read(reply, field, valid)
                if value is not None:
                    self.decisions.add(keys[left[index]], value)
        return [self.decisions.get(keys[p]) for p in prompts]


def _read(reply: str, field: str, valid: Callable[[Any], bool]) -> dict[str, Any] | None:
    """The JSON object of a reply, if it is the one that was asked for."""
    found = _OBJECT.findall(reply)
    try:
        value = json.loads(found[-1]) if found else None
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) and set(value) == {field} and valid(value[field]) else None
