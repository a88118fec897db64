"""Whether tokens are drawn by the log-probabilities that come with them, and whether these are the model's own.

A server may state probabilities before its truncation, penalties and biases, or after them. In the first case the draws
disagree with what is stated (`DrawnTokens`). In the second they agree, and what is stated disagrees with what the same
server states for the same tokens as part of a prompt (`gap`). Knows no server: it reads the choices of a reply.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from semcal.models.dialects import TOP
from semcal.sampling.checks import FAILED, PASSED, Check

HIDDEN_ENDS = "the server does not list what ends an answer, so a token that is never drawn goes unnoticed"
FALSE_ALARM = 1e-4  # chance that a server which samples as it states is accused, over a whole run
_ODDS = np.array([1 / 64, 1 / 8, 1 / 2, 2.0, 8.0])  # what the odds of an event may have been multiplied by
_SEQUENCES = (1, 2)  # tokens before one that completes a sequence which occurred before
_EARLY = 3  # tokens of an answer that count as its beginning
_MOST = 99.0  # nats; what is cut off differs by infinity, which JSON has no number for
_CUT = -1e3  # nats; no softmax states less, so the token was cut off
_FEW = 5  # uncertain places at which so few tokens hold everything that it is no chance
LIKELY = 0.02  # probability from which on two statements about a token are compared


@dataclass(frozen=True)
class Place:
    """One token of an answer.

    Attributes:
        token: Its text.
        stated: The likeliest tokens there and their log-probabilities in nats, likeliest first, at most TOP.
    """

    token: str
    stated: dict[str, float]


def places(choice: dict[str, Any]) -> list[Place]:
    """The tokens of a choice with what is stated at each; empty where a server states nothing.

    Reads both forms in use, that of completions (`tokens`, `top_logprobs`) and that of chats (`content`).
    """
    said = choice.get("logprobs") or {}
    if content := said.get("content"):
        tokens = [str(c["token"]) for c in content]
        tops = [{str(t["token"]): t["logprob"] for t in c.get("top_logprobs") or ()} for c in content]
    else:
        tokens, tops = list(said.get("tokens") or ()), list(said.get("top_logprobs") or ())
    return [Place(token, _likeliest(token, top)) for token, top in zip(tokens, tops, strict=False)]


def _likeliest(token: str, top: dict[str, float] | None) -> dict[str, float]:
    """At most TOP of what is listed. A server lists the drawn token too if it is not among them: it comes last in a
    tie, so that what is kept does not depend on the draw."""
    listed = {w: -math.inf if p is None else min(float(p), 0.0) for w, p in (top or {}).items()}
    return dict(sorted(listed.items(), key=lambda item: (-item[1], item[0] == token))[:TOP])


def logprob(choice: dict[str, Any]) -> float | None:
    """The stated log-probability of a whole answer in nats; None where a server states none."""
    said = choice.get("logprobs") or {}
    content = said.get("content")
    stated = [c.get("logprob") for c in content] if content else said.get("token_logprobs")
    return float(sum(stated)) if stated and None not in stated else None


def gap(one: dict[str, float], other: dict[str, float]) -> float:
    """The least difference in nats between two statements about a token that either holds for likely.

    A token that a statement does not list is at most as likely as the last that it lists.
    """
    differences = [0.0]
    for a, b in ((one, other), (other, one)):
        for token, p in a.items():
            if math.exp(p) >= LIKELY and b:
                differences.append(abs(p - b[token]) if token in b else p - min(b.values()))
    return min(max(differences), _MOST)


class DrawnTokens:
    """A test of the drawn tokens against the stated probabilities, valid whenever one looks.

    Each stated probability p of an event that was fixed before the draw (this token; one of those listed; one that
    occurred before) is bet against with its odds multiplied by some constants. The wealth of a bettor is a martingale
    if tokens are drawn as stated, and so is the weighted mean over events and constants; it ever exceeds
    1 / FALSE_ALARM with a chance of at most FALSE_ALARM (Ville's inequality; Ramdas et al. 2023,
    doi:10.1214/23-STS894).

    Some servers leave the token that ended an answer out of what they list. The law of the others is then known only
    among tokens that were listed before as drawn, and bets are made within these.

    Attributes:
        draws: Tokens seen.
        cut: Places where a listed token has no probability at all.
        whole: Uncertain places where fewer than TOP tokens are listed and hold all the probability.
        partial: Places where fewer than TOP tokens are listed, and not all the probability.
        hides_ends: Whether the token that ended an answer is left out.
    """

    def __init__(self) -> None:
        self.draws = self.cut = self.whole = self.partial = 0
        self.hides_ends = False
        self._number: dict[tuple[str, str], int] = {}
        self._wealth = np.zeros((0, len(_ODDS)))  # logarithms, [event, odds]
        self._drawn: set[str] = set()

    def add(self, prompt: str, choices: Sequence[dict[str, Any]]) -> None:
        """Take in all choices of one reply."""
        read = [(choice, places(choice)) for choice in choices]
        self.hides_ends |= any(_hides_its_end(choice, found) for choice, found in read)
        events: list[tuple[int, float, bool]] = []
        for _, found in read:
            tokens = [place.token for place in found]
            for index, place in enumerate(found):
                if place.stated:
                    events += self._events(place, prompt, tokens[:index])
        for _, found in read:
            self._drawn.update(place.token for place in found)
        if events:
            self._bet(events)

    def _events(self, place: Place, prompt: str, done: Sequence[str]) -> list[tuple[int, float, bool]]:
        """(event, its stated probability, whether it happened)."""
        self.draws += 1
        self.cut += min(place.stated.values()) <= _CUT
        p = {token: math.exp(value) for token, value in place.stated.items()}
        if len(p) < TOP:
            complete = sum(p.values()) > 1 - 1e-4
            self.partial += not complete
            self.whole += complete and max(p.values()) < 0.9
        token, found = place.token, []
        clear = {w for w in p if w and "\ufffd" not in w}  # several tokens may share any other text
        before = prompt + "".join(done)
        repeated = {w for w in clear if w.strip() and w.strip() in before}
        if len(clear) == len(p):
            found += [("likeliest", "", p[next(iter(p))], token == next(iter(p)))]
            found += [("listed", "", sum(p.values()), token in p)]
        found += [("repeated", "", sum(p[w] for w in repeated), token in repeated)]
        for size in _SEQUENCES[: len(done)]:
            again = {w for w in clear if "".join(done[-size:]) + w in before}
            found += [("sequence", str(size + 1), sum(p[w] for w in again), token in again)]
        found += [("token", w, p[w], token == w) for w in clear]
        if len(done) < _EARLY:
            found += [("early", w, p[w], token == w) for w in clear]
        known = {w for w in clear if w in self._drawn}
        mass = sum(p[w] for w in known)
        if token in known and len(known) > 1 and mass > 0:
            found += [("repeated, of known", "", sum(p[w] for w in repeated & known) / mass, token in repeated)]
            found += [("token, of known", w, p[w] / mass, token == w) for w in known]
        return [(self._number.setdefault((kind, w), len(self._number)), q, hit) for kind, w, q, hit in found]

    def _bet(self, events: Sequence[tuple[int, float, bool]]) -> None:
        grown = np.zeros((len(self._number), len(_ODDS)))
        grown[: len(self._wealth)] = self._wealth
        self._wealth = grown
        number = np.array([e[0] for e in events])
        p = np.clip(np.array([e[1] for e in events]), 1e-12, 1 - 1e-12)
        hit = np.array([e[2] for e in events])
        for column, odds in enumerate(_ODDS):
            gained = np.where(hit, math.log(odds), 0.0) - np.log1p(p * (odds - 1))
            self._wealth[:, column] += np.bincount(number, gained, minlength=len(self._wealth))

    def check(self) -> Check:
        """Whether the draws are those of the stated probabilities. The figure is the wealth of the bettor, as log10."""
        name, limit = "tokens are drawn as their stated probabilities say", -math.log10(FALSE_ALARM)
        if not self.draws:
            return Check.not_made(name, "the server gives no log-probabilities")
        if cut := self.cut or (self.whole if self.whole >= _FEW and not self.partial else 0):
            where = f"at {cut} of {self.draws} tokens the stated probabilities are cut off"
            return Check(name, FAILED, f"{where}: probably top-k, top-p or min-p", cut / self.draws, 0.0)
        events = [e for e in self._number if e[0].endswith("known") == self.hides_ends]
        if not events:
            return Check.not_made(name, "no token that the server lists was drawn twice")
        rows = self._wealth[[self._number[e] for e in events]]
        # In the order of their first occurrence, events have a weight of 1/2, 1/6, 1/12, ..., which sum to 1.
        order = np.arange(1, len(events) + 1)
        wealth = np.logaddexp.reduce(rows, axis=1) - math.log(len(_ODDS)) - np.log(order * (order + 1.0))
        figure = float(np.logaddexp.reduce(wealth)) / math.log(10)
        if figure < limit:
            seen = f"log10 of what betting against the probabilities stated of {self.draws} tokens would have won"
            return Check(name, PASSED, HIDDEN_ENDS if self.hides_ends else seen, figure, limit)
        worst = int(wealth.argmax())
        fewer = bool(_ODDS[rows[worst].argmax()] < 1)
        return Check(name, FAILED, _probable(*events[worst], fewer=fewer), figure, limit)


def _hides_its_end(choice: dict[str, Any], found: Sequence[Place]) -> bool:
    """Whether an answer ended, and no listed token is what ended it."""
    listed = "".join(place.token for place in found)
    return choice.get("finish_reason") == "stop" and str(choice["text"]).startswith(listed)


def _probable(kind: str, token: str, *, fewer: bool) -> str:
    times = "more seldom" if fewer else "more often"
    if kind in ("likeliest", "listed"):
        setting = "a temperature above 1" if fewer else "top-k, top-p, min-p or a temperature below 1"
        return f"the likeliest tokens are drawn {times} than stated: probably {setting}"
    if kind == "sequence":
        setting = "no_repeat_ngram_size or a DRY penalty" if fewer else "a negative penalty"
        return f"sequences of {token} tokens that occurred before are drawn {times} than stated: probably {setting}"
    if kind.startswith("repeated"):
        setting = "a presence, frequency or repetition penalty" if fewer else "a negative penalty"
        return f"tokens that occurred before are drawn {times} than stated: probably {setting}"
    setting = "min_tokens, suppress_tokens, bad_words or logit_bias" if fewer else "logit_bias or sequence_bias"
    where = " among the first of an answer" if kind == "early" else ""
    return f"{token!r} is drawn {times}{where} than stated: probably {setting}"
