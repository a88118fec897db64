"""Whether answers end where they should, read from their token ids by the tokenizer alone.

Independent of `StopRule`, which decides during sampling with tables of the vocabulary: here the answers are finished,
and each is decoded twice, with its last token and without it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from semcal.models.checkpoint import LanguageModel
from semcal.sampling.records import STOP, Sampling

Row = Mapping[str, Any]  # of a table of samples


class AnswerEnds:
    """Finds answers that run past their end, end before it, or are shown with what ended them.

    An answer that is finished by "stop" ends with the first token at which a stop string is in its text, or with its
    first end-of-sequence token. One that is finished by "length" has neither, and `max_new_tokens` tokens.
    """

    def __init__(self, model: LanguageModel, settings: Sampling) -> None:
        self.model, self.stop, self.length = model, settings.stop, settings.max_new_tokens
        # Special tokens are left out of the text, so stop strings that name one are looked for by id.
        added = model.tokenizer.added_tokens_decoder
        self.ends = model.eos_ids | {i for i, token in added.items() if token.special and token.content in self.stop}

    def wrong(self, rows: Sequence[Row]) -> list[Row]:
        """Those of these answers that do not end where they should; of equal ones, the first."""
        distinct = _distinct(rows)
        texts = self._texts([ids for row in distinct for ids in (row["token_ids"][:-1], row["token_ids"])])
        found = zip(distinct, texts[::2], texts[1::2], strict=True)
        return [row for row, before, whole in found if not self._ends_well(row, before, whole)]

    def _ends_well(self, row: Row, before: str, whole: str) -> bool:
        ids = row["token_ids"]
        over = self._holds_a_stop(before) or not self.ends.isdisjoint(ids[:-1])
        ended = ids[-1] in self.ends or self._holds_a_stop(whole)
        rightly = ended if row["finish"] == STOP else not ended and len(ids) == self.length
        return rightly and not over and not self._holds_a_stop(row["text"])

    def _holds_a_stop(self, text: str) -> bool:
        return any(s in text for s in self.stop)

    def _texts(self, answers: Sequence[Sequence[int]]) -> list[str]:
        how: dict[str, Any] = {"skip_special_tokens": True, "clean_up_tokenization_spaces": False}
        texts: list[str] = self.model.tokenizer.batch_decode([list(ids) for ids in answers], **how)
        # A decoder with byte fallback gives up complete characters beside one that was cut.
        return [self.model.decode(ids) if "\ufffd" in text else text for ids, text in zip(answers, texts, strict=True)]


def _distinct(rows: Sequence[Row]) -> list[Row]:
    """Short answers are common to many questions, and few are in two forms that read alike."""
    by_text: dict[str, list[Row]] = {}
    for row in rows:
        alike = by_text.get(row["text"])
        if alike is None:
            by_text[row["text"]] = [row]
        elif (row["finish"], row["token_ids"]) not in [(other["finish"], other["token_ids"]) for other in alike]:
            alike.append(row)
    return [row for alike in by_text.values() for row in alike]
