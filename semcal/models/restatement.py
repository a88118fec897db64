"""Asking a server a second time for what it stated about an answer, in a request that its settings would change.

Penalties, min_tokens and begin_suppress_tokens depend on what was generated, so the next token after a prefix of an
answer is stated otherwise where this prefix is the prompt of a fresh request. A bias on a token is not seen this way;
it shows where the server scores an answer as given text (`echo`), which no setting of sampling touches.
`reading` finds out what the server makes of a prompt.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from scipy import stats

from semcal.models.dialects import TOP
from semcal.models.stated_law import LIKELY, Place, gap, places
from semcal.sampling.checks import FAILED, PASSED, Check

LEAST, MOST = 0.5, 1.25  # nats; a gap above MOST is no rounding, one up to LEAST is none of the server's settings
_TIMES = 8.0  # the upper quartile of differences of tokens: a larger gap is no rounding
FALSE_ALARM = 1e-4  # chance that rounding alone moves tokens that occurred before, or likely ones, so consistently
_ALLOWED = 0.1  # nats of a shift, and share of a slope, that selection on rounded figures may make
_FEWEST = 4  # answers, in the test for such moves
_PLACES = 3  # fresh requests per answer
_AROUND = 3  # tokens that a tokenizer may put around a prompt
# Sends a prompt for one token with some more fields; the choices and the prompt's tokens, None where it is refused.
Ask = Callable[..., "Reply | None"]


@dataclass(frozen=True)
class Reply:
    """The choices that a server sends, how many tokens it counts in the prompt (None where it does not say), and the
    model it names ("" where it does not)."""

    choices: list[dict[str, Any]]
    prompt_tokens: int | None
    model: str = ""


@dataclass
class Comparison:
    """What was stated in two ways, and whether rounding explains how it differs.

    How much a server rounds is not known: in fp8 as much as some penalties move. So the largest difference is held
    against the upper quartile; two answers must show it, as one may be read as other tokens. And settings move the same
    tokens the same way in every answer, which rounding does not: a penalty those that occurred before, a temperature
    those that are likely. Their means over answers are held against their standard errors.

    Attributes:
        name: What should hold.
        means: What a difference means.
        answers: The differences of each answer that was compared, place by place.
        why: Why nothing was compared.
    """

    name: str
    means: str
    answers: list[list[Difference]] = field(default_factory=list)
    why: str = "no answer with log-probabilities has two tokens"

    def add(self, places: list[Difference]) -> None:
        """Take in one answer, if anything of it could be compared."""
        if places:
            self.answers.append(places)

    def check(self) -> Check:
        """The figure is the second largest difference among answers, in nats; or what all answers show, where it is
        this that rounding does not explain."""
        if len(self.answers) < 2:
            why = self.why if not self.answers else "only one answer could be compared"
            return Check.not_made(self.name, why)
        figure = sorted(max(place.gap for place in answer) for answer in self.answers)[-2]
        limit = self._limit()
        if figure > limit:
            return Check(self.name, FAILED, self.means, figure, limit)
        for measure in (shift, slope):
            found, most = _consistent([measure(answer) for answer in self.answers])
            if found > most:
                return Check(self.name, FAILED, self.means, found, most)
        why = f"the second largest difference among {len(self.answers)} answers, in nats"
        return Check(self.name, PASSED, why, figure, limit)

    def _limit(self) -> float:
        moved = [abs(move.by) for answer in self.answers for place in answer for move in place.moves]
        return min(max(LEAST, _TIMES * float(np.quantile(moved, 0.75))), MOST) if moved else LEAST


@dataclass(frozen=True)
class Move:
    """A likely token whose statement was compared: its log-probability in nats, how much likelier it is when stated
    again, and whether it occurred before in the answer."""

    logprob: float
    by: float
    occurred: bool


@dataclass(frozen=True)
class Difference:
    """How two statements about one place differ: the largest gap in nats, and the moves of tokens that both list."""

    gap: float
    moves: tuple[Move, ...]

    @classmethod
    def of(cls, one: dict[str, float], other: dict[str, float], before: Collection[str]) -> Difference:
        both = [t for t in one if t in other and math.isfinite(one[t] + other[t]) and math.exp(one[t]) >= LIKELY]
        return cls(gap(one, other), tuple(Move(one[t], other[t] - one[t], t in before) for t in both))


def shift(answer: Sequence[Difference]) -> float | None:
    """How much more tokens that occurred before move than others, in nats; None if no place has both."""
    found = []
    for place in answer:
        by = {seen: [m.by for m in place.moves if m.occurred is seen] for seen in (True, False)}
        if by[True] and by[False]:
            found.append(np.mean(by[True]) - np.mean(by[False]))
    return float(np.mean(found)) if found else None


def slope(answer: Sequence[Difference]) -> float | None:
    """How much more likely tokens move than unlikely ones, per nat, within places: T − 1 where they were stated at a
    temperature of T; None if no place has two tokens."""
    above, square = 0.0, 0.0
    for place in answer:
        if len(place.moves) > 1:
            x = np.array([m.logprob for m in place.moves])
            x = x - x.mean()
            above, square = above + float(x @ [m.by for m in place.moves]), square + float(x @ x)
    return above / square if square > 0 else None


def _consistent(measured: Sequence[float | None]) -> tuple[float, float]:
    """The mean over answers, whatever its sign, and the largest that rounding explains (Student's t)."""
    known = [value for value in measured if value is not None]
    if len(known) < _FEWEST:
        return 0.0, math.inf
    error = float(np.std(known, ddof=1)) / math.sqrt(len(known))
    return abs(float(np.mean(known))), _ALLOWED + error * float(stats.t.isf(FALSE_ALARM / 4, len(known) - 1))


@dataclass(frozen=True)
class _Answer:
    """An answer that a server is asked about again: its places, of which each lists `listed` tokens."""

    prompt: str
    text: str
    found: Sequence[Place]
    prompt_tokens: int
    listed: int


def reading(ask: Ask, prompt: str, prompt_tokens: int | None) -> Check:
    """Whether the server reads a prompt as it is, by the number of tokens that it counts.

    One letter is one token, two at most. More is a template around the prompt; and a prompt that does not grow by
    what is added to it was cut to some length.

    Args:
        ask: Sends a prompt for one token.
        prompt, prompt_tokens: One prompt of the run, and its number of tokens as the server counts.
    """
    name = "prompts are read as they are"
    letter = ask("a") if prompt_tokens is not None else None
    if prompt_tokens is None or letter is None or letter.prompt_tokens is None:
        return Check.not_made(name, "the server does not count the tokens of a prompt")
    around = letter.prompt_tokens - 1
    if around > _AROUND:
        means = "the server puts tokens around a prompt: probably a chat template or a system prompt"
        return Check(name, FAILED, f"{means} ({around} around a single letter)", around, _AROUND)
    longer = ask(prompt + " a b c d")
    if longer is not None and longer.prompt_tokens is not None and longer.prompt_tokens <= prompt_tokens:
        means = "the server cuts prompts to a number of tokens: raise its context length"
        return Check(name, FAILED, f"{means} (a prompt and a longer one have {prompt_tokens})", prompt_tokens)
    return Check.of(name, around, _AROUND, "tokens that the server counts around a single letter")


class Restatement:
    """Compares answers with what the server states about them in other requests. Threads may share it."""

    def __init__(self) -> None:
        self.fresh = Comparison(
            "later tokens have the probabilities that a fresh request states",
            "what is stated depends on what was generated before: probably a presence or frequency penalty, min_tokens "
            "or begin_suppress_tokens",
        )
        self.scored = Comparison(
            "tokens have the probabilities that the same text is scored with",
            "what is stated while sampling is not what a given text is scored with: probably logit_bias, bad_words, "
            "suppress_tokens, a penalty or a temperature",
        )

    def compare(
        self, ask: Ask, prompt: str, choice: dict[str, Any], prompt_tokens: int | None, listed: int = TOP
    ) -> None:
        """Compare one answer in both ways, as far as the server takes part.

        Args:
            ask: Sends a prompt for one token.
            prompt, choice, prompt_tokens: What was answered, how, and how many tokens the server counts in the prompt.
            listed: As in `places`.
        """
        found = [place for place in places(choice, listed) if place.stated]
        if len(found) < 2:
            return
        if prompt_tokens is None:
            self.fresh.why = self.scored.why = "the server does not count the tokens of a prompt"
            return
        answer = _Answer(prompt, str(choice["text"]), found, prompt_tokens, listed)
        self.fresh.add(self._afresh(ask, answer))
        self.scored.add(self._as_given(ask, answer))

    def _afresh(self, ask: Ask, answer: _Answer) -> list[Difference]:
        differences, found = [], answer.found
        for index in _telling(found):
            prefix = "".join(place.token for place in found[:index])
            if "\ufffd" in prefix or not answer.text.startswith(prefix):
                continue
            reply = ask(answer.prompt + prefix)
            again = places(reply.choices[0], answer.listed) if reply else []
            # A prefix that is read as another number of tokens is another prompt.
            if reply and again and again[0].stated and reply.prompt_tokens == answer.prompt_tokens + index:
                differences.append(
                    Difference.of(found[index].stated, again[0].stated, {p.token for p in found[:index]})
                )
            else:
                self.fresh.why = "no prefix of an answer is read as the same tokens"
        return differences

    def _as_given(self, ask: Ask, answer: _Answer) -> list[Difference]:
        found = answer.found
        reply = ask(answer.prompt + answer.text, echo=True, logprobs=TOP)
        scored = places(reply.choices[0], answer.listed)[answer.prompt_tokens :] if reply else []
        differences = []
        for index, (place, again) in enumerate(zip(found, scored, strict=False)):
            if place.token != again.token or not again.stated:
                break
            differences.append(Difference.of(place.stated, again.stated, {p.token for p in found[:index]}))
        if not differences:
            self.scored.why = "the server does not score given text"
        return differences


def _telling(found: Sequence[Place]) -> list[int]:
    """The places at which settings show best: where tokens that occurred before are likely, and the last."""

    def repeated(index: int) -> float:
        before = {place.token for place in found[:index]}
        return max((p for token, p in found[index].stated.items() if token in before), default=float("-inf"))

    return sorted({*sorted(range(1, len(found)), key=repeated, reverse=True)[: _PLACES - 1], len(found) - 1})
