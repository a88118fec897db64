"""Control tokens: those that a chat template or a tokenizer writes, as against the same characters typed by someone.

A tokenizer reads `<|im_end|>` as the token that ends a turn wherever it stands, also in a question about chat
templates. Here the tokens that a template wrote stay what they are, and those that someone typed become text.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from semcal.errors import UserError

Spans = Sequence[tuple[int, int]]  # start and stop, in characters
_PRIVATE = 0xF0000  # a plane of Unicode for private use


class ControlTokens:
    """The added tokens that are special or that the chat template writes; others, such as runs of spaces or HTML tags,
    are ordinary text.

    Attributes:
        ids: Token -> id.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self.tokenizer = tokenizer
        template, named = str(tokenizer.chat_template or ""), set(tokenizer.all_special_tokens)
        self.ids = {
            token.content: i
            for i, token in tokenizer.added_tokens_decoder.items()
            if token.special or token.content in named or (token.content in template and not token.content.isspace())
        }
        longest_first = sorted(self.ids, key=len, reverse=True)
        self._pattern = re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")

    def typed(self, text: str, spans: Spans) -> list[str]:
        """The control tokens that lie in these spans of a text."""
        return [match[0] for match in self._pattern.finditer(text) if _meets(match, spans)]

    def first(self, text: str) -> tuple[str, str]:
        """The text before its first control token, and that token; "" if there is none."""
        match = self._pattern.search(text)
        return (text[: match.start()], match[0]) if match else (text, "")

    def encode(self, text: str, spans: Spans, *, add_special_tokens: bool) -> tuple[list[int], list[tuple[int, int]]]:
        """Token ids and their places in the text; a control token is one outside of the spans, and text inside.

        Raises:
            UserError: the tokenizer cannot write one as text.
        """
        written = [match.start() for match in self._pattern.finditer(text) if not _meets(match, spans)]
        marked = list(text)
        for at in written:
            marked[at] = _mark(text[at])
        found = self._core.encode("".join(marked), add_special_tokens=add_special_tokens)
        ids = [self._original.get(token, i) for i, token in zip(found.ids, found.tokens, strict=True)]
        own = [i for i, prepended in zip(ids, found.special_tokens_mask, strict=True) if not prepended]
        if sum(i in self._numbers for i in own) != len(written):
            raise self._cannot(text, spans)
        return ids, list(found.offsets)

    @cached_property
    def _numbers(self) -> frozenset[int]:
        return frozenset(self.ids.values())

    @cached_property
    def _json(self) -> dict[str, Any]:
        core: Any = self.tokenizer.backend_tokenizer  # pyright: ignore[reportAttributeAccessIssue]
        return json.loads(core.to_str())

    @cached_property
    def _core(self) -> Tokenizer:
        """The same tokenizer, but for the first character of its control tokens, which nobody types."""
        added = [token | {"content": self._marked(token["content"])} for token in self._json["added_tokens"]]
        core = Tokenizer.from_str(json.dumps(self._json | {"added_tokens": added}))
        core.no_truncation()
        core.no_padding()
        return core

    @cached_property
    def _original(self) -> dict[str, int]:
        """The ids of added tokens under their present names: a renamed token gets a new id."""
        return {self._marked(token["content"]): token["id"] for token in self._json["added_tokens"]}

    def _marked(self, token: str) -> str:
        return _mark(token[0]) + token[1:] if token in self.ids else token

    def _cannot(self, text: str, spans: Spans) -> UserError:
        return UserError(
            f"the tokenizer cannot write {self.typed(text, spans)[0]!r}, which is in a question, other than as its "
            "control token; reword the question, or leave it out"
        )


def _mark(character: str) -> str:
    return chr(_PRIVATE + (ord(character) & 0xFFFF))


def _meets(match: re.Match[str], spans: Spans) -> bool:
    return any(match.start() < stop and match.end() > start for start, stop in spans)
