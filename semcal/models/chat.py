"""A language model behind an OpenAI-compatible chat endpoint, asked for one short reply at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed

import httpx

from semcal.models.http import Server

_LONGEST = 256  # tokens of a reply


class ChatModel:
    """Asked at temperature 0, several at once.

    Args:
        url: Base address, e.g. http://localhost:8000/v1; the key is in SEMCAL_API_KEY, if it wants one.
        model: The name the server knows it by.
        concurrency: Most requests at once.
    """

    def __init__(self, url: str, model: str, *, concurrency: int = 8, tries: int = 6, timeout: float = 120.0) -> None:
        self.model, self.concurrency = model, concurrency
        self.server = Server(url, concurrency=concurrency, tries=tries, timeout=timeout, api_key_env="SEMCAL_API_KEY")

    def ask(self, prompts: Sequence[str]) -> Iterator[tuple[int, str]]:
        """(index of the prompt, reply), in the order in which replies come.

        Raises:
            UserError: the server failed a request as often as `tries`, or refused it; what came before is out.
        """
        pool = ThreadPoolExecutor(self.concurrency)
        jobs = {pool.submit(self._one, prompt): index for index, prompt in enumerate(prompts)}
        try:
            for done in as_completed(jobs):
                yield jobs[done], done.result()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)

    def _one(self, prompt: str) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": prompt}],
            "temperature": 0,
            "max_tokens": _LONGEST,
        }
        return self.server.ask("POST", "chat/completions", body, _content)


def _content(response: httpx.Response) -> str:
    return str(response.json()["choices"][0]["message"]["content"] or "")
