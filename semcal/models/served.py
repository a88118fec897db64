"""A model behind an OpenAI-compatible completions endpoint: vLLM, SGLang, llama.cpp, `transformers serve`, others.

Text in, text out. Servers truncate, penalise and bias by settings of their own: `semcal.models.dialects` switches these
off, and `stated_law` and `restatement` find out whether the answers are the model's own all the same. `n` and
log-probabilities are used where the server honours them; where it ignores them, requests are repeated with other seeds
and log-probabilities are absent.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from threading import Lock
from typing import Any

from huggingface_hub import try_to_load_from_cache
from openai import APIConnectionError, APIStatusError
from transformers.utils import GENERATION_CONFIG_NAME

from semcal.errors import NotFromModelError, UserError, nearest
from semcal.models.checkpoint import Answer
from semcal.models.connection import Connection, Refused
from semcal.models.dialects import NOT_NEUTRAL, SERVERS, body, neutral
from semcal.models.restatement import Reply, Restatement, reading
from semcal.models.stated_law import HIDDEN_ENDS, DrawnTokens, RepeatedReplies, logprob, places, recased, tokens_of
from semcal.sampling.checks import Check
from semcal.sampling.records import LENGTH, STOP, Sampling
from semcal.sampling.stopping import cut
from semcal.seeds import keyed_generator

_OWNERS = {"vllm": "vllm", "sglang": "sglang", "llamacpp": "llama.cpp"}
_COMPARED = 6  # replies of which the longest two answers are asked about a second time
_ENDS = {"stop": STOP, "eos": STOP, "eos_token": STOP, "stop_sequence": STOP, "length": LENGTH}
_REMEDIES = {
    "vllm": "restart it with --generation-config vllm and without --override-generation-config",
    "sglang": "restart it with --sampling-defaults openai and without --preferred-sampling-params",
    "llama.cpp": "restart it without options of sampling",
    "transformers": "remove it from the generation_config.json of the checkpoint and restart the server",
}


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
        answered_by: The model that replies name.
        requests, retries: Requests so far, and how many of them were repetitions.
        refused: Neutral values that the server does not take.
        check: What `checks` say together, in words.
        checks: Whether the samples are the model's own, one by one.
    """

    path: str = "served"
    server: str = ""
    honours_n: bool | None = None
    logprobs: bool = False
    answered_by: str = ""
    requests: int = 0
    retries: int = 0
    refused: tuple[str, ...] = ()
    check: str = "not checked: nothing was sampled"
    checks: tuple[Check, ...] = ()


@dataclass
class ServedModel:
    """A served model that can be reached; made by `connect`."""

    endpoint: Endpoint
    name: str
    server: str
    connection: Connection
    work: ServedWork = field(default_factory=ServedWork)
    _lock: Lock = field(default_factory=Lock)
    _drawn: DrawnTokens = field(default_factory=DrawnTokens)
    _repeated: RepeatedReplies = field(default_factory=RepeatedReplies)
    _restated: Restatement = field(default_factory=Restatement)
    _reading: Check | None = None
    _named: set[str] = field(default_factory=set)
    _compared: int = 0

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
        if model.server == "transformers":
            _refuse_settings_without_neutral_value(model.name)
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
            NotFromModelError: the answers are not drawn from the model's own distribution.
        """
        pool = ThreadPoolExecutor(self.endpoint.concurrency)
        jobs: dict[Future[tuple[Answer, ...]], str] = {
            pool.submit(self._sample, key, text, settings): key for key, text in prompts
        }
        reported: set[Future[tuple[Answer, ...]]] = set()

        def report(done: Future[tuple[Answer, ...]]) -> tuple[str, tuple[Answer, ...]]:
            reported.add(done)
            self._judge(settings)
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

    def _sample(self, key: str, text: str, settings: Sampling) -> tuple[Answer, ...]:
        seeds = keyed_generator(settings.seed, key, "served")
        # Answers of other tokens are other answers, though stop strings may leave them the same text.
        found: dict[tuple[str, str, tuple[str, ...]], tuple[int, float | None]] = {}
        replies: list[list[str]] = []
        left = settings.m
        while left:
            n = 1 if self.work.honours_n is False else left
            reply = self._complete(text, settings, n, int(seeds.integers(2**31)))
            choices = reply.choices[:n]
            if n > 1:
                self.work.honours_n = self.work.honours_n or len(choices) > 1
            self._read(text, settings, reply)
            if _own_distribution(settings):
                self._examine(text, settings, Reply(choices, reply.prompt_tokens))
            for choice in choices:
                answer, finish = self._ended(choice, settings)
                count, stated = found.get((answer, finish, tokens_of(choice)), (0, logprob(choice)))
                found[answer, finish, tokens_of(choice)] = (count + 1, stated)
            replies.append([choice["text"] for choice in choices])
            left -= len(choices)
        with self._lock:
            self._repeated.add(replies)
        order = sorted(found.items(), key=lambda item: (-item[1][0], item[0]))
        return tuple(Answer(text, (), count, stated, finish) for (text, finish, _), (count, stated) in order)

    def _ended(self, choice: dict[str, Any], settings: Sampling) -> tuple[str, str]:
        """An answer up to its first stop string, and how it ended.

        Raises:
            UserError: the server withheld it or broke it off.
            NotFromModelError: it changed the text.
        """
        url, said = self.endpoint.url, choice.get("finish_reason")
        if said not in _ENDS:
            raise UserError(
                f"{url} ended an answer with finish_reason {said!r}; expected 'stop' or 'length', as any other answer "
                "is not the model's own; switch off what withholds or breaks off answers"
            )
        if recased(choice):
            written = "".join(tokens_of(choice))
            raise NotFromModelError(
                f"{url} answers {choice['text'][:40]!r} where the tokens are {written[:40]!r}; switch off what changes "
                "upper and lower case"
            )
        answer = cut(choice["text"], settings.stop)
        return answer, _ENDS[said] if answer == choice["text"] else STOP

    def _read(self, prompt: str, settings: Sampling, reply: Reply) -> None:
        """Find out which model answers, and once per run what it makes of a prompt.

        Raises:
            NotFromModelError: another model answers than before.
        """
        with self._lock:
            self._named |= {reply.model} - {""}
            named, first = sorted(self._named), self._reading is None
            if first:
                self._reading = Check.not_made("", "")  # others need not ask
        if len(named) > 1:
            raise NotFromModelError(
                f"{self.endpoint.url} answers as {named[0]!r} and as {named[1]!r}; one run is of one model: ask the "
                "server behind it directly"
            )
        if first:
            self._reading = reading(partial(self._restate, settings), prompt, reply.prompt_tokens)

    # ---- what the server takes -------------------------------------------------------------------------------

    def _complete(self, prompt: str, settings: Sampling, n: int, seed: int, **fields: Any) -> Reply:
        """One request; where the server refuses it, once more without the neutral values that it does not take."""
        refused = self.work.refused
        try:
            return self._send(prompt, body(self.server, settings, n=n, refused=refused) | {"seed": seed} | fields)
        except Refused as refusal:
            with self._lock:
                if self.work.refused == refused:  # else another request has found out
                    self.work.refused = (*refused, *self._not_taken(prompt, settings, refusal))
        return self._complete(prompt, settings, n, seed, **fields)

    def _send(self, prompt: str, fields: dict[str, Any]) -> Reply:
        create = self.connection.client.completions.with_raw_response.create
        return self.connection.ask(create, _reply, model=self.name, prompt=prompt, extra_body=fields)

    def _not_taken(self, prompt: str, settings: Sampling, refusal: Refused) -> list[str]:
        """The neutral values that the server refuses, each tried by itself.

        Raises:
            Refused: none of them is to blame.
        """
        if refusal.temporary:
            raise refusal
        left = [name for name in neutral(self.server, settings) if name not in self.work.refused]

        def taken(names: Sequence[str]) -> bool:
            without = [*self.work.refused, *(name for name in left if name not in names)]
            fields = body(self.server, settings, n=settings.m, refused=without) | {"max_tokens": 1}
            try:
                self._send(prompt, fields)
            except Refused:
                return False
            return True

        found = [name for name in left if not taken([name])] if taken([]) else []
        if not found:
            raise refusal
        return found

    # ---- whether it samples from the model -------------------------------------------------------------------

    def _examine(self, prompt: str, settings: Sampling, reply: Reply) -> None:
        """Take in what a reply says of the law of the samples, and ask the server again about its first answers."""
        with self._lock:
            self._drawn.add(prompt, reply.choices)
            self.work.logprobs = self.work.logprobs or self._drawn.draws > 0
            again = self._drawn.draws > 0 and self._compared < _COMPARED
            self._compared += again
        if again:
            distinct = {choice["text"]: choice for choice in sorted(reply.choices, key=lambda c: len(places(c)))}
            for choice in list(distinct.values())[-2:]:
                ask = partial(self._restate, settings)
                self._restated.compare(ask, prompt, choice, reply.prompt_tokens, self._drawn.listed)

    def _restate(self, settings: Sampling, prompt: str, **fields: Any) -> Reply | None:
        """One token after a prompt; None where the server refuses to, as many do for `echo`."""
        stated = body(self.server, settings, n=1, refused=self.work.refused) | {"max_tokens": 1, "seed": 0}
        with suppress(UserError):
            return self._send(prompt, stated | fields)
        return None

    def _judge(self, settings: Sampling) -> None:
        """
        Raises:
            NotFromModelError: a check failed.
        """
        with self._lock:
            law = (self._drawn.check(), self._restated.fresh.check(), self._restated.scored.check())
            others = (self._repeated.check(), *([self._reading] if self._reading and self._reading.name else []))
            self.work.answered_by = next(iter(sorted(self._named)), "")
        if not _own_distribution(settings):
            law = tuple(Check.not_made(check.name, _ONLY_PLAIN) for check in law)
        self.work.checks = (*law, *others)
        self.work.check = _in_words(law)
        if failed := next((check for check in (*others, *law) if check.outcome == "failed"), None):
            remedy = _REMEDIES.get(self.server, "switch it off in the settings of the server")
            raise NotFromModelError(
                f"{self.endpoint.url} does not sample from the model itself: {failed.why}; {remedy}"
            )

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


_ONLY_PLAIN = "the stated probabilities hold at temperature 1 without truncation"


def _own_distribution(settings: Sampling) -> bool:
    return settings.temperature == 1 and settings.top_k is None and settings.top_p is None


def _in_words(checks: Sequence[Check]) -> str:
    drawn, *others = checks
    if drawn.why == _ONLY_PLAIN:
        return f"not checked: {_ONLY_PLAIN}"
    if drawn.outcome == "not made":
        return f"not checked: {drawn.why}, so truncation, penalties and biases would go unnoticed"
    if failed := [check.why for check in checks if check.outcome == "failed"]:
        return f"DISAGREES with the stated probabilities: {failed[0]}"
    unseen = [check for check in others if check.outcome == "not made"]
    missing = "".join(f"; not checked that {check.name}: {check.why}" for check in unseen)
    missing += f"; {drawn.why}" if drawn.why == HIDDEN_ENDS else ""
    measured = ", ".join(f"{check.figure:.2f} nats" for check in others if check.figure is not None)
    apart = f"; stated again, at most {measured} apart" if measured else ""
    evidence = f"evidence against them 10^{drawn.figure:+.1f}, limit 10^{drawn.limit:.0f}"
    return f"agrees with the stated probabilities ({evidence}){apart}{missing}"


def _reply(reply: dict[str, Any]) -> Reply:
    choices = list(reply["choices"])
    if not choices or not all(isinstance(c["text"], str) for c in choices):
        raise ValueError("it holds no choices")
    prompt_tokens = (reply.get("usage") or {}).get("prompt_tokens")
    return Reply(choices, prompt_tokens, str(reply.get("model") or ""))


def _refuse_settings_without_neutral_value(name: str) -> None:
    """`transformers serve` names a model by its folder or Hub id; where it lies here too, its settings can be read."""
    folder = Path(name)
    cached = None if folder.is_dir() or name.count("/") != 1 else try_to_load_from_cache(name, GENERATION_CONFIG_NAME)
    file = Path(cached) if isinstance(cached, str) else folder / GENERATION_CONFIG_NAME
    if not file.is_file():
        return
    config = json.loads(file.read_text(encoding="utf-8"))
    if found := [key for key in NOT_NEUTRAL if config.get(key) is not None]:
        raise NotFromModelError(
            f"{file} sets {', '.join(found)}, which `transformers serve` applies whatever a request says; remove it "
            "there and restart the server"
        )
