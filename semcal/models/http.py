"""Requests to a server that may hiccup: retried with backoff and jitter, then one clear error."""

from __future__ import annotations

import os
from collections.abc import Callable
from threading import Lock
from typing import Any

import httpx
from tenacity import RetryCallState, Retrying, retry_if_exception_type, stop_after_attempt, wait_random_exponential

from semcal.errors import UserError

_AGAIN = {408, 409, 425, 429, 500, 502, 503, 504}
_jitter = wait_random_exponential(multiplier=0.5, max=30)


class Hiccup(Exception):
    """Something that may be better at the next try; says what."""

    def __init__(self, what: str, wait: float = 0.0) -> None:
        super().__init__(what)
        self.wait = wait


class Server:
    """A server that speaks JSON.

    Args:
        url: Base address, e.g. http://localhost:8000/v1.
        concurrency: Most requests at once.
        tries: Tries a request before it is an error.
        timeout: Seconds a request may take.
        api_key_env: Environment variable that holds the key, if the server wants one.

    Attributes:
        requests, retries: How many so far.
    """

    def __init__(self, url: str, *, concurrency: int, tries: int, timeout: float, api_key_env: str) -> None:
        key = os.environ.get(api_key_env)
        self.url, self.tries = url, tries
        self.client = httpx.Client(
            base_url=url.rstrip("/") + "/",
            timeout=timeout,
            headers={"Authorization": f"Bearer {key}"} if key else {},
            limits=httpx.Limits(max_connections=concurrency),
        )
        self.requests = self.retries = 0
        self._lock = Lock()

    def ask(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        read: Callable[[httpx.Response], Any],
        *,
        any_status: bool = False,
    ) -> Any:
        """What `read` makes of the response; a response that it cannot read is a hiccup.

        Raises:
            UserError: it failed as often as `tries`, or was refused.
        """
        tries = Retrying(
            retry=retry_if_exception_type(Hiccup),
            stop=stop_after_attempt(self.tries),
            wait=_wait,
            before_sleep=self._count_retry,
            reraise=True,
        )
        try:
            return tries(self._once, method, path, body, read, any_status)
        except Hiccup as error:
            raise UserError(
                f"{self.url} failed {self.tries} times, last: {error}; see that the server runs and what it logs, then "
                "run again"
            ) from error

    def close(self) -> None:
        """Give up requests under way."""
        self.client.close()

    def _once(
        self,
        method: str,
        path: str,
        body: dict[str, Any] | None,
        read: Callable[[httpx.Response], Any],
        any_status: bool,
    ) -> Any:
        with self._lock:
            self.requests += 1
        try:
            response = self.client.request(method, path, json=body)
        except (httpx.InvalidURL, httpx.UnsupportedProtocol) as error:
            raise UserError(f"{self.url} is no address; write e.g. http://localhost:8000/v1") from error
        except (httpx.TransportError, httpx.DecodingError) as error:
            raise Hiccup(f"{type(error).__name__} {error}".strip()) from error
        if response.status_code in _AGAIN and not any_status:
            raise Hiccup(_complaint(response), _seconds(response.headers.get("Retry-After")))
        if response.status_code >= 400 and not any_status:
            raise UserError(f"{self.url} refused a request: {_complaint(response)}")
        try:
            return read(response)
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Hiccup(f"an answer that is not what it should be ({error}): {response.text[:80]!r}") from error

    def _count_retry(self, _: RetryCallState) -> None:
        with self._lock:
            self.retries += 1


def _complaint(response: httpx.Response) -> str:
    try:
        said = response.json()
        error = said.get("error", said) if isinstance(said, dict) else said
        text = error.get("message") or error.get("detail") or error if isinstance(error, dict) else error
    except ValueError:
        text = response.text
    return f"{response.status_code} {' '.join(str(text).split())[:200]}"


def _seconds(header: str | None) -> float:
    try:
        return max(0.0, float(header or 0))
    except ValueError:
        return 0.0


def _wait(state: RetryCallState) -> float:
    """Exponential backoff with full jitter, never less than the server asked for (a minute at most)."""
    error = state.outcome.exception() if state.outcome else None
    return max(_jitter(state), min(60.0, getattr(error, "wait", 0.0)))
