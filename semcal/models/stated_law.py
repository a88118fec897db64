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
# What the odds of an event may have been multiplied by.
_ODDS = np.array([1 / 64, 1 / 8, 1 / 2, 4 / 5, 5 / 4, 2.0, 8.0])
_NUCLEI = (0.9, 0.95, 0.99)  # shares that top-p leaves; the tokens beyond each are an event
_SEQUENCES = (1, 2)  # tokens before one that completes a sequence which occurred before
_EARLY = 3  # tokens of an answer that count as its beginning
_MOST = 99.0  # nats; what is cut off differs by infinity, which JSON has no number for
_CUT = -1e3  # nats; no softmax states less, so the token was cut off
_ALL = 1 - 1e-4  # a list of tokens that holds as much holds all the probability
_FEW = 5  # uncertain places at which so few tokens hold everything that it is no chance
LIKELY = 0.02  # probability from which on two statements about a token are compared


@dataclass(frozen=True)
class Place:
    """One token of an answer.

    Attributes:
        token: Its text.
        stated: The likeliest tokens there and their log-probabilities in nats, likeliest first.
    """

    token: str
    stated: dict[str, float]


def places(choice: dict[str, Any], listed: int = TOP) -> list[Place]:
    """The tokens of a choice with what is stated at each; empty where a server states nothing.

    Reads both forms in use, that of completions (`tokens`, `top_logprobs`) and that of chats (`content`).

    Args:
        choice: Of a reply.
        listed: How many of the likeliest tokens the server lists at each place whatever is drawn.
    """
    return [Place(token, _likeliest(token, top, listed)) for token, top in _listing(choice)]


def listed(choices: Sequence[dict[str, Any]]) -> int:
    """How many of the likeliest tokens a server lists whatever is drawn, at most TOP.

    It adds the drawn token where this is not among them. So it is the size of the smallest list that does not hold all
    the probability. Lists with a text that several tokens may share say nothing: by their texts they are one entry.
    """
    lists = [top for c in choices for _, top in _listing(c) if top and all(map(_is_clear, top))]
    return min([TOP, *(len(top) for top in lists if sum(map(_probability, top.values())) < _ALL)])


def _is_clear(token: str) -> bool:
    """Whether the text of a token is that of no other: parts of characters are all the same, and so are tokens that
    are not shown."""
    return token != "" and "\ufffd" not in token


def _listing(choice: dict[str, Any]) -> list[tuple[str, dict[str, float] | None]]:
    said = choice.get("logprobs") or {}
    if content := said.get("content"):
        tokens = [str(c["token"]) for c in content]
        tops = [{str(t["token"]): t["logprob"] for t in c.get("top_logprobs") or ()} for c in content]
    else:
        tokens, tops = list(said.get("tokens") or ()), list(said.get("top_logprobs") or ())
    return list(zip(tokens, tops, strict=False))


def _probability(logprob: float | None) -> float:
    return 0.0 if logprob is None else math.exp(min(float(logprob), 0.0))


def _likeliest(token: str, top: dict[str, float] | None, listed: int) -> dict[str, float]:
    """The first of what is listed. The drawn token comes last in a tie, so that what is kept does not depend on the
    draw."""
    found = {w: -math.inf if p is None else min(float(p), 0.0) for w, p in (top or {}).items()}
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0] == token))[:listed])


def tokens_of(choice: dict[str, Any]) -> tuple[str, ...]:
    """The tokens that a server lists as those of an answer; empty where it lists none."""
    said = choice.get("logprobs") or {}
    return tuple(str(c["token"]) for c in said.get("content") or ()) or tuple(map(str, said.get("tokens") or ()))


def logprob(choice: dict[str, Any]) -> float | None:
    """The stated log-probability of a whole answer in nats; None where a server states none, or not of every token,
    what ended the answer included."""
    said = choice.get("logprobs") or {}
    content = said.get("content")
    stated = [c.get("logprob") for c in content] if content else said.get("token_logprobs")
    tokens = tokens_of(choice)
    if not stated or None in stated or len(stated) != len(tokens):
        return None
    whole = len("".join(tokens)) >= len(str(choice["text"])) and not _hides_its_end(choice)
    return float(sum(stated)) if whole else None


def recased(choice: dict[str, Any]) -> bool:
    """Whether the text of an answer is that of its tokens but for upper and lower case."""
    text, written = ("".join(t.split()) for t in (str(choice["text"]), "".join(tokens_of(choice))))
    return text not in written and text.casefold() in written.casefold()


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
        listed: How many of the likeliest tokens are listed whatever is drawn, at most TOP.
    """

    def __init__(self) -> None:
        self.draws = self.cut = self.whole = self.partial = 0
        self.listed = TOP
        self.hides_ends = False
        self._number: dict[tuple[str, str], int] = {}
        self._wealth = np.zeros((0, len(_ODDS)))  # logarithms, [event, odds]
        self._drawn: set[str] = set()

    def add(self, prompt: str, choices: Sequence[dict[str, Any]]) -> None:
        """Take in all choices of one reply."""
        self.listed = min(self.listed, listed(choices))
        if self.listed < 2:  # nothing but what is drawn
            return
        read = [places(choice, self.listed) for choice in choices]
        self.hides_ends |= any(found and _hides_its_end(choice) for choice, found in zip(choices, read, strict=True))
        events: list[tuple[int, float, bool]] = []
        for found in read:
            tokens = [place.token for place in found]
            for index, place in enumerate(found):
                if place.stated:
                    events += self._events(place, prompt, tokens[:index])
        for found in read:
            self._drawn.update(place.token for place in found)
        if events:
            self._bet(events)

    def _events(self, place: Place, prompt: str, done: Sequence[str]) -> list[tuple[int, float, bool]]:
        """(event, its stated probability, whether it happened)."""
        self.draws += 1
        self.cut += min(place.stated.values()) <= _CUT
        p = {token: math.exp(value) for token, value in place.stated.items()}
        clear = {w for w in p if _is_clear(w)}
        if len(p) < TOP and len(clear) == len(p):
            complete = sum(p.values()) > _ALL
            self.partial += not complete
            self.whole += complete and max(p.values()) < 0.9
        token, found = place.token, []
        before = prompt + "".join(done)
        repeated = {w for w in clear if w.strip() and w.strip() in before}
        if len(clear) == len(p):
            found += [("likeliest", "", p[next(iter(p))], token == next(iter(p)))]
            found += [("listed", "", sum(p.values()), token in p)]
            found += [
                ("beyond", f"{share:.0%}", *_beyond(p, share, token)) for share in _NUCLEI if sum(p.values()) > share
            ]
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
        if self.listed < 2:
            return Check.not_made(name, "the server gives the log-probability of drawn tokens only")
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


def _beyond(p: dict[str, float], share: float, token: str) -> tuple[float, bool]:
    """The probability of what top-p at this share cuts off, and whether a token was drawn from it."""
    nucleus, kept = set(), 0.0
    for w, probability in p.items():
        if kept >= share:
            break
        nucleus.add(w)
        kept += probability
    return max(1 - kept, 0.0), token not in nucleus


class RepeatedReplies:
    """A test of whether a server draws anew when a prompt is sent again with another seed.

    A block of answers occurs again in the same order with a chance of at most the product of their shares in it. Half
    of the wealth is bet on that at these odds, so it ever exceeds 1 / FALSE_ALARM with a chance of at most FALSE_ALARM.

    Attributes:
        questions, alike: Prompts so far, and those of which all samples are the same.
        repeated: Replies that could be compared.
    """

    def __init__(self) -> None:
        self.questions = self.alike = self.repeated = 0
        self._wealth = 0.0  # log

    def add(self, replies: Sequence[Sequence[str]]) -> None:
        """Take in the texts of all replies to one prompt, in their order."""
        self.questions += 1
        self.alike += len({text for texts in replies for text in texts}) == 1
        for again in replies[1:]:
            block = replies[0][: len(again)]
            chance = math.prod(block.count(text) / len(block) for text in block)
            if chance < 1:
                self.repeated += 1
                happened = list(again[: len(block)]) == list(block)
                self._wealth += math.log(0.5 + (0.5 / max(chance, 1e-300) if happened else 0.0))

    def check(self) -> Check:
        """The figure is the wealth of the bettor, as log10."""
        name, limit = "a prompt that is sent again is answered anew", -math.log10(FALSE_ALARM)
        figure = self._wealth / math.log(10)
        if figure >= limit:
            means = "replies to a prompt are the same under other seeds: probably a cache, or a fixed seed"
            return Check(name, FAILED, means, figure, limit)
        if self.repeated:
            why = f"log10 of what betting on the same answers in {self.repeated} replies would have won"
            return Check(name, PASSED, why, figure, limit)
        if self.questions and self.alike == self.questions:
            why = f"all samples of each of {self.questions} questions are the same, as those of a cache would be"
            return Check.not_made(name, why)
        return Check.not_made(name, "one reply held all samples of a question")


def _hides_its_end(choice: dict[str, Any]) -> bool:
    """Whether an answer ended, and no listed token is what ended it."""
    written = "".join(tokens_of(choice))
    return choice.get("finish_reason") != "length" and str(choice["text"]).startswith(written)


def _probable(kind: str, token: str, *, fewer: bool) -> str:
    times = "more seldom" if fewer else "more often"
    if kind in ("likeliest", "listed"):
        setting = "a temperature above 1" if fewer else "top-k, top-p, min-p or a temperature below 1"
        return f"the likeliest tokens are drawn {times} than stated: probably {setting}"
    if kind == "beyond":
        setting = "top-p, top-k or min-p" if fewer else "a temperature above 1"
        return f"tokens beyond the likeliest {token} are drawn {times} than stated: probably {setting}"
    if kind == "sequence":
        setting = "no_repeat_ngram_size or a DRY penalty" if fewer else "a negative penalty"
        return f"sequences of {token} tokens that occurred before are drawn {times} than stated: probably {setting}"
    if kind.startswith("repeated"):
        setting = "a presence, frequency or repetition penalty" if fewer else "a negative penalty"
        return f"tokens that occurred before are drawn {times} than stated: probably {setting}"
    setting = "min_tokens, suppress_tokens, bad_words or logit_bias" if fewer else "logit_bias or sequence_bias"
    where = " among the first of an answer" if kind == "early" else ""
    return f"{token!r} is drawn {times}{where} than stated: probably {setting}"
