"""Where a sample ends: end-of-sequence tokens, and stop strings wherever they fall within tokens."""

from collections.abc import Callable, Collection, Mapping, Sequence
from itertools import groupby

import torch


class StopRule:
    """Tells which rows are finished after their latest token.

    Stop strings are searched in the decoded answer, so they may begin or end inside a token. Decoding every row at
    every step would be more expensive than the model. Only tokens whose text contains the last character of a stop
    string can complete one, so only rows that just drew such a token are decoded. A token that contains a whole stop
    string ends the sample whatever came before.

    Args:
        decode: Token ids -> text.
        stop: Stop strings.
        eos_ids: End-of-sequence tokens.
        vocab_size: Number of rows in the model's output layer.
    """

    def __init__(
        self, decode: Callable[[Sequence[int]], str], stop: Sequence[str], eos_ids: Collection[int], vocab_size: int
    ) -> None:
        self.decode, self.stop = decode, tuple(stop)
        self.eos = torch.zeros(vocab_size, dtype=torch.bool)
        self.eos[[i for i in eos_ids if i < vocab_size]] = True
        self.certain = self.eos.clone()
        self.suspect = torch.zeros(vocab_size, dtype=torch.bool)
        endings = {s[-1] for s in self.stop}
        if endings:
            # A single token may lose its leading space, and a byte token decodes to a replacement character.
            space = " " in endings
            for i in range(vocab_size):
                text = decode([i])
                self.certain[i] |= any(s in text for s in self.stop)
                self.suspect[i] = space or bool(endings & set(text)) or "\ufffd" in text

    def finished(self, drawn: torch.Tensor, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """[row] whether this token ends the sample. `drawn` [row] is the last element of each of `rows`, on the CPU."""
        done = self.certain[drawn]
        for r in torch.nonzero(self.suspect[drawn] & ~done).flatten().tolist():
            text = self.decode(rows[r])
            done[r] = any(s in text for s in self.stop)
        return done

    def end(self, ids: Sequence[int]) -> int | None:
        """Number of tokens of an answer up to the one that ends it; None if none does."""
        drawn = torch.tensor(ids, dtype=torch.long)
        for at in torch.nonzero(self.certain[drawn] | self.suspect[drawn]).flatten().tolist():
            if self.certain[ids[at]] or any(s in self.decode(ids[: at + 1]) for s in self.stop):
                return at + 1
        return None


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before its first stop string."""
    ends = [at for s in stop if (at := text.find(s)) >= 0]
    return text[: min(ends)] if ends else text


def legible(ids: Sequence[int], byte_of: Mapping[int, int]) -> list[int]:
    """The same answer in bytes that can be decoded: what is no character becomes "\ufffd" (EF BF BD in UTF-8).

    A decoder with byte fallback gives up a whole run of byte tokens, complete characters included, if any of them is
    not valid, such as the first byte of a character that was cut.

    Args:
        byte_of: The tokens that stand for single bytes, and those bytes.
    """
    token_of = {byte: token for token, byte in byte_of.items()}
    found: list[int] = []
    for is_byte, run in groupby(ids, byte_of.__contains__):
        if is_byte:
            text = bytes(byte_of[i] for i in run).decode(errors="replace")
            found += [token_of[byte] for byte in text.encode()]
        else:
            found += run
    return found
