"""A language model as judge of what answers mean: shorten each answer, then compare them (arXiv 2511.04869).

Its decisions are kept on disk: one line of JSON each, looked up by content.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np

from semcal.errors import UserError
from semcal.questions.question import BlindQuestion
from semcal.questions.wording import normalise
from semcal.semantics.class_table import UNPARSED
from semcal.semantics.collapsing.clustered import agglomerate, nearest_class


class Decisions:
    """Decisions by key. Earlier ones are read at the start; new ones are appended at once.

    A line that a crash left incomplete is skipped. Two processes may append to one file: each line is one write.

    Args:
        path: The file; created, with its folders, for the first decision.

    Raises:
        UserError: the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, Any] = {}
        try:
            text = path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""
        except OSError as error:
            raise UserError(f"cannot read decisions from {path} ({error.strerror}); set another cache") from error
        self._torn = bool(text) and not text.endswith("\n")
        for line in text.splitlines():
            try:
                entry = json.loads(line)
                self._known[entry["key"]] = entry["value"]
            except (json.JSONDecodeError, KeyError, TypeError):
                continue

    def __contains__(self, key: str) -> bool:
        return key in self._known

    def get(self, key: str) -> Any:
        """The decision; None if there is none."""
        return self._known.get(key)

    def add(self, key: str, value: Any) -> None:
        """Remember a decision.

        Raises:
            UserError: the disk is full, or the folder cannot be written.
        """
        self._known[key] = value
        line = ("\n" if self._torn else "") + json.dumps({"key": key, "value": value}) + "\n"
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            handle = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
            try:
                os.write(handle, line.encode())
            finally:
                os.close(handle)
        except OSError as error:
            raise UserError(f"cannot write decisions to {self.path} ({error.strerror}); set another cache") from error
        self._torn = False


def decision_key(*parts: object) -> str:
    """A key that depends only on the content of its parts."""
    return hashlib.sha256(json.dumps([str(part) for part in parts]).encode()).hexdigest()


# Change VERSION with any of these prompts: decisions made under other prompts are not reused.
VERSION = 1

SHORTEN = """Here is a question and what somebody answered to it.

Question: {question}
Answer: {answer}

What does the answer come to? Reply with JSON and nothing else: {{"answer": "..."}} with a single word or a short
phrase, without explanation. If several answers are given, take the last one. If it does not answer the question at all,
reply {{"answer": null}}."""

SAME = """Here is a question and two answers to it.

Question: {question}
First answer: {first}
Second answer: {second}

Do both answers mean the same, as answers to this question? Other spellings, abbreviations and units of one value are
the same; a more general or more special answer is not. Reply with JSON and nothing else: {{"same": true}} or
{{"same": false}}."""

REMINDER = "\n\nReply with the JSON object alone, in exactly the form asked for."

_OBJECT = re.compile(r"\{[^{}]*\}", re.DOTALL)
Ask = Callable[[Sequence[str]], Iterable[tuple[int, str]]]


class Judge:
    """Two answers mean the same if a language model says so.

    Each distinct answer of a question is shortened to a phrase, and each pair of different phrases is compared once, in
    alphabetical order. Judgements need not be transitive, so classes are made by complete linkage: any two phrases of a
    class were judged the same. An unreadable reply is requested once more. If that fails too, an answer that was not
    shortened is unparsed and a pair that was not compared is different; both are counted, never guessed.

    Args:
        ask: prompts -> (index, reply), in the order in which they arrive.
        model: Name of the model.
        decisions: Earlier decisions; a second pass over the same answers sends no request.

    Attributes:
        failures: Number of answers that could not be shortened ("shorten") and of pairs not compared ("compare").
        asked: Number of requests so far.
    """

    def __init__(self, ask: Ask, model: str, decisions: Decisions) -> None:
        self.ask, self.model, self.decisions = ask, model, decisions
        self.failures = {"shorten": 0, "compare": 0}
        self.asked = 0

    @property
    def name(self) -> str:
        return f"judge({self.model}, prompts {VERSION}, complete)/3"

    def cluster(self, questions: Sequence[BlindQuestion], phrases: Sequence[Sequence[str]]) -> list[list[int]]:
        """As `Cluster`."""
        keys = self._short_forms(questions, phrases)
        same = self._compare(
            (q, a, b)
            for q, own in zip(questions, keys, strict=True)
            for a, b in combinations(sorted({k for k in own if k is not None}), 2)
        )
        labels = []
        for question, own in zip(questions, keys, strict=True):
            distinct = sorted({k for k in own if k is not None})
            similarity = np.eye(len(distinct))
            for (i, a), (j, b) in combinations(enumerate(distinct), 2):
                similarity[i, j] = similarity[j, i] = same[question.id, a, b]
            label_of = dict(zip(distinct, agglomerate(similarity, 0.5, method="complete").tolist(), strict=True))
            labels.append([-1 if k is None else label_of[k] for k in own])
        return labels

    def assign(
        self,
        questions: Sequence[BlindQuestion],
        classes: Sequence[Mapping[str, Sequence[str]]],
        phrases: Sequence[Sequence[str]],
    ) -> list[list[str | None]]:
        """As `Cluster`."""
        keys = self._short_forms(questions, phrases)
        flat = self._short_forms(questions, [[m for members in known.values() for m in members] for known in classes])
        members: list[dict[str, list[str]]] = []
        for known, shortened in zip(classes, flat, strict=True):
            short = iter(shortened)
            members.append({label: [key for _ in own if (key := next(short))] for label, own in known.items()})
        same = self._compare(
            (q, min(key, m), max(key, m))
            for q, own, known in zip(questions, keys, members, strict=True)
            for key in own
            if key is not None
            for m in sorted({m for of_class in known.values() for m in of_class})
            if m != key
        )

        def similarity(question: BlindQuestion, key: str, member: str) -> float:
            return 1.0 if key == member else same[question.id, min(key, member), max(key, member)]

        return [
            [
                UNPARSED
                if key is None
                else nearest_class(
                    {label: [similarity(q, key, m) for m in of_class] for label, of_class in known.items()},
                    0.5,
                    method="complete",
                )
                for key in own
            ]
            for q, own, known in zip(questions, keys, members, strict=True)
        ]

    def _short_forms(
        self, questions: Sequence[BlindQuestion], phrases: Sequence[Sequence[str]]
    ) -> list[list[str | None]]:
        """[question][phrase] as `_shorten`."""
        short = iter(self._shorten([(q, p) for q, own in zip(questions, phrases, strict=True) for p in own]))
        return [[next(short) for _ in own] for own in phrases]

    def _shorten(self, answers: Sequence[tuple[BlindQuestion, str]]) -> list[str | None]:
        """[answer] normalised phrases; None if there is no answer, or the judge failed."""
        prompts = [SHORTEN.format(question=q.text, answer=a) for q, a in answers]
        found = self._decide(prompts, "answer", lambda value: value is None or isinstance(value, str))
        self.failures["shorten"] += sum(reply is None for reply in found)
        return [(normalise(r["answer"]) or None) if r and r["answer"] else None for r in found]

    def _compare(self, pairs: Iterable[tuple[BlindQuestion, str, str]]) -> dict[tuple[str, str, str], float]:
        """(question id, first, second) -> 1 if both mean the same, 0 if not, or if the judge failed."""
        asked = list(pairs)
        prompts = [SAME.format(question=q.text, first=a, second=b) for q, a, b in asked]
        found = self._decide(prompts, "same", lambda value: isinstance(value, bool))
        self.failures["compare"] += sum(reply is None for reply in found)
        same = [float(bool(reply and reply["same"])) for reply in found]
        return {(q.id, a, b): value for (q, a, b), value in zip(asked, same, strict=True)}

    def _decide(self, prompts: Sequence[str], field: str, valid: Callable[[Any], bool]) -> list[dict[str, Any] | None]:
        """The judge's reply to each prompt, from earlier decisions if possible; None after two unreadable replies."""
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
    """The JSON object of a reply; None if it is not of the form requested."""
    found = _OBJECT.findall(reply)
    try:
        value = json.loads(found[-1]) if found else None
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) and set(value) == {field} and valid(value[field]) else None
