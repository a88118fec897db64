"""A language model behind an OpenAI-compatible chat endpoint, asked for one short reply at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor, as_completed
from typing import Any

from semcal.models.connection import Connection

_LONGEST = 256  # tokens per reply


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
