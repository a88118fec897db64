"""Servers that do not sample from the model: every setting they may leave on, seen or refused, and never just believed.

`Sampler` is a language model of ten tokens behind a completions endpoint. It leaves one setting on whatever it is asked,
and states probabilities from before it ("raw") or after it ("processed").
"""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass
from functools import cache
from http.server import BaseHTTPRequestHandler

import pytest
from openai import OpenAI

from semcal import UserError
from semcal.models.served import Endpoint, ServedModel
from semcal.sampling.records import Sampling
from tests.servers import StandIns

END = "</s>"
VOCABULARY = (*(f" {w}" for w in "red blue green one two three four yes no".split()), END)
held_before = pytest.mark.held_before


# ---- a language model of ten tokens --------------------------------------------------------------------------------


@cache
def logits_after(token: str) -> dict[str, float]:
    rng = random.Random(f"after {token}")
    return {w: rng.gauss(0.0, 1.0) + (0.5 if w == END else 0.0) for w in VOCABULARY}


@dataclass(frozen=True)
class Next:
    """A token that may come next."""

    token: str
    logit: float
    prompt: tuple[str, ...]
    done: tuple[str, ...]

    @property
    def read(self):
        return (*self.prompt, *self.done)


def _each(logit):
    return lambda tokens: {t.token: logit(t) for t in tokens}


def _without(banned):
    return _each(lambda t: -math.inf if banned(t) else t.logit)


def _keep(count):
    """Keep the likeliest tokens; `count` says from their sorted probabilities how many."""

    def apply(tokens):
        p = _normalised({t.token: t.logit for t in tokens})
        kept = sorted(p, key=p.__getitem__, reverse=True)[: count(sorted(p.values(), reverse=True))]
        return {t.token: t.logit if t.token in kept else -math.inf for t in tokens}

    return apply


def _normalised(logits):
    total = sum(map(math.exp, logits.values()))
    return {w: math.exp(v) / total for w, v in logits.items()}


SETTINGS = {
    "nothing": _each(lambda t: t.logit),
    "presence_penalty": _each(lambda t: t.logit - 1.5 * (t.token in t.done)),
    "frequency_penalty": _each(lambda t: t.logit - t.done.count(t.token)),
    "repetition_penalty": _each(lambda t: t.logit * (1 if t.token not in t.read else 1.8 if t.logit < 0 else 1 / 1.8)),
    "no_repeat_ngram_size": _without(lambda t: (t.read[-1], t.token) in zip(t.read, t.read[1:], strict=False)),
    "suppress_tokens": _without(lambda t: t.token == " red"),
    "begin_suppress_tokens": _without(lambda t: t.token in (END, " red") and not t.done),
    "bad_words": _without(lambda t: t.token == " blue" and t.read[-1] == " green"),
    "min_tokens": _without(lambda t: t.token == END and len(t.done) < 2),
    "logit_bias": _each(lambda t: t.logit - 2.0 * (t.token == " yes")),
    "sequence_bias": _each(lambda t: t.logit + 1.5 * (t.token == " red")),
    "exponential_decay_length_penalty": _each(lambda t: t.logit + 0.7 * len(t.done) * (t.token == END)),
    "top_k": _keep(lambda p: min(3, len(p))),
    "top_p": _keep(lambda p: next(i for i in range(1, 11) if sum(p[:i]) >= 0.7)),
    "min_p": _keep(lambda p: sum(q >= 0.25 * p[0] for q in p)),
    "temperature below 1": _each(lambda t: t.logit / 0.6),
    "temperature above 1": _each(lambda t: t.logit / 1.7),
}


class Sampler:
    """A server of that model.

    Args:
        setting: What it leaves on, of SETTINGS.
        processed: Whether it states probabilities after this setting rather than before.
        echo: Whether it scores given text.
        refuses: Fields that it does not know.
        form: "legacy", "content" (as in chats), "none" (no log-probabilities), or "hidden" (what ends an answer is left
            out).
        owner: As it lists itself.
    """

    def __init__(
        self, setting="nothing", *, processed=False, echo=True, refuses=(), form="legacy", owner="vllm", seed=0
    ):
        self.apply, self.processed, self.echo = SETTINGS[setting], processed, echo
        self.refuses, self.form, self.owner = refuses, form, owner
        self.rng, self.bodies = random.Random(seed), []

    def law(self, prompt, done):
        raw = logits_after((*prompt, *done)[-1])
        return _normalised(raw), _normalised(self.apply([Next(w, v, prompt, done) for w, v in raw.items()]))

    def answer(self, body):
        self.bodies.append(body)
        if unknown := [name for name in self.refuses if name in body]:
            return 400, {"error": {"message": f"unknown field {unknown[0]}"}}
        if body.get("echo") and not self.echo:
            return 400, {"error": {"message": "echo is not supported"}}
        prompt = tuple(f" {w}" for w in body["prompt"].split(" ") if w)
        choices = [self.choice(prompt, body) for _ in range(body.get("n", 1))]
        return 200, {"choices": choices, "usage": {"prompt_tokens": len(prompt)}}

    def choice(self, prompt, body):
        done, stated = [], []
        while len(done) < body["max_tokens"] and END not in done:
            raw, law = self.law(prompt, tuple(done))
            (token,) = self.rng.choices(VOCABULARY, [law[w] for w in VOCABULARY])
            stated.append(self.statement(law if self.processed else raw, token))
            done.append(token)
        ended, text = END in done, "".join(w for w in done if w != END)
        tokens = list(done)
        if self.form == "hidden" and ended:
            tokens, stated = tokens[:-1], stated[:-1]
        if body.get("echo"):
            text, tokens = body["prompt"] + text, [*prompt, *tokens]
            given = [self.statement(self.law(prompt[:i], ())[0], w) for i, w in enumerate(prompt) if i]
            stated = [{}, *given, *stated]
        said = None
        if self.form == "content":
            tops = [[{"token": w, "logprob": p} for w, p in top.items()] for top in stated]
            said = [
                {"token": w, "logprob": top.get(w, 0.0), "top_logprobs": listed}
                for w, top, listed in zip(tokens, stated, tops, strict=True)
            ]
            said = {"content": said}
        elif self.form != "none" and body.get("logprobs"):
            own = [top.get(w) for w, top in zip(tokens, stated, strict=True)]
            said = {"tokens": tokens, "token_logprobs": own, "top_logprobs": stated}
        return {"text": text, "finish_reason": "stop" if ended else "length", "logprobs": said}

    def statement(self, p, drawn):
        listed = sorted(p, key=p.__getitem__, reverse=True)[:5]
        return {w: math.log(p[w]) if p[w] else -9999.0 for w in dict.fromkeys([drawn, *listed])}


@pytest.fixture
def serve():
    stand_ins = StandIns()

    def start(sampler) -> str:
        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def reply(self, status, reply):
                body = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def do_GET(self):
                self.reply(200, {"data": [{"id": "m", "owned_by": sampler.owner}]})

            def do_POST(self):
                self.reply(*sampler.answer(json.loads(self.rfile.read(int(self.headers["Content-Length"])))))

        return stand_ins.start(Handler)

    yield start
    stand_ins.stop()


@pytest.fixture(autouse=True)
def _impatient(monkeypatch):
    monkeypatch.setattr(OpenAI, "_calculate_retry_timeout", lambda *_: 0.01)


def sampled(url, *, questions=12, m=40, server="auto", **settings):
    """The model and its answers to some questions of a few words."""
    model = ServedModel.connect(Endpoint(url, tries=2, concurrency=1, server=server))
    rng = random.Random(1)
    prompts = [(str(i), "".join(rng.choice(VOCABULARY[:-1]) for _ in range(4)).strip()) for i in range(questions)]
    return model, dict(model.answer(prompts, Sampling(m=m, max_new_tokens=8, **settings)))


ACTIVE = [s for s in SETTINGS if s != "nothing"]
REFUSED = r"^http\S+ does not sample from the model itself: [^\n]+: probably [^\n]+; [^\n]+$"


# ---- what is drawn is not what is stated, or what is stated is not what the model says -----------------------------


@pytest.mark.parametrize("setting", ACTIVE)
def test_a_setting_that_stays_on_is_seen_in_the_draws(serve, setting):
    with pytest.raises(UserError, match=REFUSED):
        sampled(serve(Sampler(setting)), questions=60)


@pytest.mark.parametrize("setting", ACTIVE)
def test_a_setting_inside_the_stated_probabilities_is_seen_by_scoring_the_answers(serve, setting):
    with pytest.raises(UserError, match=REFUSED):
        sampled(serve(Sampler(setting, processed=True)))


# ---- servers that sample as they state, and what cannot be seen from outside ---------------------------------------


@pytest.mark.parametrize(
    "how",
    [
        pytest.param({}, marks=held_before),
        pytest.param({"processed": True}, marks=held_before),
        {"form": "content", "owner": "llamacpp"},
        pytest.param({"form": "hidden"}, marks=held_before),
        pytest.param({"echo": False}, marks=held_before),
    ],
)
def test_an_honest_server_agrees(serve, how):
    model, answers = sampled(serve(Sampler(**how)))
    assert model.work.check.startswith("agrees")
    assert all(sum(a.count for a in found) == 40 for found in answers.values())


def test_what_a_server_without_scoring_may_hide_is_said_to_be_unchecked(serve):
    model, _ = sampled(serve(Sampler("logit_bias", processed=True, echo=False)))
    assert "not checked that tokens have the probabilities that the same text is scored with" in model.work.check


@pytest.mark.parametrize("setting", ["presence_penalty", "frequency_penalty", "min_tokens", "begin_suppress_tokens"])
def test_what_depends_on_the_answer_so_far_is_seen_without_scoring(serve, setting):
    with pytest.raises(UserError, match=REFUSED):
        sampled(serve(Sampler(setting, processed=True, echo=False)))


@pytest.mark.parametrize("names", [("top_k",), ("presence_penalty", "min_p", "bad_words"), ("n",), ("logprobs",)])
def test_a_neutral_value_that_a_server_refuses_is_left_out_and_recorded(serve, names):
    model, answers = sampled(serve(Sampler(refuses=names)), questions=3, m=6)
    assert set(model.work.refused) == set(names)
    assert all(sum(a.count for a in found) == 6 for found in answers.values())


def test_a_server_that_states_nothing_is_not_checked(serve):
    model, _ = sampled(serve(Sampler("presence_penalty", form="none")), questions=3, m=6)
    assert model.work.check.startswith("not checked: the server gives no log-probabilities")
    outcomes = {c.name: c.outcome for c in model.work.checks}
    assert outcomes.pop("prompts are read as they are") == "passed"  # it counts the tokens of a prompt
    assert list(outcomes.values()) == ["not made"] * 4
