"""The unfinished answers, each distinct one stored once, with the samples that share it.

Pure bookkeeping, without a model. At every step each of the M samples of a question draws its own token, from a uniform
number that depends only on (seed, question, step, sample); samples with the same tokens so far share a row. The answers
are therefore exactly those of M independent samples, while each row is decoded once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import torch

from semcal.sampling.records import LENGTH, STOP, Answered, Prompt, Sample, Sampling
from semcal.sampling.stopping import StopRule
from semcal.seeds import keyed_generator


@dataclass
class OpenQuestion:
    """A question with unfinished samples.

    Attributes:
        prompt: Its prompt.
        slot: Slot of its keys and values.
        generator: Source of m uniform numbers per step.
        order: Number of questions opened before it.
        finished: Distinct finished answers.
        left: Number of unfinished samples.
        widest: The most rows it has had at once.
    """

    prompt: Prompt
    slot: int
    generator: np.random.Generator
    order: int
    left: int
    finished: list[Sample] = field(default_factory=list)
    widest: int = 1


@dataclass(frozen=True)
class Moves:
    """How rows are renumbered: there are now `rows`, and row target[i] continues the former row source[i]."""

    rows: int
    target: np.ndarray
    source: np.ndarray


class Branches:
    """Rows 0..R-1, one for each distinct unfinished answer.

    Attributes:
        ids: [row] token ids of the answer so far.
        logprob: [row] log-probability of those tokens, in nats.
        slots: [row] slots of the questions.
        questions: Slot -> question.
    """

    def __init__(self, settings: Sampling, stop_rule: StopRule) -> None:
        self.settings, self.stop_rule = settings, stop_rule
        self.questions: dict[int, OpenQuestion] = {}
        self._opened = 0
        self.ids: list[list[int]] = []
        self.logprob = np.zeros(0)
        self.slots = np.zeros(0, dtype=np.int64)
        self._row = np.zeros(0, dtype=np.int64)  # [sample] ascending
        self._number = np.zeros(0, dtype=np.int64)  # [sample] its number among the m of its question

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def lengths(self) -> np.ndarray:
        """[row] number of tokens so far."""
        return np.fromiter(map(len, self.ids), dtype=np.int64, count=len(self.ids))

    @property
    def last_tokens(self) -> np.ndarray:
        return np.fromiter((i[-1] for i in self.ids), dtype=np.int64, count=len(self.ids))

    def free_slots(self, n: int) -> list[int]:
        """The n lowest free slots."""
        free = (s for s in range(len(self.questions) + n) if s not in self.questions)
        return [next(free) for _ in range(n)]

    def open(self, prompts: Sequence[Prompt], slots: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        """Open new questions; (row, uniform) of their first draws, where row i is the i-th of these prompts."""
        uniform = []
        for prompt, slot in zip(prompts, slots, strict=True):
            generator = keyed_generator(self.settings.seed, prompt.key, "sampling")
            self.questions[slot] = OpenQuestion(prompt, slot, generator, self._opened, self.settings.m)
            self._opened += 1
            uniform.append(generator.random(self.settings.m))
        return np.repeat(np.arange(len(prompts)), self.settings.m), np.concatenate(uniform)

    def uniforms(self) -> tuple[np.ndarray, np.ndarray]:
        """(row, uniform) of the next draw of every sample, rows ascending."""
        numbers = np.empty((max(self.questions) + 1, self.settings.m))
        for slot, question in self.questions.items():
            numbers[slot] = question.generator.random(self.settings.m)
        return self._row, numbers[self.slots[self._row], self._number]

    def begin(self, slots: Sequence[int], tokens: np.ndarray, logprobs: np.ndarray) -> Moves:
        """Take the first draws of newly opened questions; their rows follow the existing ones.

        The source of a move is the position of the question in `slots`.
        """
        m, before = self.settings.m, len(self)
        start = _Rows([[] for _ in slots], np.zeros(len(slots)), np.asarray(slots))
        samples = np.repeat(np.arange(len(slots)), m), np.tile(np.arange(m), len(slots))
        parent, grown, (row, number) = self._grow(start, *samples, tokens, logprobs)
        self._set(
            [*self.ids, *grown.ids],
            np.concatenate([self.logprob, grown.logprob]),
            np.concatenate([self.slots, grown.slots]),
            np.concatenate([self._row, row + before]),
            np.concatenate([self._number, number]),
        )
        return Moves(len(self), before + np.arange(len(parent)), parent)

    def grow(self, tokens: np.ndarray, logprobs: np.ndarray) -> Moves:
        """Take one draw of every sample. Rows whose samples disagree split; finished rows are removed."""
        old = _Rows(self.ids, self.logprob, self.slots)
        parent, grown, (row, number) = self._grow(old, self._row, self._number, tokens, logprobs)
        return self._renumber(parent, grown, row, number)

    def drop(self, slot: int) -> tuple[Prompt, Moves]:
        """Abandon a question, as if it had never been opened."""
        prompt = self.questions.pop(slot).prompt
        parent = (self.slots != slot).nonzero()[0]
        kept = _Rows([self.ids[i] for i in parent], self.logprob[parent], self.slots[parent])
        stay = self.slots[self._row] != slot
        new_row = np.searchsorted(parent, self._row[stay])
        return prompt, self._renumber(parent, kept, new_row, self._number[stay])

    def close(self) -> list[tuple[OpenQuestion, Answered]]:
        """Remove the questions whose samples are all finished, and return them with their answers."""
        done = [q for q in self.questions.values() if q.left == 0]
        for question in done:
            del self.questions[question.slot]
        ordered = [sorted(q.finished, key=lambda s: (-s.count, s.ids)) for q in done]
        return [(q, Answered(q.prompt.key, tuple(samples))) for q, samples in zip(done, ordered, strict=True)]

    def _grow(
        self, old: _Rows, row: np.ndarray, number: np.ndarray, tokens: np.ndarray, logprobs: np.ndarray
    ) -> tuple[np.ndarray, _Rows, tuple[np.ndarray, np.ndarray]]:
        """(parents of the rows that go on, those rows, (rows of their samples, numbers of their samples))."""
        vocabulary = len(self.stop_rule.eos)
        children, first, child_of, counts = np.unique(
            row * vocabulary + tokens, return_index=True, return_inverse=True, return_counts=True
        )
        parent, token = np.divmod(children, vocabulary)
        logprob = old.logprob[parent] + logprobs[first]
        ids = [[*old.ids[p], t] for p, t in zip(parent.tolist(), token.tolist(), strict=True)]
        stopped = self.stop_rule.finished(torch.from_numpy(token), ids).numpy()
        done = stopped | np.fromiter((len(i) >= self.settings.max_new_tokens for i in ids), dtype=bool, count=len(ids))
        slots = old.slots[parent]
        for i in done.nonzero()[0].tolist():
            question = self.questions[int(slots[i])]
            finish = STOP if stopped[i] else LENGTH
            question.finished.append(Sample(tuple(ids[i]), float(logprob[i]), finish, int(counts[i])))
            question.left -= int(counts[i])
        going = (~done).nonzero()[0]
        for slot, rows in zip(*np.unique(slots[going], return_counts=True), strict=True):
            question = self.questions[int(slot)]
            question.widest = max(question.widest, int(rows))
        new_row = np.cumsum(~done) - 1
        stay = ~done[child_of]
        rows = _Rows([ids[i] for i in going.tolist()], logprob[going], slots[going])
        return parent[going], rows, (new_row[child_of[stay]], number[stay])

    def _renumber(self, parent: np.ndarray, rows: _Rows, row: np.ndarray, number: np.ndarray) -> Moves:
        """Keep as many rows as possible in place: the first child of a row takes its number."""
        n = len(parent)
        first = np.ones(n, dtype=bool)
        first[1:] = parent[1:] != parent[:-1]
        stay = first & (parent < n)
        place = np.empty(n, dtype=np.int64)
        place[stay] = parent[stay]
        taken = np.zeros(n, dtype=bool)
        taken[parent[stay]] = True
        place[~stay] = (~taken).nonzero()[0]
        inverse = np.argsort(place)
        ids = [rows.ids[i] for i in inverse.tolist()]
        self._set(ids, rows.logprob[inverse], rows.slots[inverse], place[row], number)
        return Moves(n, place[~stay], parent[~stay])

    def _set(
        self, ids: list[list[int]], logprob: np.ndarray, slots: np.ndarray, row: np.ndarray, number: np.ndarray
    ) -> None:
        order = np.argsort(row, kind="stable")
        self.ids, self.logprob, self.slots, self._row, self._number = ids, logprob, slots, row[order], number[order]


@dataclass(frozen=True)
class _Rows:
    ids: list[list[int]]
    logprob: np.ndarray
    slots: np.ndarray
