"""The sampler: token ids in, distinct token sequences with counts out.

Each question gets one prefill, which an observer may watch. Its samples branch where they disagree; finished answers
leave at once and new questions take their place. A budget of rows and of keys and values limits the questions in
flight. If the device still runs out of memory, the budget is halved and the questions in flight are restarted, which
does not change their samples.
"""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import NoReturn

import psutil
import torch
from transformers import PreTrainedModel

from semcal.errors import NonFiniteError, UserError
from semcal.sampling.branches import Branches, Moves
from semcal.sampling.checks import LawWatch
from semcal.sampling.decoding.decoders import (
    PREFILL_TOKENS,
    ExpandedDecoder,
    Observer,
    RereadDecoder,
    TreeDecoder,
    shared_prefix,
)
from semcal.sampling.decoding.paths import EXPANDED, SHARED, ChosenPath, choose_path
from semcal.sampling.drawing import draw
from semcal.sampling.memory import Footprint, sorts
from semcal.sampling.records import Answered, Prompt, Sampling
from semcal.sampling.stopping import StopRule

log = logging.getLogger(__name__)


@dataclass
class Work:
    """What a sampler has done.

    Attributes:
        path: "shared-prefix", "expanded" or "reread", see `paths.py`.
        why: Why the path is not "shared-prefix"; empty if it is.
        apart: Largest difference of the path from plain forward passes on two prompts, in nats; None if not compared.
        apart_limit: What rounding explains of it, in nats; None if not compared.
        apart_single: The same where the model computes in single precision; None if not compared so.
        prefix_tokens: Length of the shared prefix, read once.
        prompt_tokens: Number of other prompt tokens read.
        rows_decoded: Rows times steps that were decoded.
        rows_plain: The same for a sampler that decodes each of the M samples on its own.
        peak_kv_bytes: Most bytes of keys and values held at once.
        restarts: Number of questions restarted because memory ran out.
        prefill_seconds: Wall-clock time of prefills and first draws, including the observer.
    """

    path: str = SHARED
    why: str = ""
    apart: float | None = None
    apart_limit: float | None = None
    apart_single: float | None = None
    prefix_tokens: int = 0
    prompt_tokens: int = 0
    rows_decoded: int = 0
    rows_plain: int = 0
    peak_kv_bytes: int = 0
    restarts: int = 0
    prefill_seconds: float = 0.0


@dataclass(frozen=True)
class Budget:
    """How much may be in flight.

    Attributes:
        rows: Answers decoded in one pass; a target, not a limit.
        positions: Keys and values held for questions and answers, in token positions; a limit.
    """

    rows: int
    positions: int

    @classmethod
    def of(
        cls, model: PreTrainedModel, device: torch.device, rows: int | None = None, *, sorted_draws: bool = False
    ) -> Budget:
        """The budget that suits a device and its free memory."""
        free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else psutil.virtual_memory().available
        needed = Footprint(model.config.get_text_config(), model.dtype.itemsize, device.type, sorted_draws)
        rows = rows or needed.rows
        return cls(rows, needed.positions(free, rows, model.get_memory_footprint()))


class Sampler:
    """Draws M answers to every prompt.

    Args:
        model: A causal LM; do not use it for anything else while it samples.
        settings: All settings of the sampler.
        stop_rule: Tells where an answer ends.
        device: The device of the token ids.
        max_rows: Answers decoded in one pass; None chooses by device. It changes samples only by rounding.
        path: "shared-prefix", "expanded", "reread", or None for the first of them that agrees with plain forward
            passes.
        prefix: Tokens that the prompts of all calls begin with, read once; None finds those of each call.
        watch: Sees some of the draws.

    Attributes:
        work: The work done so far.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        settings: Sampling,
        stop_rule: StopRule,
        *,
        device: torch.device,
        max_rows: int | None = None,
        path: str | None = None,
        prefix: Sequence[int] | None = None,
        watch: LawWatch | None = None,
    ) -> None:
        self.model, self.settings, self.stop_rule, self.device = model, settings, stop_rule, device
        self.max_rows, self.path, self.work = max_rows, path, Work()
        self.prefix = None if prefix is None else tuple(prefix)
        self.watch = watch
        self._decoder: TreeDecoder | None = None
        self._budget: Budget | None = None

    def sample(
        self,
        prompts: Sequence[Prompt],
        observer: Observer | None = None,
        on_answered: Callable[[int], None] = lambda _: None,
    ) -> Iterator[Answered]:
        """Answers in the order in which questions finish, roughly that of the prompts.

        Args:
            prompts: With distinct keys. Sort them by length to save padding.
            observer: Watches every prefill.
            on_answered: Called with the number of questions just finished.

        Raises:
            NonFiniteError: NaN or infinity in the logits, naming question and token.
            UserError: a model that is not causal or that no path computes rightly; or not even a single question
                fits into memory.
        """
        if not prompts:
            return
        if len({p.key for p in prompts}) < len(prompts):
            raise ValueError("two prompts have the same key")
        if self.prefix is not None and shared_prefix([*prompts, Prompt("", (*self.prefix, -1))]) < len(self.prefix):
            raise ValueError("every prompt must begin with the prefix and be longer than it")
        waiting = deque(prompts)
        while waiting:
            flight = None
            try:
                flight = self._take_off(prompts)
                for answered in flight.run(waiting, observer):
                    on_answered(1)
                    yield answered
            except NonFiniteError:
                self._decoder = None  # it may hold NaN in memory that later questions would reuse
                raise
            except torch.OutOfMemoryError as error:
                if flight is None or len(flight.branches.questions) <= 1:
                    raise UserError(
                        "out of GPU memory with a single question; lower max_new_tokens or m, or use a smaller model "
                        "or dtype"
                    ) from error
                again = [q.prompt for q in flight.branches.questions.values()]
                waiting.extendleft(reversed(again))
                self.work.restarts += len(again)
                rows, positions = flight.budget.rows // 2, flight.budget.positions // 2
                self._budget = Budget(max(1, rows), max(1, positions))  # for the rest of this sampler
                self._decoder = None
                log.warning("out of GPU memory: restarting %d questions with half the budget", len(again))
            del flight
            if self.device.type == "cuda" and waiting:
                torch.cuda.empty_cache()

    def choose_path(self, prompts: Sequence[Prompt]) -> str:
        """The path, found on two of these prompts if it is not known yet.

        Raises:
            UserError: a model that is not causal or that no path computes rightly.
        """
        if self.path is None:
            self.take(choose_path(self.model, self.device, prompts))
        assert self.path is not None
        self.work.path = self.path
        return self.path

    def take(self, chosen: ChosenPath) -> None:
        """Sample by a path that was found before."""
        self.path = self.work.path = chosen.path
        self.work.why = chosen.why
        self.work.apart, self.work.apart_limit, self.work.apart_single = chosen.apart, chosen.limit, chosen.single
        if chosen.path != SHARED:
            log.warning("sampling by path %s, which is slower than %s: %s", chosen.path, SHARED, chosen.why)

    def _take_off(self, prompts: Sequence[Prompt]) -> _Flight:
        if self._budget is None:
            sorted_draws = sorts(self.settings.top_k, self.settings.top_p)
            self._budget = Budget.of(self.model, self.device, self.max_rows, sorted_draws=sorted_draws)
        budget = self._budget
        prefix = prompts[0].ids[: shared_prefix(prompts)] if self.prefix is None else self.prefix
        path = self.choose_path(prompts)
        if path == SHARED:
            decoder = self._decoder = self._decoder or self._new_decoder(prompts[0])
            decoder.share(prefix)
            widest = 0
            self.work.prefix_tokens = len(prefix)
        else:
            decoder = (ExpandedDecoder if path == EXPANDED else RereadDecoder)(self.model, self.device)
            widest = max(len(p.ids) for p in prompts)
        branches = Branches(self.settings, self.stop_rule)
        return _Flight(decoder, branches, budget, self.work, len(prefix), widest, self.watch)

    def _new_decoder(self, prompt: Prompt) -> TreeDecoder:
        """A decoder after its first pass, of which it returns all logits: no draw may depend on being the first."""
        decoder = TreeDecoder(self.model, self.device)
        decoder.read([Prompt(prompt.key, prompt.ids[:1])], torch.zeros(1, dtype=torch.long), None)
        return decoder


class _Flight:
    """The questions being sampled, until none is waiting or memory runs out.

    Args:
        offset: Length of the shared prefix.
        carried: Prompt positions that every row holds a copy of, where questions are not stored once.
    """

    def __init__(
        self,
        decoder: TreeDecoder | ExpandedDecoder | RereadDecoder,
        branches: Branches,
        budget: Budget,
        work: Work,
        offset: int,
        carried: int,
        watch: LawWatch | None,
    ) -> None:
        self.decoder, self.branches, self.budget, self.work = decoder, branches, budget, work
        self.offset, self.carried, self.watch = offset, carried, watch
        self.tails = 0  # longest prompt in flight, without the shared prefix
        # Expected rows and tokens per question: a guess, then the mean of recent ones. If questions in flight cannot be
        # abandoned one by one, the worst case of rows.
        m = branches.settings.m
        self.spread, self.length = (max(1.0, m / 3), 8.0) if decoder.joins else (float(m), 32.0)

    def run(self, waiting: deque[Prompt], observer: Observer | None) -> Iterator[Answered]:
        while waiting or self.branches.questions:
            if n := self._room(waiting):
                self._read([waiting.popleft() for _ in range(n)], observer)
            yield from self._closed()
            while self._too_much():
                waiting.appendleft(self._drop_youngest())
            if len(self.branches):
                self._extend()
                yield from self._closed()
            if not self.branches.questions:
                self.tails = 0

    def _room(self, waiting: deque[Prompt]) -> int:
        """Number of questions to read now."""
        rows, flying = len(self.branches), len(self.branches.questions)
        if not waiting or (flying and (not self.decoder.joins or rows > self.budget.rows / 2)):
            return 0
        n = int((self.budget.rows - rows) / self.spread)
        tail = max(self.tails, len(waiting[0].ids) - self.offset)
        each = tail + self.spread * (self.length + self.carried)
        n = min(n, int((self.budget.positions - self._held()) / each), len(waiting))
        widest = 0
        for i in range(n):
            widest = max(widest, len(waiting[i].ids) - self.offset)
            if (i + 1) * widest > PREFILL_TOKENS:
                n = i
                break
        return max(n, 0 if flying else 1)

    def _held(self) -> int:
        lengths = self.branches.lengths + 1
        if self.decoder.joins:  # short answers do not take the room of long ones, but up to twice their own
            answers = 2 * int(lengths.sum())
        else:
            answers = len(lengths) * (int(lengths.max(initial=0)) + self.carried)
        return len(self.branches.questions) * self.tails + answers

    def _too_much(self) -> bool:
        return self._held() > self.budget.positions and len(self.branches.questions) > 1 and self.decoder.joins

    def _drop_youngest(self) -> Prompt:
        youngest = max(self.branches.questions.values(), key=lambda q: q.order)
        prompt, moves = self.branches.drop(youngest.slot)
        self._move(moves)
        self.work.restarts += 1
        return prompt

    def _read(self, prompts: list[Prompt], observer: Observer | None) -> None:
        began = time.monotonic()
        slots = self.branches.free_slots(len(prompts))
        rows, uniform = self.branches.open(prompts, slots)
        logits = self.decoder.read(prompts, torch.tensor(slots), observer)
        self.tails = max(self.tails, *(len(p.ids) - self.offset for p in prompts))
        self.work.prompt_tokens += sum(len(p.ids) - self.offset for p in prompts)
        tokens, logprobs, bad = draw(logits, self.branches.settings, rows, uniform)
        if len(bad):
            refuse(prompts[int(bad[0])].key, 0)
        if self.watch is not None:
            self.watch.first(prompts, logits, rows, tokens)
        moves = self.branches.begin(slots, tokens, logprobs)
        self.work.prefill_seconds += time.monotonic() - began  # the drawn tokens have arrived, so the device is done
        if not self.decoder.joins:
            self._move(moves)

    def _extend(self) -> None:
        branches = self.branches
        lengths = branches.lengths
        logits = self.decoder.extend(
            torch.from_numpy(branches.last_tokens), torch.from_numpy(branches.slots), torch.from_numpy(lengths - 1)
        )
        rows, uniform = branches.uniforms()
        self.work.rows_decoded += len(branches)
        self.work.rows_plain += len(rows)
        self.work.peak_kv_bytes = max(self.work.peak_kv_bytes, self.decoder.nbytes)
        tokens, logprobs, bad = draw(logits, branches.settings, rows, uniform)
        if len(bad):
            row = int(bad[0])
            refuse(branches.questions[int(branches.slots[row])].prompt.key, int(lengths[row]))
        if (
            self.watch is not None and not self.work.restarts
        ):  # a question that is restarted draws the same tokens again
            self.watch.later(logits, rows, tokens)
        self._move(branches.grow(tokens, logprobs))

    def _move(self, moves: Moves) -> None:
        self.decoder.move(moves.rows, torch.from_numpy(moves.target), torch.from_numpy(moves.source))

    def _closed(self) -> Iterator[Answered]:
        for question, answered in self.branches.close():
            self.spread += (question.widest - self.spread) / 16
            longest = max(len(s.ids) for s in answered.samples)
            self.length += (longest - self.length) / 16
            yield answered


def refuse(key: str, token: int) -> NoReturn:
    """Report logits that are not finite.

    Raises:
        NonFiniteError: always.
    """
    raise NonFiniteError(f"question {key!r}: logits of new token {token} (output layer) are NaN or infinite")
