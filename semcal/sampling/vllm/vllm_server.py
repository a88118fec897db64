"""A vLLM that runs already behind the address of `vllm serve`, asked over HTTP.

What is asked and what is read are those of `vllm_worker`, whose class `Reading` the server's own worker must have been
given when it was started (`serve_command`). Nothing but HTTP is shared with the server, so it may run elsewhere.
"""

from __future__ import annotations

import base64
import logging
import shlex
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from uuid import uuid4

import numpy as np

from semcal.errors import UserError, nearest
from semcal.sampling.vllm.interpreter import beyond_tested
from semcal.sampling.vllm.vllm_sampling import VllmSampling
from semcal.sampling.vllm.vllm_worker import MOST_STATED, NEUTRAL, Reading, merged

log = logging.getLogger(__name__)

PLUGIN = Path(__file__).with_name("vllm_worker.py")
_LAW = "processed_logprobs"
_TOKEN = "token_id:"  # before the number of a token, where vLLM is to list tokens by their numbers
_SETTINGS = {
    "model_config": ("model", "dtype", "max_model_len", "generation_config", "logprobs_mode", "max_logprobs"),
    "cache_config": ("enable_prefix_caching", "block_size"),
    "parallel_config": ("tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"),
}


class Http(Protocol):
    """Requests in JSON to one server, repeated if they fail (`semcal.models.connection.Connection`)."""

    url: str

    def exchange(
        self,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        read: Callable[[Any], Any] = ...,
        headers: dict[str, str] | None = None,
        once: bool = False,
    ) -> Any: ...

    def close(self) -> None: ...


@dataclass(frozen=True)
class Expected:
    """The model that a server must serve.

    Attributes:
        path: A folder in Hugging Face format, or a Hub id; on the server's machine it may lie elsewhere.
        revision: Branch, tag or commit on the Hub.
        dtype: Such as "float32".
        layers, width, vocabulary: Sizes of the model.
        trust_remote_code: Whether it needs code that comes with the checkpoint.
    """

    path: str
    revision: str | None
    dtype: str
    layers: int
    width: int
    vocabulary: int
    trust_remote_code: bool = False


def serve_command(model: Expected, length: int) -> str:
    """The command line that starts a server fit for sampling and capture."""
    words = ["vllm", "serve", model.path, *(["--revision", model.revision] if model.revision else [])]
    words += ["--dtype", model.dtype, "--max-model-len", str(length), "--generation-config", "vllm"]
    words += ["--logprobs-mode", _LAW, "--enable-prefix-caching"]
    words += ["--trust-remote-code"] if model.trust_remote_code else []
    words += ["--worker-extension-cls", f"{PLUGIN.stem}.{Reading.__name__}"]
    variables = f"VLLM_SERVER_DEV_MODE=1 VLLM_USE_V2_MODEL_RUNNER=0 PYTHONPATH={shlex.quote(str(PLUGIN.parent))}"
    return f"{variables} {shlex.join(words)}"


class VllmServer(VllmSampling):
    """A running server. It is looked at when `fit` is called first.

    Args:
        connect: Opens a connection, with the server's address below which its completions are.
        model: What it must serve.
        name: Its name for the model; "" takes the only one it lists.
        concurrency: Questions asked at once.
    """

    def __init__(self, connect: Callable[[], Http], model: Expected, *, name: str = "", concurrency: int = 8) -> None:
        self._connect, self.model, self.name, self.concurrency = connect, model, name, concurrency
        self.facts: dict[str, Any] = {}
        self._http: Http | None = None
        self._looked = self._reads = False  # whether it was found fit, and to read activations
        self._length = 0

    def fit(self, length: int, context: int | None = None) -> None:
        """Look at the server, and see that sequences of so many tokens have room."""
        self._length = min(max(length, self._length), context or sys.maxsize)
        if not self._looked:
            self._look()
            self._looked, self._reads = True, False
        room = self.facts["settings"].get("max_model_len")
        if room is not None and room < length:
            raise UserError(
                f"{self._open().url} has room for {room} tokens, and prompt and answer need {length}; start it by "
                f"`{self.command}`"
            )

    @property
    def command(self) -> str:
        """What starts a server as it should be."""
        return serve_command(self.model, self._length)

    @property
    def remedy(self) -> str:
        facts = self.facts
        return (
            f"{facts['server']} serves {facts['serves']}: if that is not {self.model.path}, start it by "
            f"`{self.command}`; else use engine hf, and report this"
        )

    def stop(self) -> None:
        """End all requests; the server runs on, and is looked at again when it is asked next."""
        self._looked = False
        if self._http is not None:
            self._http.close()
            self._http = None

    def cpu_seconds(self) -> float:
        """A server does not say."""
        return 0.0

    def _look(self) -> None:
        """Ask the server what it is and how it was started.

        Raises:
            UserError: it cannot be reached, serves no such model, or was started with other settings than are needed.
        """
        http = self._open()
        cards = {
            str(card["id"]): card for card in http.exchange("/models", read=lambda reply: reply["data"], once=True)
        }
        if not self.name and len(cards) != 1:
            raise UserError(f"{http.url} lists {len(cards)} models; set served.model to one of {', '.join(cards)}")
        self.name = self.name or next(iter(cards))
        if self.name not in cards:
            raise UserError(f"{http.url} does not serve {self.name!r}{nearest(self.name, list(cards))}")
        card, info, version = cards[self.name], dict[str, Any](), "unknown"
        with suppress(UserError):  # other servers have none
            version = str(http.exchange(self._root("/version"), read=lambda reply: reply["version"], once=True))
        with suppress(UserError):  # outside of its development mode
            info = dict(http.exchange(self._root("/server_info?config_format=json"), once=True))
        if card.get("owned_by") != "vllm":
            raise UserError(
                f"{http.url} is no vLLM (its model is owned by {card.get('owned_by')!r}); start one by "
                f"`{self.command}`, or give the address as path, by which nothing is captured"
            )
        config = info.get("vllm_config", {})
        shown = {key: config.get(part, {}).get(key) for part, keys in _SETTINGS.items() for key in keys}
        settings = {key: value for key, value in shown.items() if value is not None}
        self._check_settings(settings, config.get("model_config", {}).get("override_generation_config"))
        if said := beyond_tested(version):
            log.warning("%s", said)
        self.facts = {
            **{"name": "vllm", "version": version, "torch": info.get("system_env", {}).get("torch_version")},
            "device": config.get("device_config", {}).get("device_type") or "unknown",
            **{"server": http.url, "serves": card.get("root") or self.name},
            "settings": {"max_model_len": card.get("max_model_len")} | settings,
        }

    def _check_settings(self, settings: dict[str, Any], overridden: Any) -> None:
        """Where a server shows no settings, the comparison with plain passes decides alone."""
        needed = {"logprobs_mode": _LAW, "generation_config": "vllm", "enable_prefix_caching": True}
        needed |= {"dtype": self.model.dtype}
        shown = {key: str(value).removeprefix("torch.") for key, value in settings.items()}
        wrong = [f"{key} {shown[key]}" for key, value in needed.items() if key in shown and shown[key] != str(value)]
        wrong += [f"override_generation_config {overridden}"] if overridden else []
        if settings.get("max_logprobs") is not None and 0 <= settings["max_logprobs"] < MOST_STATED:
            wrong.append(f"max_logprobs {settings['max_logprobs']}")
        if wrong:
            raise UserError(f"{self._open().url} runs with {', '.join(wrong)}; start it by `{self.command}`")

    def _check_reads(self) -> None:
        """
        Raises:
            UserError: it shows no activations, or those of another model.
        """
        if self._reads:
            return
        url = self._open().url
        try:
            found = self._remote("semcal_facts", once=True)
            sizes = {key: found[key] for key in ("layers", "width", "vocabulary")}
        except (UserError, KeyError, TypeError) as error:
            raise UserError(
                f"{url} shows no activations ({error}); start it with the plugin, by `{self.command}`, or set "
                "capture.positions to []"
            ) from error
        if other := [key for key, size in sizes.items() if size != getattr(self.model, key)]:
            raise self._other_model(", ".join(f"{key} {sizes[key]} for {getattr(self.model, key)}" for key in other))
        self.facts |= {"torch": found["torch"], "device": found["device"]}
        self._reads = True

    def _other_model(self, said: str) -> UserError:
        return UserError(
            f"{self.facts['server']} serves {self.facts['serves']}, which is not {self.model.path} ({said}); start it "
            f"by `{self.command}`"
        )

    # ---- requests ------------------------------------------------------------------------------------------------

    def _replies(self, request: dict[str, Any]) -> Iterator[dict[str, Any]]:
        if request["do"] == "first_tokens":
            asked, answer = request["prompts"], self._first_tokens
        else:
            asked, answer = request["questions"], self._answer
            if any(question["read"] for question in asked):
                self._check_reads()
        pool = ThreadPoolExecutor(self.concurrency)
        try:
            jobs = {pool.submit(answer, question, request): i for i, question in enumerate(asked)}
            for done in as_completed(jobs):
                yield {"question": jobs[done]} | done.result()
        except BaseException:
            self.stop()  # pending requests would delay the error
            raise
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _answer(self, question: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
        name = f"q{uuid4().hex}"
        fields = request["params"] | {"prompt": question["ids"], "seed": question["seed"], "logprobs": 0}
        if not question["read"]:
            return {"answers": merged(map(_stated, self._complete(fields, name))), "read": None}
        self._remote("semcal_read", request["hooks"], {name: question["read"]})
        try:
            answers = merged(map(_stated, self._complete(fields, name)))
            found = self._remote("semcal_take_coded", name)
            if found["missing"]:  # it was in the cache
                self._complete(fields | {"n": 1, "max_tokens": 1, "cache_salt": name}, name)
                found = self._remote("semcal_take_coded", name)
        except BaseException:
            with suppress(UserError, RuntimeError):  # the server may be gone, or the connection closed
                self._remote("semcal_forget", [name], once=True)
            raise
        if found["missing"]:
            raise UserError(
                f"{self._open().url} shows no activations of a request by its X-Request-Id; ask the server itself if "
                "something between changes this header"
            )
        values = np.frombuffer(base64.b64decode(found["values"]), "<f4").astype(np.float32).reshape(found["shape"])
        return {"answers": answers, "read": (values, np.array(found["token_ids"], np.int64))}

    def _first_tokens(self, question: dict[str, Any], request: dict[str, Any]) -> dict[str, Any]:
        fields = request["params"] | {"prompt": question["ids"], "seed": question["seed"]}
        how = {"max_tokens": 1, "logprobs": MOST_STATED, "return_tokens_as_token_ids": True}
        choices = self._complete(fields | how, uuid4().hex)
        tops = [choice["logprobs"]["top_logprobs"][0] for choice in choices]
        stated = {int(token.removeprefix(_TOKEN)): logprob for top in tops for token, logprob in top.items()}
        drawn = Counter(choice["token_ids"][0] for choice in choices)
        return {"drawn": list(drawn.items()), "stated": list(stated.items())}

    def _complete(self, fields: dict[str, Any], name: str) -> list[dict[str, Any]]:
        """The choices of one completion whose request has a name."""

        def read(reply: dict[str, Any]) -> list[dict[str, Any]]:
            choices = reply["choices"]
            if len(choices) != fields["n"]:
                raise ValueError(f"{len(choices)} answers where {fields['n']} were asked for")
            for choice in choices:
                if choice["finish_reason"] not in ("stop", "length"):
                    raise ValueError(f"an answer ended with finish_reason {choice['finish_reason']!r}")
                if len(choice["token_ids"]) != len(choice["logprobs"]["token_logprobs"]):
                    raise ValueError("not every token has a log-probability")
                if list(choice["prompt_token_ids"]) != list(fields["prompt"]):
                    raise ValueError("other tokens were read than were sent")
            return choices

        asked = {key: value for key, value in fields.items() if key != "detokenize"}
        asked |= NEUTRAL | {"model": self.name, "return_token_ids": True}
        choices = self._open().exchange("/completions", asked, read=read, headers={"X-Request-Id": name})
        if (largest := max(i for choice in choices for i in choice["token_ids"])) >= self.model.vocabulary:
            raise self._other_model(f"it draws token {largest} of {self.model.vocabulary}")
        return choices

    def _remote(self, method: str, *arguments: Any, once: bool = False) -> Any:
        """What the first worker returns."""
        body = {"method": method, "args": arguments}
        return self._open().exchange(
            self._root("/collective_rpc"), body, read=lambda reply: reply["results"][0], once=once
        )

    def _root(self, path: str) -> str:
        return self._open().url.removesuffix("/v1") + path

    def _open(self) -> Http:
        if self._http is None:
            self._http = self._connect()
        return self._http


def _stated(choice: dict[str, Any]) -> tuple[Sequence[int], Sequence[float]]:
    return choice["token_ids"], choice["logprobs"]["token_logprobs"]
