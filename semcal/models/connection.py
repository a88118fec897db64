"""Requests to an OpenAI-compatible server through the `openai` client, which retries them. Failures are one line.

`ChatModel` asks a chat endpoint for one short reply at a time; `semcal.models.served` samples completions.
"""

import json
import os
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from threading import Lock
from types import SimpleNamespace
from typing import Any

import httpx
from openai import APIConnectionError, APIStatusError, DefaultHttpxClient, OpenAI

from semcal.errors import UserError
from semcal.well_formed import well_formed

_TEMPORARY = {408, 409, 429}  # what the client retries, as well as every status from 500 on
_LONGEST = 256  # tokens per chat reply


class Refused(UserError):
    """A request that a server answers with an error, at once or every time; `temporary` if it was busy or away."""

    def __init__(self, message: str, *, temporary: bool) -> None:
        super().__init__(message)
        self.temporary = temporary


class Connection:
    """A server and how often it was asked.

    Args:
        url: Base address, e.g. http://localhost:8000/v1.
        tries: Attempts per request before it counts as failed.
        timeout: Seconds that one attempt may take.
        api_key_env: Environment variable that holds the key, if the server needs one.

    Attributes:
        client: The client of the `openai` package.
        requests, retries: Attempts so far, and how many of them were repetitions.

    Raises:
        UserError: `url` is not an address.
    """

    def __init__(self, url: str, *, tries: int, timeout: float, api_key_env: str) -> None:
        if not re.match(r"https?://[^/]", url):
            raise UserError(f"{url!r} is not a valid address; expected one such as http://localhost:8000/v1")
        self.url, self.tries = url, tries
        self.requests = self.retries = 0
        self._lock = Lock()
        self.client = OpenAI(
            base_url=url,
            api_key=os.environ.get(api_key_env) or "none",
            max_retries=tries - 1,
            timeout=timeout,
            http_client=DefaultHttpxClient(event_hooks={"request": [self._count]}),
        )

    def ask(self, create: Callable[..., Any], read: Callable[[dict[str, Any]], Any], **body: Any) -> Any:
        """What `read` makes of the JSON that `create` is answered with; a reply that it cannot read is asked for again.

        Args:
            create: A method of the client's raw-response API, e.g. `client.completions.with_raw_response.create`.
            read: Takes the reply; may raise ValueError, KeyError, TypeError or AttributeError.
            body: Arguments of `create`.

        Raises:
            Refused: the server answers with an error.
            UserError: it cannot be reached, or its replies cannot be read, `tries` times.
        """
        return self._ask(create, read, self.tries, body)

    def _ask(self, create: Callable[..., Any], read: Callable[[Any], Any], tries: int, body: dict[str, Any]) -> Any:
        problem = ""
        for attempt in range(tries):
            with self._lock:
                self.retries += attempt > 0
            try:
                response = create(**body).http_response
            except APIStatusError as error:
                if error.status_code >= 500 or error.status_code in _TEMPORARY:
                    busy = error.status_code != 500  # a setting that a server cannot take may end in a 500
                    raise Refused(self._failed(_complaint(error.response), tries), temporary=busy) from error
                message = f"{self.url} refused a request: {_complaint(error.response)}"
                raise Refused(message, temporary=False) from error
            except APIConnectionError as error:
                cause = error.__cause__ or error
                raise UserError(self._failed(f"{type(cause).__name__} {cause}".strip(), tries)) from error
            try:
                return read(_well_formed(response.content))
            except (ValueError, KeyError, TypeError, AttributeError) as error:
                problem = f"an unreadable reply ({error}): {response.text[:80]!r}"
        raise UserError(self._failed(problem, tries))

    def exchange(
        self,
        path: str,
        body: dict[str, Any] | None = None,
        *,
        read: Callable[[Any], Any] = lambda reply: reply,
        headers: dict[str, str] | None = None,
        once: bool = False,
    ) -> Any:
        """What `read` makes of the JSON at a path below the base address, or at a whole address.

        Args:
            body: What is posted there; None to get what is there.
            read: As of `ask`.
            once: Whether a failure is final.

        Raises:
            Refused, UserError: as `ask`.
        """
        client = self.client.with_options(max_retries=0) if once else self.client
        how: dict[str, Any] = {"cast_to": httpx.Response, "options": {"headers": headers or {}}}

        def create() -> SimpleNamespace:
            reply = client.get(path, **how) if body is None else client.post(path, body=body, **how)
            return SimpleNamespace(http_response=reply)

        return self._ask(create, read, 1 if once else self.tries, {})

    def close(self) -> None:
        """End all requests."""
        self.client.close()

    def _failed(self, last: str, tries: int) -> str:
        times = f"failed {tries} times, last" if tries > 1 else "failed"
        return f"{self.url} {times}: {last}; check that the server is running and what it logs, then run again"

    def _count(self, request: Any) -> None:
        with self._lock:
            self.requests += 1
            self.retries += request.headers.get("x-stainless-retry-count", "0") != "0"


def _well_formed(content: bytes) -> Any:
    """The JSON of a reply, with U+FFFD for bytes that are not UTF-8 and for halves of surrogate pairs.

    Raises:
        ValueError: it is no JSON.
    """
    text = content.decode("utf-8", "replace")
    reply = json.loads(text)
    return json.loads(well_formed(json.dumps(reply, ensure_ascii=False))) if "\\ud" in text.lower() else reply


def _complaint(response: Any) -> str:
    try:
        reply = response.json()
    except ValueError:
        reply = response.text
    for key in ("error", "message", "detail"):
        if isinstance(reply, dict):
            reply = reply.get(key) or reply
    return f"{response.status_code} {' '.join(str(reply).split())[:200]}"


class ChatModel:
    """Replies at temperature 0, several at once.

    Args:
        url: Base address, e.g. http://localhost:8000/v1; a key, if the server needs one, is read from SEMCAL_API_KEY.
        model: The server's name for the model.
        concurrency: Maximum number of simultaneous requests.
        tries: Attempts per request before it counts as failed.
        timeout: Seconds that one attempt may take.
    """

    def __init__(self, url: str, model: str, *, concurrency: int = 8, tries: int = 6, timeout: float = 120.0) -> None:
        self.model, self.concurrency = model, concurrency
        self.connection = Connection(url, tries=tries, timeout=timeout, api_key_env="SEMCAL_API_KEY")

    def ask(self, prompts: Sequence[str]) -> Iterator[tuple[int, str]]:
        """(index of the prompt, reply), in the order in which replies arrive.

        Raises:
            UserError: a request was refused or failed `tries` times; earlier replies have been yielded by then.
        """
        pool = ThreadPoolExecutor(self.concurrency)
        jobs = {pool.submit(self._reply, prompt): index for index, prompt in enumerate(prompts)}
        try:
            for done in as_completed(jobs):
                yield jobs[done], done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _reply(self, prompt: str) -> str:
        return self.connection.ask(
            self.connection.client.chat.completions.with_raw_response.create,
            _content,
            model=self.model,
            messages=[{"role": "user", "content": prompt}],
            temperature=0,
            max_tokens=_LONGEST,
        )


def _content(reply: dict[str, Any]) -> str:
    return str(reply["choices"][0]["message"]["content"] or "")
