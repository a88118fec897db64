"""Where a sample ends: end-of-sequence tokens and stop strings, by text, whatever the token borders."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence

import torch


class StopRule:
    """Tells which rows are finished after their latest token.

    A stop string is looked for in the decoded answer, so it may begin or end inside a token. Decoding every row at
    every step would cost more than the model; only tokens whose own text holds the last character of a stop string
    can complete one, and only rows that just drew such a token are decoded. A token that holds a whole one completes it
    whatever came before.

    Args:
        decode: Token ids -> text.
        stop: Stop strings.
        eos_ids: Tokens that end a sample by themselves.
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
            # A lone token may lose the space it begins with, and a byte token decodes to a replacement character.
            space = " " in endings
            for i in range(vocab_size):
                text = decode([i])
                self.certain[i] |= any(s in text for s in self.stop)
                self.suspect[i] = space or bool(endings & set(text)) or "\ufffd" in text

    def finished(self, drawn: torch.Tensor, rows: Sequence[Sequence[int]]) -> torch.Tensor:
        """[row] bool: finished with this token. `drawn` [row] is the last element of each of `rows`, on the CPU."""
        done = self.certain[drawn]
        for r in torch.nonzero(self.suspect[drawn] & ~done).flatten().tolist():
            text = self.decode(rows[r])
            done[r] = any(s in text for s in self.stop)
        return done


def cut(text: str, stop: Sequence[str]) -> str:
    """The text before the first stop string in it."""
    ends = [at for s in stop if (at := text.find(s)) >= 0]
    return text[: min(ends)] if ends else text
