"""Asking a server a second time for what it stated about an answer, in a request that its settings would change.

Penalties, min_tokens and begin_suppress_tokens depend on what was generated, so the next token after a prefix of an
answer is stated otherwise where this prefix is the prompt of a fresh request. A bias on a token is not seen this way;
it shows where the server scores an answer as given text (`echo`), which no setting of sampling touches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from semcal.models.dialects import TOP
from semcal.models.stated_law import Place, gap, places
from semcal.sampling.checks import FAILED, PASSED, Check

LIMIT = 0.25  # nats; chosen, not measured: what another batch, bfloat16 or a quantised cache may change
_PLACES = 3  # fresh requests per answer
# Sends a prompt for one token with some more fields; the choices and the prompt's tokens, None where it is refused.
Ask = Callable[..., "Reply | None"]


@dataclass(frozen=True)
class Reply:
    """The choices that a server sends, and how many tokens it counts in the prompt (None where it does not say)."""

    choices: list[dict[str, Any]]
    prompt_tokens: int | None


@dataclass
class Comparison:
    """What was stated in two ways. Two answers must differ by more than LIMIT, as one may be read as other tokens.

    Attributes:
        name: What should hold.
        means: What a difference means.
        gaps: The largest difference in nats of each answer that was compared.
        why: Why nothing was compared.
    """

    name: str
    means: str
    gaps: list[float] = field(default_factory=list)
    why: str = "no answer with log-probabilities has two tokens"

    def check(self) -> Check:
        """The figure is the second largest difference among answers, in nats."""
        if len(self.gaps) < 2:
            why = self.why if not self.gaps else "only one answer could be compared"
            return Check.not_made(self.name, why)
        figure = sorted(self.gaps)[-2]
        if figure > LIMIT:
            return Check(self.name, FAILED, self.means, figure, LIMIT)
        why = f"the second largest difference among {len(self.gaps)} answers, in nats"
        return Check(self.name, PASSED, why, figure, LIMIT)


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

    def compare(self, ask: Ask, prompt: str, choice: dict[str, Any], prompt_tokens: int | None) -> None:
        """Compare one answer in both ways, as far as the server takes part.

        Args:
            ask: Sends a prompt for one token.
            prompt, choice, prompt_tokens: What was answered, how, and how many tokens the server counts in the prompt.
        """
        found = [place for place in places(choice) if place.stated]
        if len(found) < 2:
            return
        if prompt_tokens is None:
            self.fresh.why = self.scored.why = "the server does not count the tokens of a prompt"
            return
        for comparison, gaps in (
            (self.fresh, self._afresh(ask, prompt, choice, found, prompt_tokens)),
            (self.scored, self._as_given(ask, prompt, choice, found, prompt_tokens)),
        ):
            if gaps:
                comparison.gaps.append(max(gaps))

    def _afresh(
        self, ask: Ask, prompt: str, choice: dict[str, Any], found: Sequence[Place], prompt_tokens: int
    ) -> list[float]:
        gaps = []
        for index in _telling(found):
            prefix = "".join(place.token for place in found[:index])
            if "\ufffd" in prefix or not str(choice["text"]).startswith(prefix):
                continue
            reply = ask(prompt + prefix)
            again = places(reply.choices[0]) if reply else []
            # A prefix that is read as another number of tokens is another prompt.
            if reply and again and again[0].stated and reply.prompt_tokens == prompt_tokens + index:
                gaps.append(gap(found[index].stated, again[0].stated))
            else:
                self.fresh.why = "no prefix of an answer is read as the same tokens"
        return gaps

    def _as_given(
        self, ask: Ask, prompt: str, choice: dict[str, Any], found: Sequence[Place], prompt_tokens: int
    ) -> list[float]:
        text = str(choice["text"])
        reply = ask(prompt + text, echo=True, logprobs=TOP)
        scored = places(reply.choices[0])[prompt_tokens:] if reply else []
        gaps = []
        for place, again in zip(found, scored, strict=False):
            if place.token != again.token or not again.stated:
                break
            gaps.append(gap(place.stated, again.stated))
        if not gaps:
            self.scored.why = "the server does not score given text"
        return gaps


def _telling(found: Sequence[Place]) -> list[int]:
    """The places at which settings show best: where tokens that occurred before are likely, and the last."""

    def repeated(index: int) -> float:
        before = {place.token for place in found[:index]}
        return max((p for token, p in found[index].stated.items() if token in before), default=float("-inf"))

    return sorted({*sorted(range(1, len(found)), key=repeated, reverse=True)[: _PLACES - 1], len(found) - 1})
