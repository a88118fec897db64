"""A model behind an OpenAI-compatible completions endpoint: vLLM, SGLang, llama.cpp, `transformers serve`, others.

Text in, text out. Servers apply a top-k, a top-p or penalties of their own by default, each under its own names:
`_neutral` switches them off, and `check` reports whether the replies agree with the stated probabilities. `n` and
log-probabilities are used where the server honours them; where it ignores them, requests are repeated with other seeds
and log-probabilities are absent.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from openai import APIConnectionError, APIStatusError

from semcal.errors import UserError, nearest
from semcal.models.checkpoint import Answer
from semcal.models.connection import Connection
from semcal.sampling.records import LENGTH, STOP, Sampling
from semcal.sampling.stopping import cut
from semcal.seeds import keyed_generator

SERVERS = ("vllm", "sglang", "llama.cpp", "transformers", "openai")
_OWNERS = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama.cpp"}
_TOP = 5  # alternatives requested per token, the most that every server grants


@dataclass(frozen=True)
class Endpoint:
    """Where to reach a served model.

    Attributes:
        url: Base address, e.g. http://localhost:8000/v1.
        model: The server's name for the model; "" takes the only one it lists.
        server: One of SERVERS; "auto" asks the server.
        concurrency: Maximum number of simultaneous requests.
        tries: Attempts per request before it counts as failed.
        timeout: Seconds that one attempt may take.
        api_key_env: Environment variable that holds the key, if the server needs one.
    """

    url: str
    model: str = ""
    server: str = "auto"
    concurrency: int = 8
    tries: int = 6
    timeout: float = 120.0
    api_key_env: str = "SEMCAL_API_KEY"


@dataclass
class ServedWork:
    """The work of a served model and what is known of how it samples.

    Attributes:
        path: "served".
        server: One of SERVERS.
        honours_n: Whether one request gave several samples; None before the first request.
        logprobs: Whether it gave log-probabilities.
        requests, retries: Requests so far, and how many of them were repetitions.
        check: Whether the samples agree with the stated probabilities, in words.
    """

    path: str = "served"
    server: str = ""
    honours_n: bool | None = None
    logprobs: bool = False
    requests: int = 0
    retries: int = 0
    check: str = "not checked: nothing was sampled"


@dataclass
class _Evidence:
    """How often the first token of a sample was among those listed with probabilities, and how often it should be."""

    draws: int = 0
    hits: int = 0
    expected: float = 0.0
    variance: float = 0.0

    def verdict(self, settings: Sampling) -> str:
        if not self.draws:
            return "not checked: the server gives no log-probabilities, so truncation would go unnoticed"
        if settings.temperature != 1 or settings.top_k is not None or settings.top_p is not None:
            return "not checked: the stated probabilities hold at temperature 1 without truncation"
        z = (self.hits - self.expected) / math.sqrt(max(self.variance, 1e-9))
        facts = (
            f"{self.hits} of {self.draws} first tokens are among the {_TOP} most likely, "
            f"{self.expected:.0f} expected (z = {z:+.1f})"
        )
        return f"{'DISAGREES with' if abs(z) > 4 else 'agrees with'} the stated probabilities: {facts}"


@dataclass
class ServedModel:
    """A served model that can be reached; made by `connect`."""

    endpoint: Endpoint
    name: str
    server: str
    connection: Connection
    work: ServedWork = field(default_factory=ServedWork)
    _lock: Lock = field(default_factory=Lock)

    @classmethod
    def connect(cls, endpoint: Endpoint) -> ServedModel:
        """Ask the server which models it serves.

        Raises:
            UserError: it cannot be reached, does not serve the model, or `server` is unknown.
        """
        if endpoint.server not in ("auto", *SERVERS):
            hint = nearest(endpoint.server, SERVERS)
            raise UserError(f"unknown server {endpoint.server!r}{hint}; expected one of auto, {', '.join(SERVERS)}")
        connection = Connection(
            endpoint.url, tries=endpoint.tries, timeout=endpoint.timeout, api_key_env=endpoint.api_key_env
        )
        model = cls(endpoint, endpoint.model, endpoint.server, connection)
        listed = model._listing()
        names = [str(entry.get("id")) for entry in listed]
        if not model.name:
            if len(names) != 1:
                raise UserError(f"{endpoint.url} lists {len(names)} models; choose one of {', '.join(names[:10])}")
            model.name = names[0]
        owner: str | None = next((str(e.get("owned_by", "")) for e in listed if e.get("id") == model.name), None)
        if owner is None and names and endpoint.server not in ("auto", "transformers"):
            raise UserError(f"{endpoint.url} does not serve {model.name!r}{nearest(model.name, names)}")
        if model.server == "auto":
            model.server = _OWNERS.get((owner or "").lower()) or model._is_transformers()
        model.work.server = model.server
        return model

    # What a manifest records, under the names of `LanguageModel`.

    @property
    def path(self) -> str:
        return f"{self.name} at {self.endpoint.url}"

    @property
    def weights_hash(self) -> str:
        """A server does not show its weights; the model's name takes their place."""
        return f"served:{self.name}"

    revision = None
    tokenizer_hash = dtype = device = "served"

    def answer(
        self,
        prompts: Sequence[tuple[str, str]],
        settings: Sampling,
        on_answered: Callable[[int], None] = lambda _: None,
    ) -> Iterator[tuple[str, tuple[Answer, ...]]]:
        """(key, distinct answers) for every (key, prompt), in the order in which they finish; counts sum to m.

        Raises:
            UserError: the server refused a request or failed it `tries` times; finished answers come first.
        """
        evidence = _Evidence()
        pool = ThreadPoolExecutor(self.endpoint.concurrency)
        jobs: dict[Future[tuple[Answer, ...]], str] = {
            pool.submit(self._sample, key, text, settings, evidence): key for key, text in prompts
        }
        reported: set[Future[tuple[Answer, ...]]] = set()

        def report(done: Future[tuple[Answer, ...]]) -> tuple[str, tuple[Answer, ...]]:
            reported.add(done)
            self.work.check = evidence.verdict(settings)
            self.work.requests, self.work.retries = self.connection.requests, self.connection.retries
            on_answered(1)
            return jobs[done], done.result()

        try:
            for done in as_completed(jobs):
                if done in reported:
                    continue
                if error := done.exception():  # answers that finished at the same moment are not lost
                    yield from map(report, [j for j in jobs if j not in reported and j.done() and not j.exception()])
                    raise error
                yield report(done)
        except BaseException:
            self.connection.client.close()  # pending requests would delay the error
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _sample(self, key: str, text: str, settings: Sampling, evidence: _Evidence) -> tuple[Answer, ...]:
        seeds = keyed_generator(settings.seed, key, "served")
        found: dict[tuple[str, str], tuple[int, float | None]] = {}
        left = settings.m
        while left:
            n = 1 if self.work.honours_n is False else left
            create = self.connection.client.completions.with_raw_response.create
            body = _body(self.server, settings, n) | {"seed": int(seeds.integers(2**31))}
            choices = self.connection.ask(create, _choices, model=self.name, prompt=text, **body)[:n]
            if n > 1:
                self.work.honours_n = self.work.honours_n or len(choices) > 1
            self._weigh(choices, evidence)
            for choice in choices:
                answer = cut(str(choice["text"]), settings.stop)
                finish = LENGTH if choice.get("finish_reason") == "length" and answer == choice["text"] else STOP
                count, logprob = found.get((answer, finish), (0, _logprob(choice)))
                found[answer, finish] = (count + 1, logprob)
            left -= len(choices)
        order = sorted(found.items(), key=lambda item: (-item[1][0], item[0]))
        return tuple(Answer(text, (), count, logprob, finish) for (text, finish), (count, logprob) in order)

    def _weigh(self, choices: Sequence[dict[str, Any]], evidence: _Evidence) -> None:
        for choice in choices:
            stated = choice.get("logprobs") or {}
            tokens, tops = stated.get("tokens") or [], stated.get("top_logprobs") or []
            if not tokens or not tops or not tops[0]:
                continue
            mass = min(1.0, sum(math.exp(p) for p in sorted(tops[0].values(), reverse=True)[:_TOP]))
            likely = sorted(tops[0], key=tops[0].__getitem__, reverse=True)[:_TOP]
            with self._lock:
                self.work.logprobs = True
                evidence.draws += 1
                evidence.hits += tokens[0] in likely
                evidence.expected += mass
                evidence.variance += mass * (1 - mass)

    def _listing(self) -> list[dict[str, Any]]:
        """The models that the server lists; none if it cannot (`transformers serve` without a cache fails at this)."""
        once = self.connection.client.with_options(max_retries=0)
        with suppress(APIConnectionError, ValueError, KeyError):
            try:
                return list(once.models.with_raw_response.list().http_response.json()["data"])
            except APIStatusError:
                return []
        return self.connection.ask(self.connection.client.models.with_raw_response.list, lambda reply: reply["data"])

    def _is_transformers(self) -> str:
        """`transformers serve` refuses a field that it does not know in words of its own."""
        once = self.connection.client.with_options(max_retries=1)
        reply = ""
        with suppress(APIConnectionError):
            try:
                once.completions.create(model=self.name, prompt="", extra_body={"semcal": 1})
            except APIStatusError as error:
                reply = error.response.text
        return "transformers" if "Unexpected fields in the request" in reply else "openai"


def _body(server: str, settings: Sampling, n: int) -> dict[str, Any]:
    body: dict[str, Any] = {
        "max_tokens": settings.max_new_tokens,
        "temperature": settings.temperature,
        "top_p": 1.0 if settings.top_p is None else settings.top_p,
        "extra_body": _neutral(server, settings),  # no truncation or penalty but what the settings ask for
    }
    if settings.stop:
        body["stop"] = list(settings.stop)
    if server != "transformers":  # which ignores both
        body |= {"n": n, "logprobs": _TOP}
    return body


def _neutral(server: str, settings: Sampling) -> dict[str, Any]:
    if server in ("vllm", "sglang"):
        return {"top_k": settings.top_k or -1, "min_p": 0.0, "repetition_penalty": 1.0}
    if server == "llama.cpp":
        return {"top_k": settings.top_k or 0, "min_p": 0.0, "typical_p": 1.0, "repeat_penalty": 1.0}
    if server == "transformers":
        config = {
            "do_sample": True,
            "top_k": settings.top_k or 0,
            "top_p": 1.0 if settings.top_p is None else settings.top_p,
            "min_p": 0.0,
            "typical_p": 1.0,
            "epsilon_cutoff": 0.0,
            "eta_cutoff": 0.0,
            "repetition_penalty": 1.0,
            "no_repeat_ngram_size": 0,
            "num_beams": 1,
            "temperature": settings.temperature,
            "max_new_tokens": settings.max_new_tokens,
        }
        return {"generation_config": json.dumps(config)}
    return {}


def _choices(reply: dict[str, Any]) -> list[dict[str, Any]]:
    choices = list(reply["choices"])
    if not choices or not all(isinstance(c["text"], str) for c in choices):
        raise ValueError("it holds no choices")
    return choices


def _logprob(choice: dict[str, Any]) -> float | None:
    stated = (choice.get("logprobs") or {}).get("token_logprobs")
    return float(sum(stated)) if stated and None not in stated else None
